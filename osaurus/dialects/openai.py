"""The OpenAI dialect: chat completions, the list of models, errors.

The contract is OpenAI's API reference (https://platform.openai.com/docs/api-reference/chat) as docs/openai.md narrows
it.
"""

import re
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Annotated, Any, ClassVar
from uuid import uuid4

from attrs import define, evolve, field, frozen

from ..chat import (
    ApiError,
    CallPiece,
    Completion,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    InstalledModel,
    Message,
    Piece,
    Thinking,
    TokenScore,
    ToolCall,
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
    SamplingFields,
    TopLogprobs,
    keep_alive,
    message,
    refuse,
    scored,
    several,
    top_logprobs,
)
from .strict import Between, Items, OneOf, Unserved, cut, parse
from .tools import MOST_TOOLS, ResponseFormat, ToolName, Tools, call_arguments, response_format, tool_use

MOST_BIASES = 1024
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
TOKEN_ID = re.compile("[0-9]{1,9}")


@frozen(kw_only=True)
class _Called:
    name: ToolName
    arguments: str = "{}"


@frozen(kw_only=True)
class _ToolCall:
    id: str = ""
    function: _Called


@frozen(kw_only=True)
class _Message:
    role: MessageRole
    content: Content | None = None
    tool_calls: Annotated[list[_ToolCall], Items(0, MOST_TOOLS)] = field(factory=list)
    tool_call_id: str = ""
    reasoning_content: str = ""
    reasoning: str = ""
    function_call: Annotated[Any, Unserved()] = None


@frozen(kw_only=True)
class StreamOptions:
    """What a stream is to tell beside the answer."""

    include_usage: bool = False


NO_STREAM_OPTIONS = StreamOptions()


@frozen(kw_only=True)
class CommonFields(SamplingFields):
    """What bodies for other servers have beside OpenAI's fields, and would change the answer.

    llama.cpp's, vLLM's, Ollama's and text-generation-webui's. What their front ends send where nothing is set is taken:
    SillyTavern sends every sampler that is off, and empty grammars and schemas.
    """

    mirostat_mode: Annotated[Any, Unserved((0,))] = None
    tfs: Annotated[Any, Unserved((1,))] = None
    typ_p: Annotated[Any, Unserved((1,))] = None
    grammar: Annotated[Any, Unserved(("",))] = None
    json_schema: Annotated[Any, Unserved(({}, ""))] = None
    format: Annotated[Any, Unserved(("",))] = None
    guided_json: Annotated[Any, Unserved(({}, ""))] = None
    guided_regex: Annotated[Any, Unserved(("",))] = None
    guided_choice: Annotated[Any, Unserved(([],))] = None
    guided_grammar: Annotated[Any, Unserved(("",))] = None
    structured_outputs: Annotated[Any, Unserved(({},))] = None


@frozen(kw_only=True)
class ChatBody(CommonFields):
    """What is known of the body of a chat completion; unknown keys are ignored."""

    model: ModelName
    messages: Annotated[list[_Message], Items(1, MOST_MESSAGES)]
    max_tokens: Annotated[int, Between(1, 2**31)] | None = None
    max_completion_tokens: Annotated[int, Between(1, 2**31)] | None = None
    stream: bool = False
    stream_options: StreamOptions = NO_STREAM_OPTIONS
    tools: Tools | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    functions: Annotated[Any, Unserved(([],))] = None
    function_call: Annotated[Any, Unserved(("none", "auto"))] = None
    response_format: ResponseFormat | None = None
    n: Choices = 1
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None
    logit_bias: dict[str, Any] | None = None
    keep_alive: Any = None
    reasoning_effort: Annotated[str, OneOf(EFFORTS)] | None = None
    chat_template_kwargs: dict[str, Any] = field(factory=dict)
    modalities: Annotated[Any, Unserved((["text"],))] = None
    audio: Annotated[Any, Unserved()] = None
    prediction: Annotated[Any, Unserved()] = None
    web_search_options: Annotated[Any, Unserved()] = None


@frozen(kw_only=True)
class Call:
    """What was asked for, one request for each choice of each prompt, and how the answer is to be sent."""

    requests: tuple[GenerationRequest, ...]
    stream: bool
    include_usage: bool
    prompts: int = 1


def chat_call(body: bytes) -> Call:
    """Read the body of a chat completion. Raises InvalidRequest naming the field at fault."""
    chat = parse(ChatBody, body)
    max_tokens, max_tokens_field = chat.max_tokens, "max_tokens"
    if chat.max_completion_tokens is not None:
        max_tokens, max_tokens_field = chat.max_completion_tokens, "max_completion_tokens"
    request = GenerationRequest(
        model=chat.model,
        messages=tuple(_message(index, turn) for index, turn in enumerate(chat.messages)),
        max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
        max_tokens_may_shrink=max_tokens is None,
        max_tokens_field=max_tokens_field,
        sampling=evolve(chat.sampling(), bias=bias(chat.logit_bias or {})),
        stop=chat.stop_strings(),
        keep_alive=keep_alive(chat.keep_alive),
        top_logprobs=top_logprobs(chat.logprobs, chat.top_logprobs),
        thinking=_thinking(chat.reasoning_effort, chat.chat_template_kwargs),
        tools=tool_use(chat.tools, chat.tool_choice, chat.parallel_tool_calls),
        format=response_format(chat.response_format),
    )
    return Call(requests=several(request, chat.n), stream=chat.stream, include_usage=chat.stream_options.include_usage)


def _message(index: int, turn: _Message) -> Message:
    if turn.role == "tool" and not turn.tool_call_id:
        refuse(f"messages[{index}].tool_call_id", "is required")
    at = f"messages[{index}].tool_calls"
    calls = tuple(
        ToolCall(
            call.function.name, call_arguments(call.function.arguments, f"{at}[{number}].function.arguments"), call.id
        )
        for number, call in enumerate(turn.tool_calls)
    )
    # The second name is that of OpenRouter, and of vLLM's newer versions.
    thought = turn.reasoning_content or turn.reasoning
    return evolve(message(index, turn.role, turn.content, thought), calls=calls, call_id=turn.tool_call_id)


def _thinking(effort: str | None, variables: dict[str, Any]) -> Thinking | None:
    """Return whether to think, as OpenAI's field says it, and as vLLM's `chat_template_kwargs` do.

    Raises InvalidRequest for variables that say something else, and where two of them contradict each other.
    """
    asked = [] if effort is None else [_effort("reasoning_effort", effort)]
    for name, value in variables.items():
        at = f"chat_template_kwargs.{name}"
        match name, value:
            case _, None:
                pass
            case "enable_thinking" | "thinking", bool():
                asked.append(Thinking(value, at))
            case "enable_thinking" | "thinking", _:
                refuse(at, "must be a boolean")
            case "reasoning_effort", str() if value in EFFORTS:
                asked.append(_effort(at, value))
            case "reasoning_effort", _:
                refuse(at, f"must be one of {', '.join(EFFORTS)}")
            case _:
                refuse("chat_template_kwargs", f"{cut(repr(name))} is not supported by this server yet; leave it out")
    return reduce(_agreed, asked) if asked else None


def _effort(asked_by: str, effort: str) -> Thinking:
    wanted = effort != "none"
    return Thinking(wanted, asked_by, effort if wanted else None)


def _agreed(one: Thinking, other: Thinking) -> Thinking:
    if one.wanted != other.wanted or (one.effort and other.effort and one.effort != other.effort):
        refuse(other.asked_by, f"contradicts {one.asked_by}; leave one of them out")
    return one if one.effort else other


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
        "owned_by": "apple" if installed.system else "osaurus",
        "context_length": installed.context_length,
    }


def error(problem: ApiError) -> dict[str, Any]:
    """Return the body of an error answer."""
    described = {"message": problem.message, "type": problem.type, "param": problem.param, "code": problem.code}
    return {"error": described}


@define(kw_only=True)
class Answer:
    """Builds the one answer, or the stream, to one request. `created` is in seconds since the epoch.

    What is made of a choice is for the kinds of answers to say; the choices of each prompt follow each other.
    """

    prefix: ClassVar[str]
    """What ids begin with."""
    whole: ClassVar[str]
    part: ClassVar[str]
    """How an answer, and a chunk of a stream, name what they are."""

    id: str
    created: int
    model: str
    choices: int = 1
    prompts: int = 1
    include_usage: bool = False
    include_logprobs: bool = False
    only_calls: bool = False
    """Whether there will be no text."""
    _finished: dict[int, Finished] = field(factory=dict, init=False)

    def completion(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return the whole answer."""
        choices = [self._complete(index, completion) for index, completion in enumerate(completions)]
        usage = _total_usage([completion.finished.usage for completion in completions], self.prompts)
        return {**self._head(self.whole), "choices": choices, "usage": usage}

    def opening(self) -> bytes:
        """Return the chunks that begin the stream."""
        return b""

    def event(self, event: Event) -> bytes:
        """Return the part of the stream that tells an event."""
        match event:
            case Piece():
                return self._chunk(self._piece(event))
            case Finished():
                self._finished[event.choice] = event
                return self._chunk(self._last(event)) + self._end()
            case Failed(problem):
                return _data(error(problem)) + DONE
            case _:
                return b""

    def _complete(self, index: int, completion: Completion) -> dict[str, Any]:
        raise NotImplementedError

    def _piece(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def _last(self, finished: Finished) -> dict[str, Any]:
        raise NotImplementedError

    def _end(self) -> bytes:
        """Return what ends the stream, once every choice has ended."""
        if len(self._finished) < self.choices:
            return b""
        usage = _total_usage([self._finished[index].usage for index in range(self.choices)], self.prompts)
        return (_data({**self._head(self.part), "choices": [], "usage": usage}) if self.include_usage else b"") + DONE

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        usage = {"usage": None} if self.include_usage else {}
        return _data({**self._head(self.part), "choices": [choice], **usage})


@define(kw_only=True)
class ChatAnswer(Answer):
    """The answer to a chat completion."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> bytes:
        """Return the chunks that begin the stream: the role of each choice."""
        role = {"role": "assistant", "content": None if self.only_calls else "", "refusal": None}
        return b"".join(self._chunk(self._delta(index, role)) for index in range(self.choices))

    def _complete(self, index: int, completion: Completion) -> dict[str, Any]:
        return {
            "index": index,
            "message": {
                "role": "assistant",
                "content": completion.text if completion.text or not completion.calls else None,
                **({"reasoning_content": completion.reasoning} if completion.reasoning else {}),
                **({"tool_calls": [_call(call) for call in completion.calls]} if completion.calls else {}),
                "refusal": None,
            },
            "logprobs": self._logprobs(completion.scores),
            "finish_reason": completion.finished.reason,
        }

    def _piece(self, piece: Piece) -> dict[str, Any]:
        thought = {"reasoning_content": piece.reasoning} if piece.reasoning else {}
        calls = {"tool_calls": _call_deltas(piece.calls)} if piece.calls else {}
        # A piece may be nothing but thought, or calls.
        content = {"content": piece.text} if piece.text or not (piece.reasoning or piece.calls) else {}
        return self._delta(piece.choice, {**thought, **content, **calls}, self._logprobs(piece.scores))

    def _last(self, finished: Finished) -> dict[str, Any]:
        return self._delta(finished.choice, {}, reason=finished.reason)

    def _delta(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        reason: FinishReason | None = None,
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, scores: Iterable[TokenScore]) -> dict[str, Any] | None:
        return {"content": [scored(score) for score in scores], "refusal": None} if self.include_logprobs else None


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": _call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _call_deltas(pieces: Iterable[CallPiece]) -> list[dict[str, Any]]:
    """Return what is new of each call: its name and id with the first of it, then the text of its arguments."""
    deltas: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        delta = deltas.setdefault(piece.index, {"index": piece.index, "function": {"arguments": ""}})
        if piece.name:
            delta |= {"id": _call_id(), "type": "function"}
            delta["function"] = {"name": piece.name, "arguments": ""}
        delta["function"]["arguments"] += piece.arguments
    return list(deltas.values())


def _call_id() -> str:
    return f"call_{uuid4().hex[:24]}"


# Comments are for nobody.
FILLER = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + encode_json(value) + b"\n\n"


def _total_usage(usages: Sequence[Usage], prompts: int) -> dict[str, Any]:
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
