"""A stand-in for Apple's SDK, which is built on a Mac only.

It has that part of the surface of `apple-fm-sdk` 0.2.1 that Osaurus uses, as its documentation and its source tell it:
`SystemLanguageModel`, `LanguageModelSession`, `Transcript`, `GenerationOptions`, `SamplingMode`, `Tool`, `generable`,
`guide`, `GenerationSchema` and the errors. Streams yield the whole text so far; tools are called on threads of their
own, each with a loop; `respond` ends when it is cancelled. What a session says is written down beforehand.
"""

# ruff: noqa: D101 - what these classes are the SDK tells

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields
from dataclasses import field as dataclass_field
from enum import IntEnum
from threading import Thread
from typing import Any, get_type_hints

from attrs import define, field


class FoundationModelsError(Exception):
    pass


class GenerationError(FoundationModelsError):
    pass


class InvalidGenerationSchemaError(FoundationModelsError):
    pass


class ExceededContextWindowSizeError(GenerationError):
    pass


class AssetsUnavailableError(GenerationError):
    pass


class GuardrailViolationError(GenerationError):
    pass


class UnsupportedGuideError(GenerationError):
    pass


class UnsupportedLanguageOrLocaleError(GenerationError):
    pass


class DecodingFailureError(GenerationError):
    pass


class RateLimitedError(GenerationError):
    pass


class ConcurrentRequestsError(GenerationError):
    pass


class RefusalError(GenerationError):
    pass


class Unavailable(IntEnum):
    APPLE_INTELLIGENCE_NOT_ENABLED = 0
    DEVICE_NOT_ELIGIBLE = 1
    MODEL_NOT_READY = 2


class GeneratedContent:
    def __init__(self, content: Any) -> None:
        self._content = content

    def to_json(self) -> str:
        return json.dumps(self._content)


class GenerationSchema:
    """What a class was made into: its properties, each with type, description and guides."""

    def __init__(self, type_class: type, description: str | None = None, properties: list[Any] | None = None) -> None:
        self.name, self.description, self.properties = type_class.__name__, description, properties or []


def guide(description: str | None = None, **guides: Any) -> Any:
    for bound in ("minimum", "maximum"):
        if bound in guides and not isinstance(guides[bound], (int, float)):
            raise ValueError(f"{bound} must be a number")
    return dataclass_field(metadata={"description": description, "guides": guides})


def generable(description: str | None = None) -> Callable[[type], Any]:
    def decorate(plain: type) -> Any:
        made: Any = dataclass(plain)
        hints = get_type_hints(made)
        described = [(one.name, hints[one.name], one.metadata) for one in fields(made)]
        made.generation_schema = classmethod(lambda cls: GenerationSchema(cls, description, described))
        return made

    return decorate


class Tool:
    """Calls `call` as the SDK does: on a thread of its own, which runs a loop for it."""

    name: str
    description: str

    def __init__(self) -> None:
        assert isinstance(self.arguments_schema, GenerationSchema)  # type: ignore[attr-defined]
        assert asyncio.iscoroutinefunction(self.call)  # type: ignore[attr-defined]

    def called(self, arguments: Any, returned: Callable[[str], object]) -> None:
        def run() -> None:
            returned(asyncio.run(self.call(GeneratedContent(arguments))))  # type: ignore[attr-defined]

        Thread(target=run, daemon=True).start()


@dataclass
class SamplingMode:
    mode_type: str
    top: int | None = None
    probability_threshold: float | None = None
    seed: int | None = None

    @classmethod
    def greedy(cls) -> "SamplingMode":
        return cls("greedy")

    @classmethod
    def random(
        cls, top: int | None = None, probability_threshold: float | None = None, seed: int | None = None
    ) -> "SamplingMode":
        if top is not None and probability_threshold is not None:
            raise ValueError("Cannot specify both 'top' and 'probability_threshold'")
        return cls("random", top, probability_threshold, seed)


@dataclass
class GenerationOptions:
    sampling: SamplingMode | None = None
    temperature: float | None = None
    maximum_response_tokens: int | None = None


@define(eq=False)
class StandIn:
    """The module. Sessions say `snapshots`, or make `calls`, each a tool's name with arguments; `error` comes last.

    `between` is called before every snapshot, with its number: that is when the rest of the server has its turn.
    """

    snapshots: list[str] = field(factory=lambda: ["Hel", "Hello", "Hello there"])
    calls: list[tuple[str, dict[str, Any]]] = field(factory=list)
    content: dict[str, Any] = field(factory=dict)
    error: Exception | None = None
    unavailable: Unavailable | None = None
    counts: bool = True
    between: Callable[[int], object] = lambda _: None
    sessions: list[Any] = field(factory=list)
    prompts: list[tuple[str, dict[str, Any]]] = field(factory=list)
    returned: list[str] = field(factory=list)
    given_up: int = 0
    """How many answers were ended before they were complete."""

    FoundationModelsError = FoundationModelsError
    InvalidGenerationSchemaError = InvalidGenerationSchemaError
    ExceededContextWindowSizeError = ExceededContextWindowSizeError
    AssetsUnavailableError = AssetsUnavailableError
    GuardrailViolationError = GuardrailViolationError
    UnsupportedGuideError = UnsupportedGuideError
    UnsupportedLanguageOrLocaleError = UnsupportedLanguageOrLocaleError
    DecodingFailureError = DecodingFailureError
    RateLimitedError = RateLimitedError
    ConcurrentRequestsError = ConcurrentRequestsError
    RefusalError = RefusalError
    GenerationSchema = GenerationSchema
    GenerationOptions = GenerationOptions
    SamplingMode = SamplingMode
    Tool = Tool
    generable = staticmethod(generable)
    guide = staticmethod(guide)

    @property
    def SystemLanguageModel(self) -> Any:
        return lambda: Model(self)

    @property
    def LanguageModelSession(self) -> Any:
        class Sessions:
            def __new__(cls, instructions: Any = None, model: Any = None, tools: Any = None) -> Any:
                return Session(self, instructions, Transcript({}), model, tools or [])

            @classmethod
            def from_transcript(cls, transcript: Any, model: Any = None, tools: Any = None) -> Any:
                return Session(self, None, transcript, model, tools or [])

        return Sessions

    @property
    def Transcript(self) -> Any:
        return Transcript


@define
class Transcript:
    told: dict[str, Any]

    @classmethod
    async def from_dict(cls, told: dict[str, Any]) -> "Transcript":
        return cls(told)


@define(eq=False)
class Model:
    _sdk: StandIn
    context_size: int = 4096

    def is_available(self) -> tuple[bool, Unavailable | None]:
        return self._sdk.unavailable is None, self._sdk.unavailable

    async def token_count(self, value: Any) -> int:
        """Count words, and entries of a transcript."""
        if not self._sdk.counts:
            raise FoundationModelsError("Token counting requires macOS 26.4")
        if isinstance(value, Transcript):
            return len(value.told.get("transcript", {}).get("entries", ()))
        return len(value.split())


@define(eq=False)
class Session:
    _sdk: StandIn
    instructions: str | None
    transcript: Transcript
    model: Any
    tools: list[Any]

    def __attrs_post_init__(self) -> None:
        self._sdk.sessions.append(self)

    async def respond(self, prompt: str, *, json_schema: Any = None, options: Any = None) -> Any:
        sdk = self._sdk
        sdk.prompts.append((prompt, {"json_schema": json_schema, "options": options}))
        try:
            await asyncio.sleep(0)
            if sdk.error is not None:
                raise sdk.error
            if sdk.calls:
                named = {tool.name: tool for tool in self.tools}
                for name, arguments in sdk.calls:
                    named[name].called(arguments, sdk.returned.append)
                # Until every tool has returned.
                await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            sdk.given_up += 1
            raise
        return sdk.snapshots[-1] if json_schema is None else GeneratedContent(sdk.content)

    async def stream_response(self, prompt: str, options: Any = None) -> AsyncIterator[str]:
        sdk = self._sdk
        sdk.prompts.append((prompt, {"options": options}))
        try:
            for number, snapshot in enumerate(sdk.snapshots):
                sdk.between(number)
                yield snapshot
            if sdk.error is not None:
                raise sdk.error
        except GeneratorExit:
            sdk.given_up += 1
            raise
