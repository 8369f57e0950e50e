"""One answer of Apple's on-device model: a session of the SDK, as the events of a row.

The SDK runs on asyncio, and its `stream_response` blocks the loop that it runs on while it waits for the next words. So
every answer has a thread and a loop of its own, and whoever wants it cancelled or standing still sets a flag that is
looked at between two pieces, besides cancelling the task.

The SDK calls a tool itself and waits for its result; here the result comes with another request. So a call is taken
down and left without an answer, and the session is given up: the next request tells the whole conversation again.
While a stream waits for a tool it cannot be given up, whereas `respond` can, so an answer that may call tools comes
whole. So does one of a schema, which the SDK does not stream.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing, suppress
from threading import Event as Flag
from time import monotonic_ns
from typing import Any

from attrs import define, field
from twisted.logger import Logger

from ..chat import (
    ApiError,
    CallPiece,
    ContextLengthExceeded,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    InternalError,
    InvalidRequest,
    Piece,
    ServiceUnavailable,
    Timings,
    Tool,
    ToolCall,
    Usage,
)
from ..engine.output import StopScanner
from ..engine.runner import Row
from .asking import asked, options
from .schemas import answer_schema, arguments_schema

log = Logger()

# The calls of one turn are made at once; after a call, how long to wait for another, in seconds.
GATHERING = 0.2
MOST_CALLS = 32


@define(eq=False)
class Answering:
    """An answer under way; `say` is called with its events, on the thread that runs it."""

    row: Row
    _request: GenerationRequest
    _sdk: Any
    _model: Any
    _say: Callable[[Event], None]
    _going: Flag = field(factory=Flag, init=False)
    _over: Flag = field(factory=Flag, init=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)
    _calls: asyncio.Queue[ToolCall] = field(factory=asyncio.Queue, init=False)
    _began: int = field(default=0, init=False)
    _first: int = field(default=0, init=False)
    cancelled: bool = field(default=False, init=False)
    """Whether nobody wants it any more; for any thread to read."""

    def __attrs_post_init__(self) -> None:
        self._going.set()

    def cancel(self) -> None:
        """Have it end without another word; on any thread."""
        self.cancelled = True
        self._over.set()
        self._going.set()
        if self._loop is not None and self._task is not None:
            # A loop that is closed has nothing left to cancel.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._task.cancel)

    def park(self) -> None:
        """Have it say no more until `unpark`; what the model writes meanwhile is kept, its context bounds it."""
        self._going.clear()

    def unpark(self) -> None:
        """Have it go on."""
        self._going.set()

    def run(self) -> None:
        """Answer; returns when the last event has been said. On a thread of its own."""
        try:
            asyncio.run(self._guarded())
        except asyncio.CancelledError:
            pass
        finally:
            self._over.set()

    async def _guarded(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self.cancelled:
            return
        try:
            await self._answer()
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            if not self.cancelled:
                self._say(Failed(self._explained(error)))

    async def _answer(self) -> None:
        self._began = monotonic_ns()
        question = asked(self._request)
        tools = [self._tool(tool) for tool in self._request.tools.tools] if self._request.tools is not None else []
        if question.transcript is None:
            session = self._sdk.LanguageModelSession(
                instructions=question.instructions, model=self._model, tools=tools or None
            )
        else:
            transcript = await self._sdk.Transcript.from_dict(question.transcript)
            session = self._sdk.LanguageModelSession.from_transcript(transcript, model=self._model, tools=tools or None)
        read = await self._count(session.transcript) + await self._count(question.prompt)
        chosen = options(self._sdk, self.row.sampling, self.row.max_tokens)
        wanted = self._request.format
        if wanted is not None:
            content = await session.respond(question.prompt, json_schema=answer_schema(wanted), options=chosen)
            await self._finish_text(content.to_json(), read)
        elif tools:
            await self._with_tools(session.respond(question.prompt, options=chosen), read)
        else:
            await self._stream(session.stream_response(question.prompt, options=chosen), read)

    async def _stream(self, snapshots: Any, read: int) -> None:
        """Say what is new in each snapshot, which hold the text from its beginning."""
        scanner, text, stopped = StopScanner(self.row.stop), "", False
        async with aclosing(snapshots):
            async for snapshot in snapshots:
                self._going.wait()
                if self.cancelled:
                    return
                new, stopped = scanner.feed(snapshot[len(text) :])
                text = snapshot
                self._say_text(new)
                if stopped:
                    break
        if not stopped:
            self._say_text(scanner.flush())
        await self._finish(text, read, "stop" if stopped else None)

    async def _finish_text(self, text: str, read: int) -> None:
        scanner = StopScanner(self.row.stop)
        said, stopped = scanner.feed(text)
        self._say_text(said if stopped else said + scanner.flush())
        await self._finish(text, read, "stop" if stopped else None)

    async def _with_tools(self, response: Any, read: int) -> None:
        reply = asyncio.ensure_future(response)
        first = asyncio.ensure_future(self._calls.get())
        try:
            await asyncio.wait({reply, first}, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                await self._finish_text(reply.result(), read)
                return
            calls = [first.result(), *await self._further_calls()]
            for index, call in enumerate(calls):
                self._say_piece(Piece("", calls=(CallPiece(index, call.name, call.arguments),)))
            await self._finish("".join(call.arguments for call in calls), read, "tool_calls")
        finally:
            # A session that is cancelled still waits for its tools to return.
            reply.cancel()
            first.cancel()
            self._over.set()
            await asyncio.gather(reply, first, return_exceptions=True)

    async def _further_calls(self) -> list[ToolCall]:
        calls: list[ToolCall] = []
        assert self._request.tools is not None
        if self._request.tools.parallel:
            with suppress(TimeoutError):
                while len(calls) < MOST_CALLS - 1:
                    calls.append(await asyncio.wait_for(self._calls.get(), GATHERING))
        return calls

    def _tool(self, tool: Tool) -> Any:
        """Return a tool of the SDK that takes its calls down and does nothing."""
        schema, loop = arguments_schema(self._sdk, tool), asyncio.get_running_loop()
        described = json.loads(tool.definition)["function"].get("description") or tool.name

        class Forwarded(self._sdk.Tool):  # type: ignore[misc,name-defined]  # the SDK has no types
            name = tool.name
            description = described

            @property
            def arguments_schema(_) -> Any:  # noqa: N805
                return schema

            async def call(_, arguments: Any) -> str:  # noqa: N805
                # On a thread of the SDK's.
                call = ToolCall(tool.name, arguments.to_json())
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._calls.put_nowait, call)
                await asyncio.to_thread(self._over.wait)
                return ""

        return Forwarded()

    def _say_text(self, text: str) -> None:
        if text:
            self._say_piece(Piece(text))

    def _say_piece(self, piece: Piece) -> None:
        self._first = self._first or monotonic_ns()
        if not self.cancelled:
            self._say(piece)

    async def _finish(self, text: str, read: int, reason: FinishReason | None) -> None:
        """Say that the answer is complete. Why it ended the SDK does not tell; its length does, where it is known."""
        written = await self._count(text) if text else 0
        ended = monotonic_ns()
        first = self._first or ended
        timings = Timings(
            total=ended - self.row.arrived, load=self.row.load, prompt=first - self._began, generation=ended - first
        )
        told = reason or ("length" if written >= self.row.max_tokens else "stop")
        if not self.cancelled:
            self._say(
                Finished(reason=told, usage=Usage(prompt_tokens=read, completion_tokens=written), timings=timings)
            )

    async def _count(self, counted: Any) -> int:
        """Return how many tokens that is, 0 where the SDK cannot tell: before macOS 26.4."""
        try:
            return int(await self._model.token_count(counted))
        except self._sdk.FoundationModelsError:
            return 0

    def _explained(self, error: Exception) -> ApiError:
        """Return what a client is told. In an except clause."""
        sdk, wanted = self._sdk, self._request.format
        match error:
            case ApiError():
                return error
            case sdk.ExceededContextWindowSizeError():
                return ContextLengthExceeded(f"The conversation exceeds the model's context: {error}", param="messages")
            case sdk.GuardrailViolationError() | sdk.RefusalError():
                return InvalidRequest(f"Apple's on-device model refuses to answer: {error}", param="messages")
            case sdk.UnsupportedLanguageOrLocaleError():
                return InvalidRequest(f"Apple's on-device model has not this language: {error}", param="messages")
            case sdk.AssetsUnavailableError() | sdk.RateLimitedError() | sdk.ConcurrentRequestsError():
                return ServiceUnavailable(f"Apple's on-device model cannot answer now: {error}", retry_after=5)
            case sdk.InvalidGenerationSchemaError() | sdk.UnsupportedGuideError() | sdk.DecodingFailureError():
                param = "tools" if wanted is None else wanted.asked_by
                return InvalidRequest(
                    f"{param}: Apple's on-device model could not keep to this schema: {error}", param=param
                )
        log.failure("Apple's on-device model failed", request_id=self._request.request_id)
        return InternalError("Apple's on-device model failed; the server's log has the reason.")
