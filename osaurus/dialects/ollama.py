"""The Ollama dialect: chat, errors, and what all its answers have in common.

The contract is Ollama's API documentation (https://github.com/ollama/ollama/blob/main/docs/api.md) as docs/ollama.md
narrows it. Durations are in nanoseconds.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any, Protocol, TypeVar

from attrs import define, evolve, field, frozen

from ..chat import (
    ApiError,
    CallPiece,
    Completion,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Message,
    Piece,
    Thinking,
    TokenScore,
    ToolCall,
    gathered,
)
from .encoding import encode_json
from .fields import (
    DEFAULT_MAX_TOKENS,
    MOST_MESSAGES,
    Content,
    MessageRole,
    ModelName,
    RepetitionPenalty,
    SamplingExtensions,
    SamplingFields,
    TopLogprobs,
    keep_alive,
    message,
    refuse,
    scored,
    top_logprobs,
)
from .strict import Between, Items, Unserved, parse
from .tools import MOST_TOOLS, ToolName, Tools, as_text, ollama_format, tool_use

T = TypeVar("T")


@frozen(kw_only=True)
class _Called:
    name: ToolName
    arguments: dict[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class _ToolCall:
    id: str = ""
    function: _Called


@frozen(kw_only=True)
class _Message:
    role: MessageRole
    content: Content | None = None
    images: Annotated[Any, Unserved(([],))] = None
    tool_calls: Annotated[list[_ToolCall], Items(0, MOST_TOOLS)] = field(factory=list)
    tool_name: str = ""
    tool_call_id: str = ""
    thinking: str = ""


@frozen(kw_only=True)
class Options(SamplingFields):
    """How the answer is to be written."""

    num_predict: Annotated[int, Between(-2, 2**31)] | None = None
    num_ctx: Annotated[int, Between(1, 2**31)] | None = None
    repeat_penalty: RepetitionPenalty | None = None
    repeat_last_n: Annotated[int, Between(-1, 2**31)] = 64
    logit_bias: Annotated[Any, Unserved(({},))] = None


@frozen(kw_only=True)
class Asked(SamplingExtensions):
    """What the bodies of chat and generate have in common; unknown keys are ignored.

    What the extensions say counts where the options say nothing of the kind.
    """

    model: ModelName
    stream: bool | None = None
    options: Options = Options()
    keep_alive: Any = None
    format: Any = None
    think: Any = None
    template: Annotated[Any, Unserved(("",))] = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None


@frozen(kw_only=True)
class ChatBody(Asked):
    """What is known of the body of a chat."""

    messages: Annotated[list[_Message], Items(0, MOST_MESSAGES)]
    tools: Tools | None = None


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
    messages = tuple(_message(index, turn) for index, turn in enumerate(chat.messages))
    return call(chat, evolve(request(chat), messages=messages, tools=tool_use(chat.tools)) if messages else None)


def _message(index: int, turn: _Message) -> Message:
    calls = tuple(
        ToolCall(call.function.name, as_text(call.function.arguments, f"messages[{index}].tool_calls"), call.id)
        for call in turn.tool_calls
    )
    content = turn.content if turn.content is not None or not calls else ""
    said = message(index, turn.role, content, turn.thinking)
    return evolve(said, calls=calls, call_id=turn.tool_call_id, tool_name=turn.tool_name)


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
            evolve(
                options,
                top_k=_first(options.top_k, asked.top_k),
                min_p=_first(options.min_p, asked.min_p),
                repetition_penalty=_first(options.repeat_penalty, options.repetition_penalty, asked.repetition_penalty),
            ).sampling(),
            penalty_window=options.repeat_last_n if options.repeat_last_n >= 0 else None,
        ),
        stop=options.stop_strings(),
        context_length=options.num_ctx,
        keep_alive=keep_alive(asked.keep_alive),
        top_logprobs=top_logprobs(asked.logprobs, asked.top_logprobs),
        thinking=_thinking(asked.think),
        format=ollama_format(asked.format),
    )


def _first(*given: T | None) -> T | None:
    """Return the first of several values that there is."""
    return next((value for value in given if value is not None), None)


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


def as_message(text: str, reasoning: str, calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
    """Return text, what was thought, and calls, as a chat has them."""
    return {
        "message": {
            "role": "assistant",
            "content": text,
            **({"thinking": reasoning} if reasoning else {}),
            **({"tool_calls": [_call(call) for call in calls]} if calls else {}),
        }
    }


def as_response(text: str, reasoning: str, _: Sequence[ToolCall] = ()) -> dict[str, Any]:
    """Return text, and what was thought, as generate has it; there are no calls."""
    return {"response": text, **({"thinking": reasoning} if reasoning else {})}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"function": {"name": call.name, "arguments": json.loads(call.arguments)}}


class Spoken(Protocol):
    """How what is said is wrapped."""

    def __call__(self, text: str, reasoning: str, calls: Sequence[ToolCall] = (), /) -> dict[str, Any]:
        """Return text, what was thought, and calls that are complete."""


@define(kw_only=True)
class Answer:
    """Builds the one answer, or the stream, of one chat or text; `spoken` is how its text is wrapped.

    Calls go out whole, for their arguments are objects. One that was cut off goes out as text.
    """

    model: str
    spoken: Spoken
    _begun: list[CallPiece] = field(factory=list, init=False)

    def completion(self, completion: Completion, now: datetime) -> dict[str, Any]:
        """Return the whole answer."""
        calls = [call for call in completion.calls if _is_complete(call)]
        cut = "".join(_as_text(call) for call in completion.calls if not _is_complete(call))
        head = self._head(completion.text + cut, now, completion.reasoning, calls)
        return {**head, **_logprobs(completion.scores), **_final(completion.finished)}

    def idle(self, reason: str, load_duration: int, now: datetime) -> dict[str, Any]:
        """Return the answer where nothing was to be continued: the model was loaded or unloaded, for this `reason`."""
        done = {"done": True, "done_reason": reason, "total_duration": load_duration, "load_duration": load_duration}
        return {**self._head("", now), **done}

    def event(self, event: Event, now: datetime) -> bytes:
        """Return the lines of the stream that tell an event; none while a call is not complete."""
        match event:
            case Piece(text, scores, _, reasoning, pieces):
                calls = self._completed(pieces)
                if pieces and not (text or reasoning or calls):
                    return b""
                return line({**self._head(text, now, reasoning, calls), **_logprobs(scores), "done": False})
            case Finished():
                cut = "".join(map(_as_text, gathered(self._begun)))
                rest = line({**self._head(cut, now), "done": False}) if cut else b""
                return rest + line({**self._head("", now), **_final(event)})
            case Failed(problem):
                return line(error(problem))
            case _:
                return b""

    def _completed(self, pieces: Iterable[CallPiece]) -> list[ToolCall]:
        """Take more of calls; return those that are complete with it."""
        complete: list[ToolCall] = []
        for piece in pieces:
            self._begun.append(piece)
            if piece.last:
                complete += gathered(self._begun)
                self._begun.clear()
        return complete

    def filler(self, now: datetime) -> bytes:
        """Return a line that says nothing."""
        return line({**self._head("", now), "done": False})

    def _head(self, text: str, now: datetime, reasoning: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        return {"model": self.model, "created_at": rfc3339(now), **self.spoken(text, reasoning, calls)}


def _is_complete(call: ToolCall) -> bool:
    try:
        json.loads(call.arguments)
    except ValueError:
        return False
    return True


def _as_text(call: ToolCall) -> str:
    return f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}'


def _logprobs(scores: Iterable[TokenScore]) -> dict[str, Any]:
    found = [scored(score) for score in scores]
    return {"logprobs": found} if found else {}


def _final(finished: Finished) -> dict[str, Any]:
    context = {"context": list(finished.tokens)} if finished.tokens else {}
    return {
        **context,
        "done": True,
        # Ollama has no other reason for calls.
        "done_reason": "stop" if finished.reason == "tool_calls" else finished.reason,
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
