"""An HTTP request that is bounded while it arrives, in size and in time.

Twisted itself takes bodies of any size and writes large ones to a file. Here a body is kept in memory up to a limit;
what comes beyond it is thrown away, so that the client can read the answer (413) when it is through with sending. One
that goes on for many times the limit is cut off, and so is one that takes too long to be complete: Twisted waits for as
long as something comes now and then. Who is cut off has a line in the log; it is no exchange, since there is nothing
to be answered yet.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from ..chat import ApiError, RequestTooLarge
from .channel import ToldChannel
from .guard import Guard

log = Logger()

PATIENCE = 16
# In seconds, from the first line to the last byte of the body.
LONGEST_ARRIVAL = 120.0


class BoundedRequest(Request):
    """A request with a body of at most `max_body` bytes; `refusal` is the answer to one that is too large.

    `begun` is called with it when it is complete and will be answered.
    """

    def __init__(
        self, channel: Any, *args: Any, max_body: int, clock: IReactorTime, begun: Callable[[Request], object]
    ) -> None:
        super().__init__(channel, *args)
        self._patience = clock.callLater(LONGEST_ARRIVAL, self._give_up)
        self._cut_off = False
        self._max_body = max_body
        self._begun = begun
        self.refusal: ApiError | None = None
        self._received = 0
        self._body = BytesIO()

    def gotLength(self, length: int | None) -> None:  # noqa: ARG002
        """Make room for the body; its length is told by what arrives, in both framings."""
        self.content = self._body

    def handleContentChunk(self, data: bytes) -> None:
        """Take a part of the body."""
        self._received += len(data)
        if self._received <= self._max_body:
            self._body.write(data)
        elif self._received > self._max_body * PATIENCE:
            # More may come until the client has heard of it.
            if not self._cut_off:
                self._tell_cut("it goes on beyond {limit} bytes", limit=self._max_body * PATIENCE)
                self.channel.loseConnection()
        else:
            self._body.truncate(0)

    def connectionLost(self, reason: Failure) -> None:
        """Wait for nothing any more."""
        self._arrived()
        super().connectionLost(reason)

    def _give_up(self) -> None:
        """Cut off what takes too long."""
        if not self._cut_off:
            self._tell_cut("it is not complete after {seconds:g} s", seconds=LONGEST_ARRIVAL)
        self.channel.forceAbortClient()

    def _tell_cut(self, why: str, **fields: float) -> None:
        self._cut_off = True
        peer = self.channel.getPeer()
        log.info(f"A request was cut off: {why}", client=getattr(peer, "host", "unix"), **fields)

    def _arrived(self) -> None:
        if self._patience.active():
            self._patience.cancel()

    def process(self) -> None:
        """Answer the request, now that its body is complete."""
        self._arrived()
        self._begun(self)
        if self._received > self._max_body:
            limit = f"{self._max_body / 2**20:g} MiB"
            self.refusal = RequestTooLarge(f"The body has {self._received} bytes; the limit is {limit}")
        if self.path == b"*":
            # Twisted would answer `OPTIONS *` by itself, without what every answer has.
            self.path = b"/*"
        super().process()


class QuietSite(Site):
    """A site without a log of its own: `access.py` has one line for every request that is complete.

    Its connections speak HTTP/1.1 alone, which is all that `tls.py` offers: nothing has to choose a protocol for them.
    """

    protocol = ToldChannel  # type: ignore[assignment]  # Twisted has a function here that makes its own

    def __init__(self, root: IResource, guard: Guard, **options: Any) -> None:
        super().__init__(root, **options)
        self.guard = guard

    def log(self, request: Any) -> None:
        """Write nothing."""
