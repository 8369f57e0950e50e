"""The OpenAI dialect: chat completions, the list of models, errors.

The contract is OpenAI's API reference (https://platform.openai.com/docs/api-reference/chat) as docs/openai.md narrows
it.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any

from attrs import evolve, frozen

from ..chat import (
    ApiError,
    ChatRequest,
    Completion,
    Event,
    Failed,
    Finished,
    FinishReason,
    InstalledModel,
    Piece,
    TokenScore,
    Usage,
)
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

MOST_BIASES = 1024
TOKEN_ID = re.compile("[0-9]{1,9}")

# Fields that change the answer and are not served yet, each with the values that ask for nothing.
UNSERVED: dict[str, Iterable[object]] = {
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "functions": [[]],
    "function_call": ["none", "auto"],
    "response_format": [{"type": "text"}],
    "n": [1],
    "reasoning_effort": [],
    "modalities": [["text"]],
    "audio": [],
    "prediction": [],
    "web_search_options": [],
}


@frozen(kw_only=True)
class _Message:
    role: str
    content: Content | None = None
    tool_calls: Any = None
    function_call: Any = None


@frozen(kw_only=True)
class _StreamOptions:
    include_usage: bool = False


@frozen(kw_only=True)
class _ChatBody(SamplingFields):
    """What is known of the body of a chat completion; unknown keys are ignored."""

    model: ModelName
    messages: Annotated[list[_Message], Items(1, MOST_MESSAGES)]
    max_tokens: Annotated[int, Between(1, 2**31)] | None = None
    max_completion_tokens: Annotated[int, Between(1, 2**31)] | None = None
    top_k: Annotated[int, Between(0, 2**31)] = 0
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    n: Any = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None
    logit_bias: dict[str, Any] | None = None
    repetition_penalty: RepetitionPenalty = 1
    keep_alive: Any = None
    reasoning_effort: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None


@frozen(kw_only=True)
class ChatCall:
    """A chat completion that was asked for, and how the answer is to be sent."""

    request: ChatRequest
    stream: bool
    include_usage: bool


def chat_call(body: bytes) -> ChatCall:
    """Read the body of a chat completion. Raises InvalidRequest naming the field at fault."""
    chat = parse(_ChatBody, body)
    refuse_unserved({name: getattr(chat, name) for name in UNSERVED}, UNSERVED)
    refuse_in_messages(chat.messages, "tool_calls", "function_call")
    max_tokens = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    request = ChatRequest(
        model=chat.model,
        messages=tuple(message(index, turn.role, turn.content) for index, turn in enumerate(chat.messages)),
        max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
        max_tokens_may_shrink=max_tokens is None,
        sampling=evolve(
            chat.sampling(), repetition_penalty=chat.repetition_penalty or 1, bias=_bias(chat.logit_bias or {})
        ),
        stop=chat.stop_strings(),
        keep_alive=keep_alive(chat.keep_alive),
        top_logprobs=top_logprobs(chat.logprobs, chat.top_logprobs),
    )
    return ChatCall(request=request, stream=chat.stream, include_usage=chat.stream_options.include_usage)


def _bias(logit_bias: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    if len(logit_bias) > MOST_BIASES:
        refuse("logit_bias", f"must have at most {MOST_BIASES} entries, not {len(logit_bias)}")
    for token, bias in logit_bias.items():
        if TOKEN_ID.fullmatch(token) is None:
            refuse("logit_bias", f"its keys must be numbers of tokens, not {token[:32]!r}")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            refuse(f"logit_bias.{token}", "must be a number between -100 and 100")
    return tuple((int(token), float(bias)) for token, bias in logit_bias.items())


def models(found: Iterable[InstalledModel]) -> dict[str, Any]:
    """Return the list of models."""
    data = [
        {"id": model.id, "object": "model", "created": int(model.modified), "owned_by": "osaurus"} for model in found
    ]
    return {"object": "list", "data": data}


def error(problem: ApiError) -> dict[str, Any]:
    """Return the body of an error answer."""
    described = {"message": problem.message, "type": problem.type, "param": problem.param, "code": problem.code}
    return {"error": described}


@frozen(kw_only=True)
class ChatAnswer:
    """Builds the one answer, or the stream, of one chat completion. `created` is in seconds since the epoch."""

    id: str
    created: int
    model: str
    include_usage: bool = False
    include_logprobs: bool = False

    def completion(self, completion: Completion) -> dict[str, Any]:
        """Return the whole answer."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": self._logprobs(completion.scores),
            "finish_reason": completion.finished.reason,
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": _usage(completion.finished.usage)}

    def opening(self) -> bytes:
        """Return the chunk that begins the stream."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def event(self, event: Event) -> bytes:
        """Return the part of the stream that tells an event."""
        match event:
            case Piece(text, scores):
                return self._chunk({"content": text}, scores=scores)
            case Finished():
                usage = self._usage_chunk(event.usage) if self.include_usage else b""
                return self._chunk({}, event.reason) + usage + DONE
            case Failed(problem):
                return _data(error(problem)) + DONE
            case _:
                return b""

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, scores: Iterable[TokenScore]) -> dict[str, Any] | None:
        return {"content": [scored(score) for score in scores], "refusal": None} if self.include_logprobs else None

    def _chunk(
        self, delta: dict[str, Any], reason: FinishReason | None = None, scores: Iterable[TokenScore] | None = None
    ) -> bytes:
        logprobs = None if scores is None else self._logprobs(scores)
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self.include_usage else {}
        return _data({**self._head("chat.completion.chunk"), "choices": [choice], **usage})

    def _usage_chunk(self, usage: Usage) -> bytes:
        return _data({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(usage)})


DONE = b"data: [DONE]\n\n"


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + encode_json(value) + b"\n\n"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
