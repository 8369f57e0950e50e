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
from .answers import error_answer, stamp
from .exchange import Observer, begin
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
        stamp(request, exchange.id)
        self._guard.allow_origin(request)
        try:
            path = _segments(request)
        except ValueError:
            return error_answer(request, NotFound("The path is none"))
        taken = next((len(prefix) for prefix in PREFIXES if path[: len(prefix)] == prefix), 0)
        exchange.path = b"/".join([b"", *path]).decode("utf-8", "replace")
        request.prepath, request.postpath = path[:taken], path[taken:]
        try:
            asked = b"/".join(request.postpath).decode("utf-8")
        except UnicodeDecodeError:
            return error_answer(request, NotFound("The path is not UTF-8"))
        if request.method == b"OPTIONS":
            request.setResponseCode(NO_CONTENT)
            return b""
        try:
            self._guard.check(request, asked)
        except ApiError as error:
            return error_answer(request, error)
        refusal: ApiError | None = getattr(request, "refusal", None)
        if refusal is not None:
            return error_answer(request, refusal)
        # Klein takes the name apart, for nothing here, and fails where it is missing or no name.
        request.requestHeaders.setRawHeaders("Host", ["localhost"])
        if request.postpath[-1:] != [b""]:
            request.postpath.append(b"")
        rendered: bytes | int = self._api.render(request)
        return rendered


def _segments(request: Request) -> list[bytes]:
    """Return the parts of the path, unquoted; a proxy may have sent a whole URL in its place."""
    path = request.path
    if path.startswith((b"http://", b"https://")):
        path = urlsplit(path).path
    return [unquote_to_bytes(segment) for segment in path.split(b"/")[1:]]
