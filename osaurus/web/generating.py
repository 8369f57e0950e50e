"""The routes that generate text, in both dialects.

A route reads the body with its dialect, hands the request to the scheduler and sends what comes back.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from attrs import define, evolve
from twisted.internet.interfaces import IReactorTime
from twisted.web.http import Request

from ..chat import GenerationRequest
from ..dialects import completions, ollama, ollama_generate, openai
from ..serving.account import Account
from ..serving.blocking import Blocking
from ..serving.generation import Generation
from ..serving.scheduler import Scheduler
from .answers import body, header, json_answer
from .exchange import exchange_of
from .guard import Guard
from .routes import EVENTS, LINES
from .streaming import Stream


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
        if call.stream:
            stream = Stream(request, EVENTS, answer.event, lambda: openai.FILLER, self._clock)
            await stream.send(generation, answer.opening())
            return None
        await generation.started()
        return json_answer(request, answer.completion(await generation.completions()))

    async def _ollama(
        self, request: Request, read: Callable[[bytes], ollama.Call], spoken: ollama.Spoken
    ) -> bytes | None:
        call = await self._blocking(read, body(request))
        answer = ollama.Answer(model=call.model, spoken=spoken)
        # Ollama's Go client expects a stream and asks for one in this way alone.
        streams = LINES in header(request, b"Accept") if call.stream is None else call.stream
        stream = Stream(
            request,
            LINES,
            lambda event: answer.event(event, self._now()),
            lambda: answer.filler(self._now()),
            self._clock,
        )
        if call.request is None:
            if not streams:
                return json_answer(request, await self._idle(call, answer))
            idle = await stream.resolved(self._idle(call, answer))
            stream.begin()
            return b"" if idle is None else ollama.line(idle)
        generation = self._submit(request, (call.request,))
        if streams:
            await stream.send(generation, b"")
            return None
        await generation.started()
        [completion] = await generation.completions()
        return json_answer(request, answer.completion(completion, self._now()))

    async def _idle(self, call: ollama.Call, answer: ollama.Answer) -> dict[str, Any]:
        """Load or unload the model; return the answer to that."""
        if call.keep_alive == 0:
            await self._scheduler.unload(call.model)
            return answer.idle("unload", 0, self._now())
        loaded = await self._scheduler.load(call.model, call.keep_alive)
        return answer.idle("load", loaded.duration, self._now())

    def _submit(self, request: Request, asked: tuple[GenerationRequest, ...], prompts: int = 1) -> Generation:
        exchange, owner = exchange_of(request), self._guard.owner(request)
        requests = [evolve(one, owner=owner, request_id=exchange.id) for one in asked]
        exchange.account = Account(requests, self._logs_content)
        return self._scheduler.submit(*requests, account=exchange.account, prompts=prompts)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.seconds(), UTC)
