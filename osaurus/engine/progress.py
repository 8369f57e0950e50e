"""What has become of a row so far."""

from typing import Any

from attrs import define, field

from ..chat import Finished, FinishReason, Timings, Usage
from .answer import Answer
from .runner import Row
from .sampling import RowSampler
from .scores import Scored
from .speculation import Drafter
from .tally import ModelTally


@define(eq=False)
class Progress:
    """A row: how far it is read and written. Times are in nanoseconds on the monotonic clock."""

    row: Row
    answer: Answer
    sampler: RowSampler
    sequence: list[int]
    """The prompt, and what has been written behind it."""
    cache: list[Any] = field(factory=list)
    cached: int = 0
    read: int = 0
    kept: int = 0
    """How much of what it has read is in the prefix cache."""
    begun: int = 0
    """When it began to read; 0 before that, as the times that follow."""
    prompt_read: int = 0
    wrote: int = 0
    """When it last wrote; 0 again once it has stood still."""
    counted: int = 0
    """How many of the tokens that it has written are counted."""
    fetched: int = 0
    """How many blocks were asked of the disk before it began."""
    thought: int = 0
    """How many tokens it has spent on thoughts."""
    drafter: Drafter = field(factory=Drafter)
    given: list[int] = field(factory=list)
    """What of the row the pass under way reads: what it has written and not read, and a draft of what follows."""
    right: int = 0
    """How much of that is known to be right."""
    scored: list[Scored] = field(factory=list)
    """The scores of the prompt's tokens that are read, but the first, where they are to be told."""
    echoed: bool = False
    """Whether the prompt has been told."""

    @property
    def echoes(self) -> bool:
        """Whether the prompt is to be told, with the scores of its tokens, so that all of it has to be read."""
        return bool(self.row.echo) and not self.echoed

    @property
    def unread(self) -> int:
        """How many tokens are to be read before the row can join."""
        return len(self.sequence) - 1 - self.read

    @property
    def stretch(self) -> int:
        """How many of these may be read in one pass."""
        return next((end - self.read for end in self.row.boundaries if end > self.read), self.unread)

    @property
    def written(self) -> int:
        """How many tokens the row has written."""
        return len(self.sequence) - len(self.row.prompt)

    @property
    def in_cache(self) -> int:
        """How much of the sequence is in a writing row's cache, or will be after the pass under way."""
        return self.read + self.right

    def follow(self) -> bool:
        """See how far what was given is what was written; return whether the pass tells what comes next."""
        while self.right < len(self.given) and self.in_cache < len(self.sequence):
            if self.given[self.right] != self.sequence[self.in_cache]:
                break
            self.right += 1
        return self.in_cache == len(self.sequence)

    def count(self, tally: ModelTally, now: int) -> None:
        """Have those tokens counted that it has written since the last time."""
        tokens = self.written - self.counted
        if not tokens:
            return
        if self.counted:
            tally.wrote(tokens, now - self.wrote if self.wrote else None)
        else:
            tally.wrote_first(tokens, now - self.row.arrived)
        self.counted, self.wrote = self.written, now

    def finished(self, reason: FinishReason, now: int) -> Finished:
        """Return the end of the answer."""
        row = self.row
        return Finished(
            reason=reason,
            usage=Usage(
                prompt_tokens=len(row.prompt),
                completion_tokens=self.written,
                cached_tokens=self.cached,
                reasoning_tokens=self.thought,
            ),
            timings=Timings(
                total=now - row.arrived,
                load=row.load,
                prompt=self.prompt_read - self.begun,
                generation=now - self.prompt_read,
            ),
            tokens=tuple(self.sequence) if row.tell_tokens else (),
        )
