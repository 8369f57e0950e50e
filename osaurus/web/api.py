"""The resource tree: every path, its methods, and who answers; and what is answered when something goes wrong."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from attrs import define, frozen
from klein import Klein
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import IResource
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as NoSuchMethod

from ..chat import ApiError, InternalError, MethodNotAllowed, NotFound
from ..serving.scheduler import Scheduler
from .answers import error_answer, json_answer
from .generating import Generating
from .library import Library

log = Logger()

# Known by their names, since clients ask for them, and not served yet.
UNSERVED = ("responses", "messages", "messages/count_tokens", "embeddings", "embed", "pull", "push", "create")


@frozen
class Route:
    """A path, in Klein's spelling and with a slash at its end, the method that it takes, and what answers."""

    method: str
    path: str
    answer: Callable[..., Any]


@define(eq=False)
class Api:
    """The API. `clock` tells the time of day, in seconds since the epoch."""

    _generating: Generating
    _library: Library
    _scheduler: Scheduler
    _clock: IReactorTime

    def routes(self) -> list[Route]:
        """Return all that is served, under each prefix and bare."""
        generating, library = self._generating, self._library
        return [
            Route("GET", "/", self.root),
            Route("GET", "/health/", self.health),
            # As OpenAI has them.
            Route("GET", "/models/", library.models),
            Route("GET", "/models/<path:name>/", library.model),
            Route("POST", "/chat/completions/", generating.chat_completions),
            Route("POST", "/completions/", generating.completions),
            # As Ollama has them.
            Route("GET", "/version/", library.version),
            Route("GET", "/tags/", library.tags),
            Route("GET", "/ps/", library.running),
            Route("POST", "/show/", library.show),
            Route("POST", "/chat/", generating.chat),
            Route("POST", "/generate/", generating.generate),
            Route("POST", "/copy/", library.copy),
            Route("DELETE", "/delete/", library.delete),
        ]

    def resource(self) -> IResource:
        """Return the tree to be mounted."""
        app = Klein()
        app.url_map.merge_slashes = False
        for route in self.routes():
            app.route(route.path, methods=[route.method], endpoint=route.path)(route.answer)
        for path in UNSERVED:
            app.route(f"/{path}/", methods=["POST"], endpoint=path)(self.unserved)
        app.handle_errors(Exception)(self.error)  # type: ignore[arg-type]  # Klein types the request by its interface
        resource: IResource = app.resource()
        return resource

    def root(self, request: Request) -> bytes:
        """Tell that the server is there."""
        request.setHeader("Content-Type", "text/plain; charset=utf-8")
        return b"Osaurus is running"

    def health(self, request: Request) -> bytes:
        """Tell whether answers can be generated."""
        timestamp = datetime.fromtimestamp(self._clock.seconds(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        problem = self._scheduler.problem
        if problem is None:
            return json_answer(request, {"status": "ok", "timestamp": timestamp})
        request.setResponseCode(503)
        return json_answer(request, {"status": "error", "reason": problem, "timestamp": timestamp})

    def unserved(self, request: Request) -> bytes:
        """Tell that a path is known but not served yet."""
        raise NotFound(
            f"{_text(request.path)} is not served by Osaurus yet; docs/openai.md and docs/ollama.md say what is"
        )

    def error(self, request: Request, failure: Failure) -> bytes:
        """Answer an error in the shape that the client takes."""
        problem = failure.value
        request_id = request.responseHeaders.getRawHeaders("X-Request-Id", [""])[0]
        what = f"{request_id}: {_text(request.method)} {_text(request.path)}"
        match problem:
            case ApiError():
                error = problem
                if error.status >= 500:
                    log.error("{what} failed: {error}", what=what, error=error)
            case NoSuchMethod():
                allow = tuple(sorted(problem.valid_methods or ()))
                error = MethodNotAllowed(
                    f"{_text(request.method)} is not for {_text(request.path)}; use {', '.join(allow)}", allow=allow
                )
            case HTTPException():
                error = NotFound(f"There is no {_text(request.path)} here")
            case _:
                log.failure("{what} failed", failure, what=what)
                error = InternalError("The server failed to answer; its log has the reason under this request's id.")
        return error_answer(request, error)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
