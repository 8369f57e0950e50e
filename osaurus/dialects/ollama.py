"""The Ollama dialect: chat, the list of models, errors.

The contract is Ollama's API documentation (https://github.com/ollama/ollama/blob/main/docs/api.md) as docs/ollama.md
narrows it. Durations are in nanoseconds.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

from attrs import evolve, frozen

from ..chat import ApiError, ChatRequest, Completion, Event, Failed, Finished, InstalledModel, Piece, TokenScore
from .encoding import encode_json
from .fields import (
    DEFAULT_MAX_TOKENS,
    MOST_MESSAGES,
    Content,
    ModelName,
    RepetitionPenalty,
    SamplingFields,
    TopLogprobs,
    keep_alive,
    message,
    refuse,
    refuse_in_messages,
    refuse_unserved,
    scored,
    top_logprobs,
)
from .strict import Between, Items, parse

# Fields that change the answer and are not served yet, each with the values that ask for nothing.
UNSERVED: dict[str, Iterable[object]] = {"tools": [[]], "format": [""], "think": [False], "template": [""]}
UNSERVED_OPTIONS: dict[str, Iterable[object]] = {
    "mirostat": [0],
    "tfs_z": [1],
    "typical_p": [1],
    "logit_bias": [{}],
}


@frozen(kw_only=True)
class _Message:
    role: str
    content: Content | None = None
    images: Any = None
    tool_calls: Any = None


@frozen(kw_only=True)
class _Options(SamplingFields):
    num_predict: Annotated[int, Between(-2, 2**31)] | None = None
    num_ctx: Annotated[int, Between(1, 2**31)] | None = None
    repeat_penalty: RepetitionPenalty = 1
    repeat_last_n: Annotated[int, Between(-1, 2**31)] = 64
    mirostat: Any = None
    tfs_z: Any = None
    typical_p: Any = None
    logit_bias: Any = None


@frozen(kw_only=True)
class _ChatBody:
    """What is known of the body of a chat; unknown keys are ignored."""

    model: ModelName
    messages: Annotated[list[_Message], Items(0, MOST_MESSAGES)]
    stream: bool | None = None
    options: _Options = _Options()
    keep_alive: Any = None
    tools: Any = None
    format: Any = None
    think: Any = None
    template: Any = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None


@frozen(kw_only=True)
class ChatCall:
    """A chat that was asked for; without messages (`request` None) only the model is to be loaded or unloaded.

    `stream` is None where the body does not say. `keep_alive` is how long the model is to stay, in seconds; 0 asks for
    its memory back, None says nothing.
    """

    model: str
    request: ChatRequest | None
    stream: bool | None
    keep_alive: float | None


def chat_call(body: bytes) -> ChatCall:
    """Read the body of a chat. Raises InvalidRequest naming the field at fault."""
    chat = parse(_ChatBody, body)
    options = chat.options
    refuse_unserved({name: getattr(chat, name) for name in UNSERVED}, UNSERVED)
    refuse_unserved(
        {f"options.{name}": getattr(options, name) for name in UNSERVED_OPTIONS},
        {f"options.{name}": neutral for name, neutral in UNSERVED_OPTIONS.items()},
    )
    refuse_in_messages(chat.messages, "images", "tool_calls")
    if options.num_predict == 0:
        refuse("options.num_predict", "must be at least 1, or -1 for as many tokens as the context holds")
    stay = keep_alive(chat.keep_alive)
    to_the_end = options.num_predict is not None and options.num_predict < 0
    request = ChatRequest(
        model=chat.model,
        messages=tuple(message(index, turn.role, turn.content) for index, turn in enumerate(chat.messages)),
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
        keep_alive=stay,
        top_logprobs=top_logprobs(chat.logprobs, chat.top_logprobs),
    )
    return ChatCall(
        model=chat.model,
        request=request if chat.messages else None,
        stream=chat.stream,
        keep_alive=stay,
    )


def tags(found: Iterable[tuple[InstalledModel, str]]) -> dict[str, Any]:
    """Return the list of models, each given with its digest."""
    return {"models": [_tag(model, digest) for model, digest in found]}


def _tag(model: InstalledModel, digest: str) -> dict[str, Any]:
    return {
        "name": model.id,
        "model": model.id,
        "modified_at": rfc3339(datetime.fromtimestamp(model.modified, UTC)),
        "size": model.size,
        "digest": digest,
        "details": {
            "parent_model": "",
            "format": "safetensors",
            "family": model.family,
            "families": [model.family],
            "parameter_size": _abbreviated(model.parameters),
            "quantization_level": model.quantization,
        },
    }


def _abbreviated(parameters: int) -> str:
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= unit * 0.9995:
            return f"{float(f'{parameters / unit:.3g}'):g}{name}"
    return str(parameters)


def rfc3339(moment: datetime) -> str:
    """Return a moment in UTC as Ollama writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def error(problem: ApiError) -> dict[str, Any]:
    """Return the body of an error answer for Ollama's own SDKs, which take a string; an object crashes them."""
    return {"error": problem.message, "code": problem.code, "type": problem.type}


@frozen(kw_only=True)
class ChatAnswer:
    """Builds the one answer, or the stream, of one chat."""

    model: str

    def completion(self, completion: Completion, now: datetime) -> dict[str, Any]:
        """Return the whole answer."""
        return {**self._head(completion.text, now), **_logprobs(completion.scores), **_final(completion.finished)}

    def idle(self, reason: str, load_duration: int, now: datetime) -> dict[str, Any]:
        """Return the answer to a chat without messages: the model was loaded or unloaded, for this `reason`."""
        done = {"done": True, "done_reason": reason, "total_duration": load_duration, "load_duration": load_duration}
        return {**self._head("", now), **done}

    def event(self, event: Event, now: datetime) -> bytes:
        """Return the line of the stream that tells an event."""
        match event:
            case Piece(text, scores):
                return line({**self._head(text, now), **_logprobs(scores), "done": False})
            case Finished():
                return line({**self._head("", now), **_final(event)})
            case Failed(problem):
                return line(error(problem))
            case _:
                return b""

    def _head(self, text: str, now: datetime) -> dict[str, Any]:
        return {
            "model": self.model,
            "created_at": rfc3339(now),
            "message": {"role": "assistant", "content": text},
        }


def _logprobs(scores: Iterable[TokenScore]) -> dict[str, Any]:
    found = [scored(score) for score in scores]
    return {"logprobs": found} if found else {}


def _final(finished: Finished) -> dict[str, Any]:
    return {
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
