"""How the rows of a model read their prompts, bit by bit, while others write.

The difficulty is that a long prompt takes as long as many steps, and everybody else's stream would stand still. `Pace`
measures what a step and a token of reading cost on this machine and allows reading for a few steps' time, so that the
gap in a neighbour's stream is bounded by its own pace, not by somebody's prompt. Rows take turns at reading, chunk by
chunk: a short prompt does not wait for a long one. Those with about as much to read share a pass: clients that come at
the same time, behind the same system prompt, have a few tokens each, and a pass has a price of its own.

The last token of a prompt is not read here but where rows write: the pass that all of them share computes its logits.
Where caches cannot be cut, reading stops at the boundaries of the prompt, for copies to be kept.
"""

from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic_ns

import mlx.core as mx
from attrs import define, field
from mlx_lm.models.cache import make_prompt_cache

from ..chat import Event, Failed, NoRoomYet
from .joining import join, line_up, make_room
from .keeping import Keeper
from .loader import Model
from .pace import Pace
from .prefixes import BLOCK
from .progress import Progress
from .scores import score
from .tally import ModelTally

# Rows that take turns at reading; more wait.
MOST_READING = 8

# Rows that read in one pass get at least so many tokens each.
LEAST_SHARE = 8

# Tokens of a prompt that is scored are read so many at a time: each takes as many numbers as the vocabulary has tokens.
MOST_SCORED = 64


@define(eq=False)
class Reading:
    """The rows of one model that wait to begin, and those that read.

    `plain` says whether caches are nothing but keys and values, so that several rows can read in one pass.
    """

    _model: Model
    _keeper: Keeper
    _pace: Pace
    _tally: ModelTally
    _plain: bool
    waiting: deque[Progress] = field(factory=deque, init=False)
    readers: deque[Progress] = field(factory=deque, init=False)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.readers)

    def keep(self) -> None:
        """Keep what was read since the last time."""
        for progress in self.readers:
            self._keeper.keep(progress)

    def ready(self, most: int) -> list[Progress]:
        """Return at most so many rows that have read all but their last token."""
        return [progress for progress in self.readers if not progress.unread][:most]

    def leave(self, rows: Sequence[Progress]) -> None:
        """Let readers leave."""
        for progress in rows:
            self.readers.remove(progress)

    def remove(self, row_id: int) -> bool:
        """Let a row leave, if it is one of these; return whether it was."""
        for rows in (self.waiting, self.readers):
            for progress in rows:
                if progress.row.id == row_id:
                    rows.remove(progress)
                    self._keeper.keep(progress, leaving=True)
                    return True
        return False

    def clear(self) -> list[Progress]:
        """Let all readers leave; return them."""
        rows = list(self.readers)
        self.readers.clear()
        return rows

    def begin(
        self, writing: bool, admit: Callable[[Sequence[Progress]], bool], events: list[tuple[int, Event]]
    ) -> None:
        """Let rows begin to read, in the order they came, as long as `admit` finds room for all of them together."""
        for progress in list(self.waiting):
            if len(self.readers) == MOST_READING:
                return
            try:
                if not progress.echoes and (
                    self._read_by_another(progress) or not self._keeper.fetched(progress, writing)
                ):
                    continue
                if not admit([progress, *self.readers]):
                    return
                progress.read, cache = (0, []) if progress.echoes else self._keeper.taken(progress)
                progress.cache = cache or make_prompt_cache(self._model.network)
            except NoRoomYet as error:
                self.waiting.remove(progress)
                events.append((progress.row.id, Failed(error)))
                continue
            except Exception:
                # It ends with those that read: among those that wait it would fail again and again.
                self._begin(progress)
                raise
            self._begin(progress)
            if not progress.begun:
                progress.begun, progress.cached = monotonic_ns(), progress.read
                self._tally.began(len(progress.row.prompt), progress.cached)
            progress.kept = progress.read

    def _begin(self, progress: Progress) -> None:
        self.waiting.remove(progress)
        self.readers.append(progress)

    def _read_by_another(self, progress: Progress) -> bool:
        """Whether another row is just reading what this one begins with, so that it had better wait for it.

        So the answers to one request, and clients with one system prompt, read together what they have in common.
        """
        for other in self.readers:
            if other.row.owner != progress.row.owner:
                continue
            # Up to where what it reads is kept next.
            if self._plain:
                end = (other.kept // BLOCK + 1) * BLOCK
            elif self._model.layout is not None:
                end = other.read + other.stretch
            else:
                return False
            if other.read < end < len(other.sequence) and progress.sequence[:end] == other.sequence[:end]:
                return True
        return False

    @property
    def pressing(self) -> bool:
        """Whether rows have something to read, or wait to."""
        return bool(self.waiting) or any(progress.unread for progress in self.readers)

    def read(self, writing: int, width: int) -> int:
        """Set reading in motion, rows in turn, as much as may be while so many rows write so many tokens each.

        Return how many tokens that is. Beside writers it is one pass: another would cost them as much again.
        """
        allowance, read = self._pace.chunk(writing, width), 0
        turns = sum(1 for progress in self.readers if progress.unread)
        while turns > 0 and allowance > 0:
            group = self._next_readers(allowance)
            share = min(allowance // len(group), MOST_SCORED if group[0].echoes else allowance)
            if len(group) > 1:
                # All are filled up to as many as one reads, within the context: where positions are learned they end.
                share = min(share, self._model.context_length - max(p.read for p in group) - LEAST_SHARE)
            # A pass has its price, however little it reads: what would be left for another is read with this one.
            rest = min(LEAST_SHARE, share)
            lengths = [p.stretch if p.stretch < share + rest else share for p in group]
            self._read_together(group, lengths)
            for progress, length in zip(group, lengths, strict=True):
                if self._plain:
                    for cache in progress.cache:
                        make_room(cache, len(progress.sequence))
                progress.read += length
                self.readers.remove(progress)
                self.readers.append(progress)
            turns -= len(group)
            read += len(group) * max(lengths)
            allowance = 0 if writing else allowance - len(group) * max(lengths)
        return read

    def _next_readers(self, allowance: int) -> list[Progress]:
        """Return the row whose turn it is to read, with others that have about as much to read."""
        first, *others = [progress for progress in self.readers if progress.unread]
        most = allowance // LEAST_SHARE if self._plain else 1
        share = allowance // max(1, min(most, 1 + len(others)))
        length = min(first.unread, share)
        last = self._model.context_length - share - LEAST_SHARE
        alike = [
            progress
            for progress in others
            if length <= 2 * min(progress.unread, share) <= 4 * length
            and not (first.echoes or progress.echoes)
            and max(first.read, progress.read) <= last
        ]
        return [first, *alike[: max(most - 1, 0)]]

    def _read_together(self, group: list[Progress], lengths: list[int]) -> None:
        """Have each row read its next so many tokens, in one pass."""
        width = max(lengths)
        tokens = [
            progress.sequence[progress.read : progress.read + length] + [0] * (width - length)
            for progress, length in zip(group, lengths, strict=True)
        ]
        if len(group) == 1:
            [progress] = group
            logits = self._model.network(mx.array(tokens), cache=progress.cache)
            if progress.echoes:
                following = progress.sequence[progress.read + 1 : progress.read + 1 + width]
                found = score(logits[0], following, [progress.row.top_logprobs] * width)
                progress.scored += filter(None, found)
        else:
            layers = zip(*(progress.cache for progress in group), strict=True)
            merged = [join(None, caches) for caches in layers]
            self._model.network(mx.array(tokens), cache=merged)
            line_up(merged, [width - length for length in lengths])
            for index, progress in enumerate(group):
                progress.cache = [cache.extract(index) for cache in merged]
        mx.async_eval([cache.state for progress in group for cache in progress.cache])
