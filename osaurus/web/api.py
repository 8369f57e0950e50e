"""The routes of both dialects, in one Klein tree.

A route reads the body with its dialect, hands the request to the scheduler and sends what comes back. Errors are
raised as ApiError and answered in one place; model and prompt are resolved before the first header goes out, so that a
stream that cannot begin has its real status.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

from attrs import define
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import IResource
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as NoSuchMethod

from ..chat import ApiError, Event, InternalError, MethodNotAllowed, NotFound
from ..dialects import ollama, openai
from ..serving.generation import Generation
from ..serving.scheduler import Blocking, Scheduler
from ..serving.stream import TokenStream
from .answers import error_answer, header, json_answer

log = Logger()


@define(eq=False)
class Api:
    """The API over a scheduler. `clock` tells the time of day, in seconds since the epoch."""

    _scheduler: Scheduler
    _blocking: Blocking
    _clock: IReactorTime

    _app = Klein()
    _app.url_map.merge_slashes = False

    def resource(self) -> IResource:
        """Return the tree to be mounted."""
        resource: IResource = self._app.resource()
        return resource

    @_app.route("/", methods=["GET"])
    def root(self, request: Request) -> bytes:
        """Tell that the server is there."""
        request.setHeader("Content-Type", "text/plain; charset=utf-8")
        return b"Osaurus is running"

    @_app.route("/health/", methods=["GET"])
    def health(self, request: Request) -> bytes:
        """Tell whether answers can be generated."""
        timestamp = self._now().strftime("%Y-%m-%dT%H:%M:%SZ")
        problem = self._scheduler.problem
        if problem is None:
            return json_answer(request, {"status": "ok", "timestamp": timestamp})
        request.setResponseCode(503)
        return json_answer(request, {"status": "error", "reason": problem, "timestamp": timestamp})

    @_app.route("/models/", methods=["GET"])
    async def models(self, request: Request) -> bytes:
        """List the models as OpenAI does."""
        return json_answer(request, openai.models(await self._scheduler.models()))

    @_app.route("/tags/", methods=["GET"])
    async def tags(self, request: Request) -> bytes:
        """List the models as Ollama does."""
        found = []
        for model in await self._scheduler.models():
            try:
                found.append((model, await self._scheduler.digest(model)))
            except OSError as error:
                log.warn("{model} is left out of a list, it cannot be read: {error}", model=model.id, error=error)
        return json_answer(request, ollama.tags(found))

    @_app.route("/chat/completions/", methods=["POST"])
    async def chat_completions(self, request: Request) -> bytes | None:
        """Continue a conversation as OpenAI does."""
        call = await self._blocking(openai.chat_call, _body(request))
        generation = self._scheduler.submit(call.request)
        await generation.started()
        answer = openai.ChatAnswer(
            id=f"chatcmpl-{uuid4().hex}",
            created=int(self._clock.seconds()),
            model=call.request.model,
            include_usage=call.include_usage,
            include_logprobs=call.request.top_logprobs is not None,
        )
        if not call.stream:
            return json_answer(request, answer.completion(await generation.completion()))
        request.setHeader("Cache-Control", "no-cache")
        request.setHeader("X-Accel-Buffering", "no")
        request.setHeader("Content-Type", "text/event-stream")
        request.write(answer.opening())
        await self._stream(generation, answer.event, request)
        return None

    @_app.route("/chat/", methods=["POST"])
    async def chat(self, request: Request) -> bytes | None:
        """Continue a conversation as Ollama does; without messages, load or unload the model."""
        call = await self._blocking(ollama.chat_call, _body(request))
        answer = ollama.ChatAnswer(model=call.model)
        # Ollama's Go client expects a stream and asks for one in this way alone.
        stream = "application/x-ndjson" in header(request, b"Accept") if call.stream is None else call.stream
        if call.request is None:
            if call.keep_alive == 0:
                await self._scheduler.unload(call.model)
                idle = answer.idle("unload", 0, self._now())
            else:
                loaded = await self._scheduler.load(call.model, call.keep_alive)
                idle = answer.idle("load", loaded.duration, self._now())
            if stream:
                request.setHeader("Content-Type", "application/x-ndjson")
                return ollama.line(idle)
            return json_answer(request, idle)
        generation = self._scheduler.submit(call.request)
        await generation.started()
        if not stream:
            return json_answer(request, answer.completion(await generation.completion(), self._now()))
        request.setHeader("Content-Type", "application/x-ndjson")
        await self._stream(generation, lambda event: answer.event(event, self._now()), request)
        return None

    @_app.handle_errors(Exception)  # type: ignore[arg-type]  # Klein types the request by its interface
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

    def _stream(self, generation: Generation, encode: Callable[[Event], bytes], request: Request) -> Deferred[None]:
        drop = request.transport.abortConnection  # type: ignore[union-attr]  # every stream transport has it
        return TokenStream(generation, encode, request, self._clock, drop).run()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.seconds(), UTC)


def _body(request: Request) -> bytes:
    assert request.content is not None, "a request that is routed is complete"
    return bytes(request.content.read())


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
