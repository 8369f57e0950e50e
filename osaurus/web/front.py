"""The root of the HTTP tree: what happens to every request before it is routed.

The API answers under each prefix and bare, with or without a trailing slash. Prefixes are mounts: they are taken off
the path here, and one resource tree, whose rules all end in a slash, serves them all.
"""

from urllib.parse import unquote_to_bytes, urlsplit

from twisted.internet.interfaces import IReactorTime
from twisted.web.http import NO_CONTENT
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request

from ..chat import ApiError, NotFound
from .answers import common_headers, error_answer
from .exchange import Exchange, Observer, begin
from .guard import Guard

# The longer first.
PREFIXES = ([b"v1", b"api"], [b"v1"], [b"api"])


class Front(Resource):
    """Stamps every answer, answers preflights, lets in who may, takes off prefixes; the rest is the API's.

    The observers hear of every exchange when it is over.
    """

    isLeaf = True  # a path is Klein's to take apart

    def __init__(self, api: IResource, guard: Guard, clock: IReactorTime, *observers: Observer) -> None:
        super().__init__()
        self._api = api
        self._guard = guard
        self._clock = clock
        self._observers = observers

    def render(self, request: Request) -> bytes | int:
        """Answer a request."""
        exchange = begin(request, self._clock, self._observers)
        for name, value in common_headers(exchange.id, request.requestHeaders, self._guard).items():
            request.setHeader(name, value)
        try:
            asked = self._asked(request, exchange)
            if request.method == b"OPTIONS":
                request.setResponseCode(NO_CONTENT)
                return b""
            self._guard.check(request, asked)
            refusal: ApiError | None = getattr(request, "refusal", None)
            if refusal is not None:
                raise refusal
        except ApiError as error:
            body = error_answer(request, error)
            # Its length is told; Twisted would complain of the rest.
            return b"" if request.method == b"HEAD" else body
        # Klein takes the name apart, for nothing here, and fails where it is missing or no name.
        request.requestHeaders.setRawHeaders("Host", ["localhost"])
        rendered: bytes | int = self._api.render(request)
        return rendered

    def _asked(self, request: Request, exchange: Exchange) -> str:
        """Take the prefix off the path, have the rest end in a slash, and return it as it was. Raises NotFound."""
        try:
            path = _segments(request)
        except ValueError:
            raise NotFound("The path is none") from None
        taken = next((len(prefix) for prefix in PREFIXES if path[: len(prefix)] == prefix), 0)
        exchange.path = b"/".join([b"", *path]).decode("utf-8", "replace")
        rest = path[taken:]
        request.prepath, request.postpath = path[:taken], rest if rest[-1:] == [b""] else [*rest, b""]
        try:
            return b"/".join(rest).decode("utf-8")
        except UnicodeDecodeError:
            raise NotFound("The path is not UTF-8") from None


def _segments(request: Request) -> list[bytes]:
    """Return the parts of the path, unquoted; a proxy may have sent a whole URL in its place."""
    path = request.path
    if path.startswith((b"http://", b"https://")):
        path = urlsplit(path).path
    return [unquote_to_bytes(segment) for segment in path.split(b"/")[1:]]
