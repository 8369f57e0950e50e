"""The Ollama dialect: chat, errors, and what all its answers have in common.

The contract is Ollama's API documentation (https://github.com/ollama/ollama/blob/main/docs/api.md) as docs/ollama.md
narrows it. Durations are in nanoseconds.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Annotated, Any

from attrs import evolve, frozen

from ..chat import ApiError, Completion, Event, Failed, Finished, GenerationRequest, Piece, Thinking, TokenScore
from .encoding import encode_json
from .fields import (
    DEFAULT_MAX_TOKENS,
    MOST_MESSAGES,
    Content,
    MessageRole,
    ModelName,
    RepetitionPenalty,
    SamplingFields,
    TopLogprobs,
    keep_alive,
    message,
    refuse,
    scored,
    top_logprobs,
)
from .strict import Between, Items, Unserved, parse


@frozen(kw_only=True)
class _Message:
    role: MessageRole
    content: Content | None = None
    images: Annotated[Any, Unserved(([],))] = None
    tool_calls: Annotated[Any, Unserved(([],))] = None


@frozen(kw_only=True)
class Options(SamplingFields):
    """How the answer is to be written."""

    num_predict: Annotated[int, Between(-2, 2**31)] | None = None
    num_ctx: Annotated[int, Between(1, 2**31)] | None = None
    repeat_penalty: RepetitionPenalty = 1
    repeat_last_n: Annotated[int, Between(-1, 2**31)] = 64
    mirostat: Annotated[Any, Unserved((0,))] = None
    tfs_z: Annotated[Any, Unserved((1,))] = None
    typical_p: Annotated[Any, Unserved((1,))] = None
    logit_bias: Annotated[Any, Unserved(({},))] = None


@frozen(kw_only=True)
class Asked:
    """What the bodies of chat and generate have in common; unknown keys are ignored."""

    model: ModelName
    stream: bool | None = None
    options: Options = Options()
    keep_alive: Any = None
    format: Annotated[Any, Unserved(("",))] = None
    think: Any = None
    template: Annotated[Any, Unserved(("",))] = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None


@frozen(kw_only=True)
class ChatBody(Asked):
    """What is known of the body of a chat."""

    messages: Annotated[list[_Message], Items(0, MOST_MESSAGES)]
    tools: Annotated[Any, Unserved(([],))] = None


@frozen(kw_only=True)
class Call:
    """A chat, or a text, that was asked for; without any (`request` None) the model is to be loaded or unloaded.

    `stream` is None where the body does not say. `keep_alive` is how long the model is to stay, in seconds; 0 asks for
    its memory back, None says nothing.
    """

    model: str
    request: GenerationRequest | None
    stream: bool | None
    keep_alive: float | None


def chat_call(body: bytes) -> Call:
    """Read the body of a chat. Raises InvalidRequest naming the field at fault."""
    chat = parse(ChatBody, body)
    messages = tuple(message(index, turn.role, turn.content) for index, turn in enumerate(chat.messages))
    return call(chat, evolve(request(chat), messages=messages) if messages else None)


def call(asked: Asked, wanted: GenerationRequest | None) -> Call:
    """Return what was asked for, as a whole."""
    return Call(model=asked.model, request=wanted, stream=asked.stream, keep_alive=keep_alive(asked.keep_alive))


def request(asked: Asked) -> GenerationRequest:
    """Return the request, its prompt apart. Raises InvalidRequest naming the field at fault."""
    options = asked.options
    if options.num_predict == 0:
        refuse("options.num_predict", "must be at least 1, or -1 for as many tokens as the context holds")
    to_the_end = options.num_predict is not None and options.num_predict < 0
    return GenerationRequest(
        model=asked.model,
        max_tokens=None if to_the_end else options.num_predict or DEFAULT_MAX_TOKENS,
        # Ollama bounds an answer by the context, whatever was asked for.
        max_tokens_may_shrink=True,
        sampling=evolve(
            options.sampling(),
            repetition_penalty=options.repeat_penalty or 1,
            penalty_window=options.repeat_last_n if options.repeat_last_n >= 0 else None,
        ),
        stop=options.stop_strings(),
        context_length=options.num_ctx,
        keep_alive=keep_alive(asked.keep_alive),
        top_logprobs=top_logprobs(asked.logprobs, asked.top_logprobs),
        thinking=_thinking(asked.think),
    )


def rfc3339(moment: datetime) -> str:
    """Return a moment in UTC as Ollama writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def error(problem: ApiError) -> dict[str, Any]:
    """Return the body of an error answer for Ollama's own SDKs, which take a string; an object crashes them."""
    return {"error": problem.message, "code": problem.code, "type": problem.type}


def _thinking(think: object) -> Thinking | None:
    match think:
        case None:
            return None
        case bool():
            return Thinking(think, "think")
        case "low" | "medium" | "high":
            return Thinking(True, "think", think)
    return refuse("think", "must be a boolean, or one of low, medium, high")


def as_message(text: str, reasoning: str) -> dict[str, Any]:
    """Return text, and what was thought, as a chat has it."""
    return {"message": {"role": "assistant", "content": text, **({"thinking": reasoning} if reasoning else {})}}


def as_response(text: str, reasoning: str) -> dict[str, Any]:
    """Return text, and what was thought, as generate has it."""
    return {"response": text, **({"thinking": reasoning} if reasoning else {})}


@frozen(kw_only=True)
class Answer:
    """Builds the one answer, or the stream, of one chat or text; `spoken` is how its text is wrapped."""

    model: str
    spoken: Callable[[str, str], dict[str, Any]]

    def completion(self, completion: Completion, now: datetime) -> dict[str, Any]:
        """Return the whole answer."""
        head = self._head(completion.text, now, completion.reasoning)
        return {**head, **_logprobs(completion.scores), **_final(completion.finished)}

    def idle(self, reason: str, load_duration: int, now: datetime) -> dict[str, Any]:
        """Return the answer where nothing was to be continued: the model was loaded or unloaded, for this `reason`."""
        done = {"done": True, "done_reason": reason, "total_duration": load_duration, "load_duration": load_duration}
        return {**self._head("", now), **done}

    def event(self, event: Event, now: datetime) -> bytes:
        """Return the line of the stream that tells an event."""
        match event:
            case Piece(text, scores, _, reasoning):
                return line({**self._head(text, now, reasoning), **_logprobs(scores), "done": False})
            case Finished():
                return line({**self._head("", now), **_final(event)})
            case Failed(problem):
                return line(error(problem))
            case _:
                return b""

    def filler(self, now: datetime) -> bytes:
        """Return a line that says nothing."""
        return line({**self._head("", now), "done": False})

    def _head(self, text: str, now: datetime, reasoning: str = "") -> dict[str, Any]:
        return {"model": self.model, "created_at": rfc3339(now), **self.spoken(text, reasoning)}


def _logprobs(scores: Iterable[TokenScore]) -> dict[str, Any]:
    found = [scored(score) for score in scores]
    return {"logprobs": found} if found else {}


def _final(finished: Finished) -> dict[str, Any]:
    context = {"context": list(finished.tokens)} if finished.tokens else {}
    return {
        **context,
        "done": True,
        "done_reason": finished.reason,
        "total_duration": finished.timings.total,
        "load_duration": finished.timings.load,
        "prompt_eval_count": finished.usage.prompt_tokens,
        "prompt_eval_duration": finished.timings.prompt,
        "eval_count": finished.usage.completion_tokens,
        "eval_duration": finished.timings.generation,
    }


def line(value: dict[str, Any]) -> bytes:
    """Return one line of a stream."""
    return encode_json(value) + b"\n"
