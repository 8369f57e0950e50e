"""A request and what was answered, for those who keep count of them: the log and the metrics.

An exchange begins when a request is complete and ends when its last byte was written, or its client has gone. Who
answers finds it with `exchange_of(request)`.
"""

from typing import Protocol
from uuid import uuid4

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request as HTTPRequest
from twisted.web.server import Request
from zope.interface import Interface, implementer

from ..chat import ApiError
from ..serving.account import Account

log = Logger()

# In the place of a route, where none was taken: for unknown paths, and whoever was not let in.
OTHER = "other"

# What those ask who watch the server, the page among them, all the time and without using a model.
WATCHING = (
    "/",
    "/health",
    "/metrics",
    "/ui",
    "/ui/{name}",
    "/v1/models",
    "/api/ps",
    "/api/tags",
    "/api/version",
)

# nginx's status for a client that has gone before it was answered.
CLIENT_GONE = 499


class IExchange(Interface):
    """What a request is adapted to, to find its Exchange."""


@implementer(IExchange)
@define(eq=False, kw_only=True)
class Exchange:
    """One exchange. `method` and `path` are the network's and may hold anything; the path is without its query.

    `route` is the template of the route that was taken, as in openapi.json. `seconds` are those it took.
    """

    id: str = field(factory=lambda: f"req_{uuid4().hex}")
    method: str
    client: str
    path: str = ""
    route: str = OTHER
    status: int = 0
    error: str = ""
    """The code of the error that was answered, if one was."""
    gone: bool = False
    """Whether the client left before the answer was complete."""
    seconds: float = 0.0
    account: Account | None = None
    """Of the answers that were generated."""

    def failed(self, error: ApiError) -> None:
        """Take note of an error that the client is told of. One that is not the client's goes into the log."""
        self.error = error.code
        if error.status >= 500:
            log.error("{what} failed: {error}", what=f"{self.method} {self.path}", error=error, request_id=self.id)

    @property
    def watching(self) -> bool:
        """Whether somebody only watched the server."""
        return self.route in WATCHING


def exchange_of(request: HTTPRequest) -> Exchange:
    """Return the exchange that a request has begun."""
    found = IExchange(request)
    assert isinstance(found, Exchange)
    return found


class Observer(Protocol):
    """Hears of exchanges."""

    def ended(self, exchange: Exchange) -> None:
        """Take note of one that is over."""


def begin(request: Request, clock: IReactorTime, observers: tuple[Observer, ...]) -> Exchange:
    """Return the exchange that a request begins; when it is over the observers hear of it."""
    address = request.getClientAddress()
    exchange = Exchange(method=request.method.decode("latin-1"), client=getattr(address, "host", "unix"))
    request.setComponent(IExchange, exchange)
    began = clock.seconds()

    def end(outcome: Failure | None) -> None:
        exchange.gone = outcome is not None
        exchange.seconds = clock.seconds() - began
        exchange.status = request.code if request.startedWriting or not exchange.gone else CLIENT_GONE
        for observer in observers:
            observer.ended(exchange)

    request.notifyFinish().addBoth(end)
    return exchange
