"""The connections of the server, within their bounds; at the end they close one by one, each behind its answer.

The difficulty is to know when an answer is complete for whoever asked. A request that is finished has only been written
to its connection, whose client may be slow to take it; and a connection that stays open may bring another request. So
when the server stops, each connection that is being answered on is closed behind its answer, which Twisted does when
all is sent, and it is those that are waited for. Others are left alone: a request that still comes on one is answered
as well, and is the last there; what would be work is refused with 503 by whoever would do it.

A request that has begun to arrive is one of those that are waited for, or its client would be hung up on in the middle
of sending; and one that was idle until then does not end meanwhile. Whether it was a use of the server is known by its
route, when it is over.
"""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.http import HTTPChannel, Request
from twisted.web.resource import IResource

from ..serving.idleness import Idleness
from .exchange import OTHER, IExchange
from .guard import Guard
from .request import BoundedRequest, QuietSite
from .tls import BoundedFactory


class Connections(BoundedFactory):
    """Connections on which `root` answers, and the guard says which pages may read that no request could be read.

    One beyond `most` is closed at once. Bodies have `max_body` bytes.
    """

    def __init__(
        self, root: IResource, guard: Guard, clock: IReactorTime, idleness: Idleness, *, most: int, max_body: int
    ) -> None:
        # A JSON body that a client forgot to label would be taken apart as a form.
        site = QuietSite(root, guard, requestFactory=self._request, parsePOSTFormSubmission=False)
        super().__init__(site, maxConnectionCount=most)
        self._clock = clock
        self._idleness = idleness
        self._max_body = max_body
        self._arriving: set[Request] = set()
        self._answering: set[Request] = set()
        self._closing: set[Any] = set()
        self._drained: Deferred[None] | None = None

    @property
    def answering(self) -> int:
        """How many requests are being answered, or have begun to arrive."""
        return len(self._arriving) + len(self._answering)

    def apply(self, most: int, max_body: int) -> None:
        """Have other limits, from the next connection and the next request on."""
        self.maxConnectionCount, self._max_body = most, max_body

    def drain(self) -> Deferred[None]:
        """Fire when everything that was asked is answered and with its client. Cancelling ends the waiting only."""
        self._drained = Deferred()
        for request in self._answering:
            self._close_behind(request)
        self._look()
        return self._drained

    def unregisterProtocol(self, protocol: Any) -> None:
        """Take note of a connection that has closed."""
        super().unregisterProtocol(protocol)
        self._closing.discard(protocol)
        self._look()

    def _request(self, channel: Any, *args: Any) -> BoundedRequest:
        request = BoundedRequest(channel, *args, max_body=self._max_body, clock=self._clock, begun=self._begin)
        self._arriving.add(request)
        self._idleness.begin()
        request.notifyFinish().addBoth(lambda _: self._arrived(request))
        return request

    def _arrived(self, request: Request) -> None:
        """Take note that a request which may never have become complete is over."""
        if request in self._arriving:
            self._arriving.discard(request)
            self._idleness.finish(used=False)
            self._look()

    def _begin(self, request: Request) -> None:
        self._answering.add(request)
        self._arriving.discard(request)
        request.notifyFinish().addBoth(lambda _: self._finish(request))
        if self._drained is not None:
            self._close_behind(request)

    def _close_behind(self, request: Request) -> None:
        """Close the connection of a request when its answer is sent."""
        channel = request.channel
        if isinstance(channel, HTTPChannel):
            channel.persistent = False
            if not request.startedWriting:
                request.setHeader("Connection", "close")
        if channel.transport in self.protocols:
            self._closing.add(channel.transport)

    def _finish(self, request: Request) -> None:
        self._answering.discard(request)
        exchange: Any = IExchange(request, None)
        # Whoever was not let in, or asked for what is not there, has used nothing.
        self._idleness.finish(used=exchange is None or not (exchange.watching or exchange.route == OTHER))
        self._look()

    def _look(self) -> None:
        if self._drained is None or self._drained.called:
            return
        if not self._arriving and not self._answering and not self._closing:
            self._drained.callback(None)
