"""What the chat bodies of both dialects have in common: types of fields, and what is refused and how."""

from contextlib import suppress
from typing import Annotated, Any, NoReturn

from attrs import evolve, frozen

from .. import durations
from ..chat import GenerationRequest, InvalidRequest, Message, Role, Sampling, TokenScore
from .strict import Between, Items, OneOf, Unserved, cut

# Without a name it is Apple's on-device model, where that is.
ModelName = Annotated[str, Items(0, 512)]
Temperature = Annotated[float, Between(0, 2)]
Fraction = Annotated[float, Between(0, 1)]
Seed = Annotated[int, Between(-(2**63), 2**63 - 1)]
StopString = Annotated[str, Items(0, 256)]
StopList = Annotated[list[StopString], Items(0, 16)]

# A factor of 0 would divide by it; Ollama's 0 means none.
RepetitionPenalty = Annotated[float, Between(0, 10)]
# OpenAI's own limit; the server's may be less.
Choices = Annotated[int, Between(1, 128)]
TopLogprobs = Annotated[int, Between(0, 20)]

DEFAULT_MAX_TOKENS = 2048

MOST_SECONDS = 10**10

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
MessageRole = Annotated[str, OneOf(tuple(ROLES))]


def keep_alive(value: object) -> float | None:
    """Return how many seconds a model is to stay, infinitely many if negative; None if nothing is said."""
    match value:
        case None:
            return None
        case int() | float() if not isinstance(value, bool) and abs(value) <= MOST_SECONDS:
            return durations.without_end(value)
        case str():
            with suppress(ValueError):
                return durations.seconds(value)
    return refuse("keep_alive", "must be a number of seconds or a duration such as '5m'; negative: without end")


def top_logprobs(logprobs: bool, top: int | None) -> int | None:
    """Return how many of the most probable tokens were asked for, None where no log probability was."""
    if logprobs:
        return top or 0
    if top:
        refuse("top_logprobs", "needs logprobs to be true")
    return None


def scored(score: TokenScore) -> dict[str, Any]:
    """Return a token's log probability in the shape that both dialects have."""
    return {
        **_scored_alone(score),
        "top_logprobs": [_scored_alone(alternative) for alternative in score.alternatives],
    }


def _scored_alone(score: TokenScore) -> dict[str, Any]:
    text = score.token.decode("utf-8", "replace")
    return {"token": text, "logprob": score.logprob, "bytes": list(score.token)}


@frozen(kw_only=True)
class Part:
    """One part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


Content = str | Annotated[list[Part], Items(0, 1000)]
MOST_MESSAGES = 10_000


@frozen(kw_only=True)
class SamplingExtensions:
    """How tokens are to be drawn, by fields that OpenAI does not have; None where nothing is said."""

    top_k: Annotated[int, Between(-1, 2**31)] | None = None
    min_p: Fraction | None = None
    repetition_penalty: RepetitionPenalty | None = None


@frozen(kw_only=True)
class SamplingFields(SamplingExtensions):
    """How tokens are to be drawn; OpenAI has these in the body, Ollama in its options."""

    temperature: Temperature = 0.7
    top_p: Fraction = 0.9
    seed: Seed | None = None
    stop: StopString | StopList | None = None
    presence_penalty: Annotated[float, Between(-2, 2)] = 0
    frequency_penalty: Annotated[float, Between(-2, 2)] = 0
    mirostat: Annotated[Any, Unserved((0,))] = None
    tfs_z: Annotated[Any, Unserved((1,))] = None
    typical_p: Annotated[Any, Unserved((1,))] = None

    def sampling(self) -> Sampling:
        """Return the fields as the vocabulary has them; 0 and below turn a filter off."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k if self.top_k is not None and self.top_k > 0 else None,
            min_p=self.min_p or None,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty or 1,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
        )

    def stop_strings(self) -> tuple[str, ...]:
        """Return the stop strings, of one or several; an empty one stops nothing."""
        return tuple(filter(None, [self.stop] if isinstance(self.stop, str) else self.stop or []))


def message(index: int, role: str, content: str | list[Part] | None, thought: str = "") -> Message:
    """Return a message of the conversation, with what an assistant thought. Raises InvalidRequest for other parts."""
    at = f"messages[{index}]"
    if isinstance(content, list):
        content = "".join(_text(f"{at}.content[{number}]", role, part) for number, part in enumerate(content))
    if content is None and role != "assistant":
        refuse(f"{at}.content", "is required")
    return Message(ROLES[role], content or "", reasoning=thought if role == "assistant" else "")


def _text(at: str, role: str, part: Part) -> str:
    """Return the text of a part; a refusal is something that an assistant has said."""
    if part.type != "text" and not (part.type == "refusal" and role == "assistant"):
        refuse(f"{at}.type", f"only text is served, not {cut(repr(part.type))}")
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        refuse(f"{at}.{part.type}", "is required")
    return text


def several(request: GenerationRequest, choices: int) -> tuple[GenerationRequest, ...]:
    """Return a request for each of several answers; where one seed is given each has its own."""
    seed = request.sampling.seed
    if seed is None:
        return (request,) * choices
    return tuple(
        evolve(request, sampling=evolve(request.sampling, seed=(seed + choice + 2**63) % 2**64 - 2**63))
        for choice in range(choices)
    )


def refuse(param: str, reason: str) -> NoReturn:
    """Raise InvalidRequest for a field."""
    raise InvalidRequest(f"{param}: {reason}", param=param)
