"""The OpenAI dialect: chat completions, the list of models, errors.

The contract is OpenAI's API reference (https://platform.openai.com/docs/api-reference/chat) as docs/openai.md narrows
it.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from attrs import define, evolve, field, frozen

from ..chat import (
    ApiError,
    Completion,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    InstalledModel,
    Piece,
    Thinking,
    TokenScore,
    Usage,
)
from .encoding import encode_json
from .fields import (
    DEFAULT_MAX_TOKENS,
    MOST_MESSAGES,
    Choices,
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
    several,
    top_logprobs,
)
from .strict import Between, Items, OneOf, Unserved, parse

MOST_BIASES = 1024
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
TOKEN_ID = re.compile("[0-9]{1,9}")


@frozen(kw_only=True)
class _Message:
    role: MessageRole
    content: Content | None = None
    tool_calls: Annotated[Any, Unserved(([],))] = None
    function_call: Annotated[Any, Unserved()] = None


@frozen(kw_only=True)
class StreamOptions:
    """What a stream is to tell beside the answer."""

    include_usage: bool = False


NO_STREAM_OPTIONS = StreamOptions()


@frozen(kw_only=True)
class ChatBody(SamplingFields):
    """What is known of the body of a chat completion; unknown keys are ignored."""

    model: ModelName
    messages: Annotated[list[_Message], Items(1, MOST_MESSAGES)]
    max_tokens: Annotated[int, Between(1, 2**31)] | None = None
    max_completion_tokens: Annotated[int, Between(1, 2**31)] | None = None
    top_k: Annotated[int, Between(0, 2**31)] = 0
    stream: bool = False
    stream_options: StreamOptions = NO_STREAM_OPTIONS
    tools: Annotated[Any, Unserved(([],))] = None
    tool_choice: Annotated[Any, Unserved(("none", "auto"))] = None
    functions: Annotated[Any, Unserved(([],))] = None
    function_call: Annotated[Any, Unserved(("none", "auto"))] = None
    response_format: Annotated[Any, Unserved(({"type": "text"},))] = None
    n: Choices = 1
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None
    logit_bias: dict[str, Any] | None = None
    repetition_penalty: RepetitionPenalty = 1
    keep_alive: Any = None
    reasoning_effort: Annotated[str, OneOf(EFFORTS)] | None = None
    modalities: Annotated[Any, Unserved((["text"],))] = None
    audio: Annotated[Any, Unserved()] = None
    prediction: Annotated[Any, Unserved()] = None
    web_search_options: Annotated[Any, Unserved()] = None


@frozen(kw_only=True)
class ChatCall:
    """A chat completion that was asked for, one request for each choice, and how the answer is to be sent."""

    requests: tuple[GenerationRequest, ...]
    stream: bool
    include_usage: bool


def chat_call(body: bytes) -> ChatCall:
    """Read the body of a chat completion. Raises InvalidRequest naming the field at fault."""
    chat = parse(ChatBody, body)
    max_tokens = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    request = GenerationRequest(
        model=chat.model,
        messages=tuple(message(index, turn.role, turn.content) for index, turn in enumerate(chat.messages)),
        max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
        max_tokens_may_shrink=max_tokens is None,
        sampling=evolve(
            chat.sampling(), repetition_penalty=chat.repetition_penalty or 1, bias=bias(chat.logit_bias or {})
        ),
        stop=chat.stop_strings(),
        keep_alive=keep_alive(chat.keep_alive),
        top_logprobs=top_logprobs(chat.logprobs, chat.top_logprobs),
        thinking=_thinking(chat.reasoning_effort),
    )
    return ChatCall(
        requests=several(request, chat.n), stream=chat.stream, include_usage=chat.stream_options.include_usage
    )


def _thinking(effort: str | None) -> Thinking | None:
    if effort is None:
        return None
    wanted = effort != "none"
    return Thinking(wanted, "reasoning_effort", effort if wanted else None)


def bias(logit_bias: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    """Return what is to be added to the logits of which tokens."""
    if len(logit_bias) > MOST_BIASES:
        refuse("logit_bias", f"must have at most {MOST_BIASES} entries, not {len(logit_bias)}")
    for token, added in logit_bias.items():
        if TOKEN_ID.fullmatch(token) is None:
            refuse("logit_bias", f"its keys must be numbers of tokens, not {token[:32]!r}")
        if isinstance(added, bool) or not isinstance(added, (int, float)) or not -100 <= added <= 100:
            refuse(f"logit_bias.{token}", "must be a number between -100 and 100")
    return tuple((int(token), float(added)) for token, added in logit_bias.items())


def models(found: Iterable[InstalledModel]) -> dict[str, Any]:
    """Return the list of models."""
    return {"object": "list", "data": [model(installed) for installed in found]}


def model(installed: InstalledModel) -> dict[str, Any]:
    """Return the description of one model."""
    return {
        "id": installed.id,
        "object": "model",
        "created": int(installed.modified),
        "owned_by": "osaurus",
        "context_length": installed.context_length,
    }


def error(problem: ApiError) -> dict[str, Any]:
    """Return the body of an error answer."""
    described = {"message": problem.message, "type": problem.type, "param": problem.param, "code": problem.code}
    return {"error": described}


@define(kw_only=True)
class ChatAnswer:
    """Builds the one answer, or the stream, of one chat completion. `created` is in seconds since the epoch."""

    id: str
    created: int
    model: str
    choices: int = 1
    include_usage: bool = False
    include_logprobs: bool = False
    _finished: dict[int, Finished] = field(factory=dict, init=False)

    def completion(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return the whole answer."""
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": completion.text,
                    **({"reasoning_content": completion.reasoning} if completion.reasoning else {}),
                    "refusal": None,
                },
                "logprobs": self._logprobs(completion.scores),
                "finish_reason": completion.finished.reason,
            }
            for index, completion in enumerate(completions)
        ]
        usage = total_usage([completion.finished.usage for completion in completions])
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    def opening(self) -> bytes:
        """Return the chunks that begin the stream."""
        role = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._chunk(index, role) for index in range(self.choices))

    def event(self, event: Event) -> bytes:
        """Return the part of the stream that tells an event."""
        match event:
            case Piece(text, scores, choice, reasoning):
                thought = {"reasoning_content": reasoning} if reasoning else {}
                # A piece may be nothing but thought.
                delta = {**thought, **({"content": text} if text or not reasoning else {})}
                return self._chunk(choice, delta, scores=scores)
            case Finished():
                self._finished[event.choice] = event
                return self._chunk(event.choice, {}, event.reason) + self._end()
            case Failed(problem):
                return data(error(problem)) + DONE
            case _:
                return b""

    def _end(self) -> bytes:
        """Return what ends the stream, once every choice has ended."""
        if len(self._finished) < self.choices:
            return b""
        usage = total_usage([self._finished[index].usage for index in range(self.choices)])
        chunk = {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}
        return (data(chunk) if self.include_usage else b"") + DONE

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, scores: Iterable[TokenScore]) -> dict[str, Any] | None:
        return {"content": [scored(score) for score in scores], "refusal": None} if self.include_logprobs else None

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        reason: FinishReason | None = None,
        scores: Iterable[TokenScore] | None = None,
    ) -> bytes:
        logprobs = None if scores is None else self._logprobs(scores)
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self.include_usage else {}
        return data({**self._head("chat.completion.chunk"), "choices": [choice], **usage})


# Comments are for nobody.
FILLER = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def data(value: dict[str, Any]) -> bytes:
    """Return one event of a stream."""
    return b"data: " + encode_json(value) + b"\n\n"


def total_usage(usages: Sequence[Usage], prompts: int = 1) -> dict[str, Any]:
    """Return the usage of all choices; those of one prompt, which follow each other, have read it once."""
    read = usages[:: len(usages) // prompts]
    thought = sum(usage.reasoning_tokens for usage in usages)
    prompt, completion = (sum(usage.prompt_tokens for usage in read), sum(usage.completion_tokens for usage in usages))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in read)},
        **({"completion_tokens_details": {"reasoning_tokens": thought}} if thought else {}),
    }
