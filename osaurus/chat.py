"""The vocabulary that every part speaks: a request, the events that answer it, and what can go wrong.

Values only. This module imports nothing of Osaurus, so that each layer can be understood (and tested) without the
others.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

from attrs import define, field, frozen

FinishReason = Literal["stop", "length", "tool_calls"]
Role = Literal["system", "user", "assistant", "tool"]


@frozen
class Thinking:
    """Whether a model is to think, and, for those that know degrees, how much. `asked_by` is the field that asks."""

    wanted: bool
    asked_by: str
    effort: str | None = None


@frozen
class ToolCall:
    """A tool that is to be called. `arguments` is a JSON object, as text."""

    name: str
    arguments: str
    id: str = ""


@frozen
class Message:
    """One turn of a conversation, as text.

    `calls` are those that the assistant made, and `reasoning` is what it thought before. What a tool answered names the
    call by its id, the tool by its name, or both.
    """

    role: Role
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    tool_name: str = ""
    reasoning: str = ""


@frozen(kw_only=True)
class Tool:
    """A function that the model may call.

    `parameters` is a JSON Schema and `definition` the tool as the client describes it, both as JSON texts. With
    `strict` a schema that cannot be enforced in full is refused. `asked_by` is the field of the schema.
    """

    name: str
    definition: str
    parameters: str
    strict: bool
    asked_by: str


@frozen(kw_only=True)
class ToolUse:
    """The tools of a request, and what the model is to make of them.

    It calls some if it likes, at least one if `required`, or else exactly one of the tool `only`. Several at once only
    if `parallel`.
    """

    tools: tuple[Tool, ...]
    required: bool = False
    only: str | None = None
    parallel: bool = True

    @property
    def forced(self) -> bool:
        """Whether the answer is to be calls and nothing else."""
        return self.required or self.only is not None


@frozen(kw_only=True)
class JsonFormat:
    """The answer is to be JSON that a schema, a JSON text, allows; `strict` and `asked_by` as of a tool."""

    schema: str
    strict: bool
    asked_by: str


@frozen(kw_only=True)
class Sampling:
    """How a token is drawn from the model's distribution.

    `temperature` 0 takes the most probable token. The filters apply to the tempered distribution: `top_k` keeps that
    many tokens, `top_p` the smallest set that holds this much probability, `min_p` those at least this fraction as
    probable as the best. `seed` makes the draws repeatable; None draws one.

    `bias` is added to the logits of the tokens it names. `repetition_penalty` lowers the logits of tokens that the
    prompt or the answer holds, `presence_penalty` and `frequency_penalty` of those that the answer holds, all three
    within the last `penalty_window` tokens, or anywhere if None.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int | None = None
    bias: tuple[tuple[int, float], ...] = ()

    @property
    def unfiltered(self) -> bool:
        """Whether every token may come."""
        return self.top_k is None and self.top_p >= 1 and self.min_p is None


@frozen(kw_only=True)
class Text:
    """Text to be continued as it stands, without a chat template; with a `suffix`, what stands between the two."""

    text: str
    suffix: str | None = None


@frozen
class Tokens:
    """Tokens to be continued."""

    tokens: tuple[int, ...]


@frozen(kw_only=True)
class GenerationRequest:
    """A conversation, or else the `raw` text or tokens, to be continued by a model.

    The `context` are tokens that stand before the conversation. `tell_tokens` asks for all tokens, read and written,
    when the answer is complete; with `echo` the answer begins with the raw text.
    What is read for one `owner` is no other's. `request_id` is what the log calls the request. `thinking` asks a model
    that can to think before it answers, with that much effort, or not to; None leaves it to the model.

    `max_tokens` counts tokens of the answer; None means to the end of the context. Where prompt and `max_tokens`
    together exceed the context, the answer is bounded by the context if `max_tokens_may_shrink`, else the request is
    refused. `context_length`, in tokens, narrows the model's own. `keep_alive` is how long the model is to stay in
    memory afterwards, in seconds; None means the usual time. `top_logprobs` asks for the log probability of every
    token of the answer, and of that many of the most probable ones in its place; None asks for neither.

    `prompt_field` and `max_tokens_field` are what the client calls these, for whoever tells it that they are wrong.
    """

    model: str
    messages: tuple[Message, ...] = ()
    raw: Text | Tokens | None = None
    context: tuple[int, ...] = ()
    max_tokens: int | None
    max_tokens_may_shrink: bool
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    context_length: int | None = None
    keep_alive: float | None = None
    top_logprobs: int | None = None
    tell_tokens: bool = False
    echo: bool = False
    thinking: Thinking | None = None
    tools: ToolUse | None = None
    format: JsonFormat | None = None
    owner: str = ""
    request_id: str = ""
    prompt_field: str = "messages"
    max_tokens_field: str = "max_tokens"

    def has_prompt_of(self, other: "GenerationRequest") -> bool:
        """Whether both are choices of one prompt."""
        return self.messages is other.messages and self.raw is other.raw


@frozen(kw_only=True)
class Usage:
    """Tokens read and written; an end-of-sequence token that the model wrote counts, and so do thoughts."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@frozen(kw_only=True)
class Timings:
    """Measured durations in nanoseconds: all of it, loading the model, reading the prompt, writing the answer.

    What is left is the `queue`: waiting for memory, for other rows, and for the prompt to be made into tokens.
    """

    total: int
    load: int
    prompt: int
    generation: int

    @property
    def queue(self) -> int:
        """How long nothing was done for the answer."""
        return self.total - self.load - self.prompt - self.generation


@frozen
class Started:
    """The model is loaded and the prompt admitted: from here on only the engine itself can fail."""

    prompt_tokens: int


@frozen
class TokenScore:
    """A token, as the bytes of its text, with its log probability, and the most probable tokens in its place.

    The first token of a text has none: nothing was read before it.
    """

    token: bytes
    logprob: float | None
    alternatives: tuple["TokenScore", ...] = ()


@frozen
class CallPiece:
    """More of the call with this number: its `name` in the first piece, then the text of its arguments, bit by bit.

    The `last` piece of a call makes it complete.
    """

    index: int
    name: str = ""
    arguments: str = ""
    last: bool = False


@frozen
class Piece:
    """Text of the answer: whole characters, never any part of a stop string. `scores` are of its tokens, if asked.

    `choice` is the place of the answer among those of one request. `reasoning` is what the model thought meanwhile,
    `calls` what it has said of tools to be called.
    """

    text: str
    scores: tuple[TokenScore, ...] = ()
    choice: int = 0
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return bool(self.text or self.scores or self.reasoning or self.calls)

    def __add__(self, other: "Piece") -> "Piece":
        """Return both, as one."""
        return Piece(
            self.text + other.text,
            self.scores + other.scores,
            self.choice,
            self.reasoning + other.reasoning,
            self.calls + other.calls,
        )


@frozen(kw_only=True)
class Finished:
    """The answer is complete. `tokens` are those of prompt and answer, if asked for."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    tokens: tuple[int, ...] = ()
    choice: int = 0


@frozen
class Completion:
    """A whole answer. The arguments of the last call are incomplete if the answer was cut there."""

    text: str
    finished: Finished
    scores: tuple[TokenScore, ...] = ()
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


def gathered(pieces: Iterable[CallPiece]) -> tuple[ToolCall, ...]:
    """Return the calls that these are the pieces of, in order."""
    calls: dict[int, ToolCall] = {}
    for piece in pieces:
        begun = calls.get(piece.index, ToolCall("", ""))
        calls[piece.index] = ToolCall(begun.name + piece.name, begun.arguments + piece.arguments)
    return tuple(calls.values())


@frozen(kw_only=True)
class InstalledModel:
    """A usable model folder. `size` is in bytes, `modified` in seconds since the epoch.

    What is part of the operating `system` has no folder; its size, and how many parameters it has, nobody knows.
    """

    id: str
    repository: str
    folder: Path
    size: int
    modified: float
    family: str
    parameters: int
    quantization: str
    context_length: int
    system: bool = False


@frozen(kw_only=True)
class ResidentModel:
    """A model in memory: what its weights take there, in bytes, whether on a GPU, and its context, in tokens."""

    id: str
    nbytes: int
    on_gpu: bool
    context_length: int


@frozen(kw_only=True)
class ModelCard:
    """What a model's folder says about it: `facts` are numbers of its architecture, under the names of GGUF."""

    model: InstalledModel
    architecture: str
    template: str
    license: str
    facts: dict[str, int]
    fills_in: bool
    thinks: bool
    takes_tools: bool = False


@define
class ApiError(Exception):
    """Something that a client is told, with the status and the names of API.md's error table.

    `param` names the field at fault, None when there is none. `retry_after` is in seconds.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_server_error"
    mendable: ClassVar[bool] = True
    """Whether asking again may help, where the status lets a client think so."""

    message: str
    param: str | None = field(default=None, kw_only=True)
    retry_after: int | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        return self.message


class InternalError(ApiError):
    """A fault of ours; the log has the traceback, under the request's id."""


class InvalidRequest(ApiError):
    """The body is not what the endpoint takes; `param` names the field."""

    status, type, code = 400, "invalid_request_error", "invalid_request"


class TemplateStopped(ApiError):
    """The model's chat template takes more time or memory than one may, or writes more; the message says which."""

    status, type, code = 400, "invalid_request_error", "invalid_request"


class ContextLengthExceeded(ApiError):
    """The prompt, or the prompt and the tokens asked for, exceed the model's context."""

    status, type, code = 400, "invalid_request_error", "context_length_exceeded"


class ModelNotFound(ApiError):
    """No model of that name is installed."""

    status, type, code = 404, "invalid_request_error", "model_not_found"


class NotFound(ApiError):
    """There is no such path."""

    status, type, code = 404, "invalid_request_error", "not_found"


@define
class MethodNotAllowed(ApiError):
    """The path exists, but not for this method; `allow` holds those it takes."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"

    allow: tuple[str, ...] = ()


class RateLimitExceeded(ApiError):
    """There are as many requests for the model as there may be; `retry_after` says when to ask again."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class Unauthorized(ApiError):
    """The server asks for an API key, and the request has none, or a wrong one."""

    status, type, code = 401, "authentication_error", "invalid_api_key"


class Forbidden(ApiError):
    """Not for this origin, host name or folder."""

    status, type, code = 403, "permission_error", "forbidden"


class RequestTooLarge(ApiError):
    """The body exceeds the limit."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class HeadersTooLarge(ApiError):
    """The request's line and headers exceed the limit."""

    status, type, code = 431, "invalid_request_error", "request_too_large"


class ServiceUnavailable(ApiError):
    """The server is stopping, or its engine cannot generate."""

    status, type, code = 503, "server_error", "service_unavailable"


class NoRoomYet(ServiceUnavailable):
    """There is no memory for this until something else has ended."""


class ModelLoadFailed(ApiError):
    """The model is installed but could not be loaded; the message has the reason."""

    status, type, code = 503, "server_error", "model_load_failed"
    mendable = False


class PullFailed(ApiError):
    """The model could not be fetched; the message has the reason, and says whether to try again."""

    code = "pull_failed"
    mendable = False


@frozen
class Failed:
    """The answer ends here, with an error."""

    error: ApiError


Event = Started | Piece | Finished | Failed
