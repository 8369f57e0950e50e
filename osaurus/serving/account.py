"""What became of a request for answers, for the log."""

from collections.abc import Sequence

from attrs import define, field

from ..chat import Event, Failed, Finished, GenerationRequest, Message, Piece, Started, Text, Usage

# Characters of a prompt, of which the end is kept, and of an answer, of which the beginning is.
MOST_CONTENT = 4096

Value = str | int | float


@define(eq=False)
class Account:
    """Hears the events of a generation. Text is remembered only if it `keeps_content`."""

    _requests: Sequence[GenerationRequest]
    _keeps_content: bool = False
    model: str = ""
    """The model that was found under the name that was asked for; empty until then."""
    _prompt_tokens: int = field(default=0, init=False)
    _ends: dict[int, Finished] = field(factory=dict, init=False)
    _error: str = field(default="", init=False)
    _answer: str = field(default="", init=False)

    def hear(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case Piece():
                if self._keeps_content and len(self._answer) < MOST_CONTENT:
                    calls = "".join(f"{call.name}{call.arguments}" for call in event.calls)
                    self._answer += event.reasoning + event.text + calls
            case Started(tokens):
                self._prompt_tokens = tokens
            case Finished():
                self._ends[event.choice] = event
            case Failed(error):
                self._error = error.code

    def told(self) -> dict[str, Value]:
        """Return what is known by now, by the names that docs/logs.md has; durations in seconds."""
        told: dict[str, Value] = {"model": self.model} if self.model else {}
        if self._ends and len(self._ends) == len(self._requests):
            last = max(self._ends.values(), key=lambda end: end.timings.total)
            told |= self._usage() | {
                "finish_reason": ",".join(self._ends[choice].reason for choice in sorted(self._ends)),
                "load_seconds": _seconds(last.timings.load),
                "queue_seconds": _seconds(last.timings.queue),
                "prefill_seconds": _seconds(last.timings.prompt),
                "decode_seconds": _seconds(last.timings.generation),
            }
        elif self._prompt_tokens:
            told["prompt_tokens"] = self._prompt_tokens
        if self._error:
            told["error"] = self._error
        if self._keeps_content:
            told |= {"prompt": _spelled(self._requests[0]), "answer": self._answer[:MOST_CONTENT]}
        return told

    def _usage(self) -> dict[str, Value]:
        """Return the tokens of all choices; those of one prompt, which follow each other, have it in common."""
        usages = [self._ends[choice].usage for choice in range(len(self._requests))]
        read: list[Usage] = []
        for before, request, usage in zip([None, *self._requests], self._requests, usages, strict=False):
            if before is None or not request.has_prompt_of(before):
                read.append(usage)
        return {
            "prompt_tokens": sum(usage.prompt_tokens for usage in read),
            "cached_tokens": sum(usage.cached_tokens for usage in read),
            "completion_tokens": sum(usage.completion_tokens for usage in usages),
        }


def _seconds(nanoseconds: int) -> float:
    return round(nanoseconds / 1e9, 6)


def _spelled(request: GenerationRequest) -> str:
    """Return the end of what was asked, as text."""
    if isinstance(request.raw, Text):
        text = request.raw.text
    elif request.raw is not None:
        text = " ".join(map(str, request.raw.tokens[-MOST_CONTENT:]))
    else:
        text = "\n".join(map(_turn, request.messages))
    return text[-MOST_CONTENT:]


def _turn(message: Message) -> str:
    calls = "".join(f" {call.name}{call.arguments}" for call in message.calls)
    return f"{message.role}: {message.content}{calls}"
