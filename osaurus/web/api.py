"""The resource tree: every path, its methods, and who answers; and what is answered when something goes wrong."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Any

from attrs import define
from klein import Klein
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import IResource
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as NoSuchMethod

from ..chat import ApiError, InternalError, MethodNotAllowed, NotFound
from ..dialects import completions, ollama, ollama_generate, ollama_models, openai
from ..serving.scheduler import Scheduler
from .answers import error_answer, json_answer
from .exchange import exchange_of
from .generating import Generating
from .library import Library
from .metrics import Metrics
from .openapi import document
from .page import Page
from .pulling import Pulling
from .routes import EVENTS, JSON, LINES, PLAIN, Route

log = Logger()

# Known by their names, since clients ask for them, and not served yet.
UNSERVED = ("responses", "messages", "messages/count_tokens", "embeddings", "embed", "push", "create")


@define(eq=False)
class Api:
    """The API. `clock` tells the time of day, in seconds since the epoch."""

    _generating: Generating
    _library: Library
    _pulling: Pulling
    _scheduler: Scheduler
    _metrics: Metrics
    _page: Page
    _clock: IReactorTime

    def routes(self) -> list[Route]:
        """Return all that is served, under each prefix and bare."""
        generating, library = self._generating, self._library
        return [
            Route("GET", "/", self.root, answers=(PLAIN,)),
            Route("GET", "/health/", self.health, also={"503": "No answer can be generated; the reason is told"}),
            Route("GET", "/metrics/", self._metrics.metrics, answers=(PLAIN, "application/openmetrics-text")),
            Route("GET", "/openapi.json/", self.description),
            Route("GET", "/ui/", self._page.page, answers=("text/html",)),
            Route("GET", "/models/", library.models, "/v1"),
            Route("GET", "/models/<path:name>/", library.model, "/v1"),
            Route(
                "POST",
                "/chat/completions/",
                generating.chat_completions,
                "/v1",
                openai.ChatBody,
                answers=(JSON, EVENTS),
            ),
            Route(
                "POST",
                "/completions/",
                generating.completions,
                "/v1",
                completions.CompletionBody,
                answers=(JSON, EVENTS),
            ),
            Route("GET", "/version/", library.version, "/api"),
            Route("GET", "/tags/", library.tags, "/api"),
            Route("GET", "/ps/", library.running, "/api"),
            Route("POST", "/show/", library.show, "/api", ollama_models.NameBody),
            Route("POST", "/chat/", generating.chat, "/api", ollama.ChatBody, answers=(JSON, LINES)),
            Route(
                "POST", "/generate/", generating.generate, "/api", ollama_generate.GenerateBody, answers=(JSON, LINES)
            ),
            Route("POST", "/pull/", self._pulling.pull, "/api", ollama_models.PullBody, answers=(JSON, LINES)),
            Route("POST", "/copy/", library.copy, "/api", ollama_models.CopyBody),
            Route("DELETE", "/delete/", library.delete, "/api", ollama_models.NameBody),
        ]

    def resource(self) -> IResource:
        """Return the tree to be mounted."""
        app = Klein()
        app.url_map.merge_slashes = False
        for route in self.routes():
            app.route(route.path, methods=[route.method], endpoint=route.path)(_noted(route.template, route.answer))
        app.route("/ui/<name>/", methods=["GET"], endpoint="/ui/<name>/")(_noted("/ui/{name}", self._page.file))
        for path in UNSERVED:
            app.route(f"/{path}/", methods=["POST"], endpoint=path)(_noted(f"/{path}", self.unserved))
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

    def description(self, request: Request) -> bytes:
        """Describe all this for programs, in OpenAPI."""
        return json_answer(request, document(self.routes(), _text(request.path)))

    def unserved(self, request: Request) -> bytes:
        """Tell that a path is known but not served yet."""
        raise NotFound(
            f"{_text(request.path)} is not served by Osaurus yet; docs/openai.md and docs/ollama.md say what is"
        )

    def error(self, request: Request, failure: Failure) -> bytes:
        """Answer an error in the shape that the client takes."""
        problem = failure.value
        exchange = exchange_of(request)
        what = f"{exchange.method} {exchange.path}"
        match problem:
            case ApiError():
                error = problem
                exchange.failed(error)
            case NoSuchMethod():
                allow = tuple(sorted(problem.valid_methods or ()))
                error = MethodNotAllowed(
                    f"{_text(request.method)} is not for {_text(request.path)}; use {', '.join(allow)}", allow=allow
                )
            case HTTPException():
                error = NotFound(f"There is no {_text(request.path)} here")
            case _:
                log.failure("{what} failed", failure, what=what, request_id=exchange.id)
                error = InternalError("The server failed to answer; its log has the reason under this request's id.")
        return error_answer(request, error)


def _noted(template: str, answer: Callable[..., Any]) -> Callable[..., Any]:
    """Have a route noted as the one that was taken."""

    @wraps(answer)
    def noted(request: Request, **parameters: str) -> Any:
        exchange_of(request).route = template
        return answer(request, **parameters)

    return noted


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
