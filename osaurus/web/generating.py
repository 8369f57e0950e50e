"""The routes that generate text, in both dialects.

A route reads the body with its dialect, hands the request to the scheduler and sends what comes back. Model and prompt
are resolved before the first header goes out, so that a stream that cannot begin has its real status.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

from attrs import define, evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.http import Request

from ..chat import Event, GenerationRequest
from ..dialects import completions, ollama, ollama_generate, openai
from ..serving.account import Account
from ..serving.blocking import Blocking
from ..serving.generation import Generation
from ..serving.scheduler import Scheduler
from ..serving.stream import TokenStream
from .answers import begin_stream, body, header, json_answer
from .exchange import exchange_of
from .guard import Guard
from .routes import EVENTS, LINES


@define(eq=False)
class Generating:
    """Answers over a scheduler. `clock` tells the time of day, in seconds since the epoch.

    The log has prompts and answers if it `logs_content`.
    """

    _scheduler: Scheduler
    _blocking: Blocking
    _guard: Guard
    _clock: IReactorTime
    _logs_content: bool = False

    def apply(self, logs_content: bool) -> None:
        """Have the log say what prompts and answers say, or not, from the next request on."""
        self._logs_content = logs_content

    async def chat_completions(self, request: Request) -> bytes | None:
        """Continue a conversation as OpenAI does."""
        return await self._openai(request, openai.chat_call, openai.ChatAnswer)

    async def completions(self, request: Request) -> bytes | None:
        """Continue texts as OpenAI does."""
        return await self._openai(request, completions.completion_call, completions.CompletionAnswer)

    async def chat(self, request: Request) -> bytes | None:
        """Continue a conversation as Ollama does; without messages, load or unload the model."""
        return await self._ollama(request, ollama.chat_call, ollama.as_message)

    async def generate(self, request: Request) -> bytes | None:
        """Continue a text as Ollama does; without a prompt, load or unload the model."""
        return await self._ollama(request, ollama_generate.generate_call, ollama.as_response)

    async def _openai(
        self, request: Request, read: Callable[[bytes], openai.Call], kind: type[openai.Answer]
    ) -> bytes | None:
        call = await self._blocking(read, body(request))
        generation = self._submit(request, call.requests, call.prompts)
        await generation.started()
        asked = call.requests[0]
        answer = kind(
            id=f"{kind.prefix}-{uuid4().hex}",
            created=int(self._clock.seconds()),
            model=asked.model,
            choices=generation.choices,
            prompts=call.prompts,
            include_usage=call.include_usage,
            include_logprobs=asked.top_logprobs is not None,
            only_calls=asked.tools is not None and asked.tools.forced,
        )
        if not call.stream:
            return json_answer(request, answer.completion(await generation.completions()))
        begin_stream(request, EVENTS)
        if opening := answer.opening():
            request.write(opening)
        await self._stream(generation, answer.event, lambda: openai.FILLER, request)
        return None

    async def _ollama(
        self, request: Request, read: Callable[[bytes], ollama.Call], spoken: ollama.Spoken
    ) -> bytes | None:
        call = await self._blocking(read, body(request))
        answer = ollama.Answer(model=call.model, spoken=spoken)
        # Ollama's Go client expects a stream and asks for one in this way alone.
        stream = LINES in header(request, b"Accept") if call.stream is None else call.stream
        if call.request is None:
            if call.keep_alive == 0:
                await self._scheduler.unload(call.model)
                idle = answer.idle("unload", 0, self._now())
            else:
                loaded = await self._scheduler.load(call.model, call.keep_alive)
                idle = answer.idle("load", loaded.duration, self._now())
            if stream:
                request.setHeader("Content-Type", LINES)
                return ollama.line(idle)
            return json_answer(request, idle)
        generation = self._submit(request, (call.request,))
        await generation.started()
        if not stream:
            [completion] = await generation.completions()
            return json_answer(request, answer.completion(completion, self._now()))
        begin_stream(request, LINES)
        await self._stream(
            generation, lambda event: answer.event(event, self._now()), lambda: answer.filler(self._now()), request
        )
        return None

    def _submit(self, request: Request, asked: tuple[GenerationRequest, ...], prompts: int = 1) -> Generation:
        exchange, owner = exchange_of(request), self._guard.owner(request)
        requests = [evolve(one, owner=owner, request_id=exchange.id) for one in asked]
        exchange.account = Account(requests, self._logs_content)
        return self._scheduler.submit(*requests, account=exchange.account, prompts=prompts)

    def _stream(
        self, generation: Generation, encode: Callable[[Event], bytes], filler: Callable[[], bytes], request: Request
    ) -> Deferred[None]:
        drop = request.transport.abortConnection  # type: ignore[union-attr]  # every stream transport has it
        return TokenStream(generation, encode, request, self._clock, drop, filler).run()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.seconds(), UTC)
