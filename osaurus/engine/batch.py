"""The step loop over the rows that one model is answering at a time.

A row waits, reads its prompt in chunks into a cache of its own, then joins the rows that write. One step draws a token
for every writing row from the logits that the step before set in motion, says what came of it, lets rows leave and
join, sets the next forward pass in motion, and behind it as much reading as the time allows. So the device has work
while the host turns tokens into text and events, and a row that has ended is never computed once more.

The difficulty is reading: a long prompt takes as long as many steps, and everybody else's stream would stand still.
`Pace` measures what a step and a token of reading cost on this machine and allows reading for a few steps' time, so
that the gap in a neighbour's stream is bounded by its own pace, not by somebody's prompt. Rows take turns at reading,
chunk by chunk: a short prompt does not wait for a long one. Those with about as much to read share a pass: clients that
come at the same time, behind the same system prompt, have a few tokens each, and a pass has a price of its own.

Where a row's text repeats itself, a pass checks a draft of several tokens at once (`speculation`). Where a grammar left
no choice (`constraint`), several tokens are written at once and read in one pass. All rows get as many places in it as
the longest has, and what was not right in the end is taken back from their caches.

What rows have read and written is kept in the `PrefixCache`; a row that begins alike starts behind it. Where caches
cannot be cut, they are copied whole at the boundaries of the prompt, so reading stops there.

The last token of a prompt is not read but joins with the row: the pass that all rows share computes its logits.

mlx_lm's BatchGenerator was the first design. It draws one step ahead (so a sampler may not look at its logits), calls
a sampler for every row, reads in chunks of a fixed size and decodes rows once more after their end. What is built on
is the layer below: mlx_lm's cache classes, with `merge`, `extend`, `filter` and `extract`. Models whose caches cannot
be merged write one at a time, through the same loop.

Everything here runs on the thread that owns MLX.
"""

from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic_ns, perf_counter
from typing import Any

import mlx.core as mx
from attrs import define, field
from mlx_lm.models.cache import KVCache, make_prompt_cache
from twisted.logger import Logger

from ..chat import ApiError, Event, Failed, Finished, FinishReason, InternalError, NoRoomYet, Timings, TokenScore, Usage
from .answer import Answer
from .backend import Backend
from .joining import join
from .loader import Model
from .output import StopScanner, TextAssembler
from .pace import Pace
from .prefixes import BLOCK, PrefixCache
from .runner import Row
from .sampling import RowSampler, sample
from .scores import Scored, score
from .speculation import Drafter
from .thoughts import ThoughtScanner

log = Logger()

# Rows that write together, and rows that take turns at reading; more wait.
MOST_WRITING = 32
MOST_READING = 8

# Blocks of prompts that are brought from the disk in one step, while rows write.
MOST_FETCHED = 8

# Rows that read in one pass get at least so many tokens each.
LEAST_SHARE = 8

# Written tokens of a row that are read in one pass: alone, and beside others, which are filled up to as many.
MOST_GIVEN_ALONE = 256
MOST_GIVEN = 16

# Beyond so many rows a pass is not much cheaper than as many tokens in passes of their own.
MOST_SPECULATING = 4
# Padding that rewinding may leave in caches, in tokens.
MOST_SLACK = 64

# MLX keeps freed buffers for use again; after this many steps they are given back.
STEPS_BETWEEN_CLEARING = 256


@define(eq=False)
class _Progress:
    """What has become of a row so far. Times are in nanoseconds on the monotonic clock."""

    row: Row
    answer: Answer
    sampler: RowSampler
    added: int
    sequence: list[int]
    """The prompt, and what has been written behind it."""
    cache: list[Any] = field(factory=list)
    cached: int = 0
    read: int = 0
    kept: int = 0
    """How much of what it has read is in the prefix cache."""
    prompt_read: int = 0
    fetched: int = 0
    """How many blocks were asked of the disk before it began."""
    thought: int = 0
    """How many tokens it has spent on thoughts."""
    drafter: Drafter = field(factory=Drafter)
    given: list[int] = field(factory=list)
    """What of the row the pass under way reads: what it has written and not read, and a draft of what follows."""
    right: int = 0
    """How much of that is known to be right."""
    drafted: int = 0

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


@define(eq=False)
class Batch:
    """The rows of one model. `admit` says whether there is memory for this many bytes of all its rows together."""

    _model: Model
    _backend: Backend
    _prefixes: PrefixCache
    _admit: Callable[["Batch", int], bool]
    _speculation: bool
    _pace: Pace = field(init=False)
    _batchable: bool = field(init=False)
    _plain: bool = field(init=False)
    """Whether caches are plain keys and values, so that what was wrong can be taken back."""
    _speculates: bool = field(init=False)
    _waiting: deque[_Progress] = field(factory=deque, init=False)
    _reading: deque[_Progress] = field(factory=deque, init=False)
    _writing: list[_Progress] = field(factory=list, init=False)
    _parked: dict[int, _Progress] = field(factory=dict, init=False)
    _caches: list[Any] = field(factory=list, init=False)
    _logits: mx.array | None = field(default=None, init=False)
    _launched: tuple[float, int, int] | None = field(default=None, init=False)
    _steps: int = field(default=0, init=False)

    @_pace.default
    def _make_pace(self) -> Pace:
        return Pace(self._backend.prefill_step_size)

    @_batchable.default
    def _find_batchable(self) -> bool:
        return all(hasattr(cache, "merge") for cache in make_prompt_cache(self._model.network))

    @_speculates.default
    def _find_speculates(self) -> bool:
        return self._speculation and self._plain

    @_plain.default
    def _find_plain(self) -> bool:
        return self._batchable and all(type(cache) is KVCache for cache in make_prompt_cache(self._model.network))

    def __len__(self) -> int:
        return len(self._waiting) + len(self._reading) + len(self._writing) + len(self._parked)

    @property
    def busy(self) -> bool:
        """Whether there is a step to do."""
        return bool(self._waiting or self._reading or self._writing)

    @property
    def claimed(self) -> int:
        """What the caches of the rows that have begun may grow to, in bytes."""
        return self._claim([*self._reading, *self._writing])

    def _claim(self, rows: Sequence[_Progress]) -> int:
        # Merged caches are as long as the longest of them in every row.
        longest = max((len(progress.row.prompt) + progress.row.max_tokens for progress in rows), default=0)
        return len(rows) * longest * self._model.token_nbytes

    def add(self, row: Row) -> None:
        """Take a row in, from the next step on."""
        tags = self._model.thought_tags
        thoughts = None if tags is None or row.thinking is None else ThoughtScanner(tags, row.thinking)
        # In JSON a stop string would stop in the middle.
        stops = StopScanner(() if row.shape.grammar is not None else row.stop)
        text = TextAssembler(
            self._model.tokenizer, self._model.end_tokens, stops, thoughts, row.shape.scanner(), self._model.marks
        )
        answer = Answer(
            text,
            self._model.end_tokens,
            row.shape,
            lambda text: list(self._model.tokenizer.encode(text, add_special_tokens=False).ids),
            row.top_logprobs is None,
        )
        sampler = RowSampler.after(row.prompt, row.sampling)
        self._waiting.append(_Progress(row, answer, sampler, monotonic_ns(), list(row.prompt)))

    def remove(self, row_id: int) -> None:
        """Free a row, wherever it has got to; an unknown one is left alone, it has ended by itself."""
        for rows in (self._waiting, self._reading):
            for progress in rows:
                if progress.row.id == row_id:
                    rows.remove(progress)
                    self._retain(progress, leaving=True)
                    return
        self._parked.pop(row_id, None)
        self._take_out(row_id)

    def park(self, row_id: int) -> None:
        """Let a row that writes stand still, until `unpark`; one that does not write yet is left alone.

        What it has read and written is kept like any prefix. Should that be gone by then, it is read again.
        """
        for progress in self._writing:
            if progress.row.id == row_id:
                self._take_out(row_id)
                progress.read, progress.kept, progress.right, progress.given = 0, 0, 0, []
                self._parked[row_id] = progress
                return

    def unpark(self, row_id: int) -> None:
        """Let a row go on where it was; before those that wait to begin."""
        progress = self._parked.pop(row_id, None)
        if progress is not None:
            self._waiting.appendleft(progress)

    def step(self) -> list[tuple[int, Event]]:
        """Draw a token for every row that writes, and read on; return what the rows have to say.

        An error leaves the caches in an unknown state: the rows end with it, and later ones begin anew.
        """
        events: list[tuple[int, Event]] = []
        try:
            self._step(events)
        except Exception:  # noqa: BLE001 - whatever MLX raises, the rows must be told
            log.failure("A step failed; its rows are ended")
            failed = [progress.row.id for progress in (*self._writing, *self._reading, *self._waiting)]
            self._waiting.clear()
            self._reading.clear()
            self._writing, self._caches, self._logits, self._launched = [], [], None, None
            error = InternalError("The engine failed while generating; the server's log has the reason.")
            # A row may have ended in this very step; its listener hears the end that comes first.
            events += [(row_id, Failed(error)) for row_id in failed]
        return events

    def _step(self, events: list[tuple[int, Event]]) -> None:
        """Do a step and append to `events` what the rows say."""
        self._wait()
        for progress in self._reading:
            self._retain(progress)
        if self._logits is not None:
            self._draw(self._logits, events)
        joined = self._join()
        began = perf_counter()
        width = self._launch()
        self._begin(events)
        read = self._read()
        # Neither the copies of a join nor drafts tell what a step takes.
        if (width == 1 or read) and not joined:
            self._launched = (began, len(self._writing), read)
        self._steps += 1
        if self._steps % STEPS_BETWEEN_CLEARING == 0:
            mx.clear_cache()

    def _draw(self, logits: mx.array, events: list[tuple[int, Event]]) -> None:
        """Draw each row's next token, and more where its draft turns out right. Logits: (rows, width, vocabulary)."""
        rows, width = self._writing, logits.shape[1]
        # A row that has written more than was read of it draws nothing yet.
        going = [index for index, progress in enumerate(rows) if progress.in_cache == len(progress.sequence)]
        ended: set[int] = set()
        while going:
            places = [rows[index].right - 1 for index in going]
            if len(set(places)) == 1 and len(going) == len(rows):
                here = logits[:, places[0]]
            else:
                here = logits[mx.array(going), mx.array(places)]
            masks = [rows[index].answer.allowed() for index in going]
            tokens = sample(here, [rows[index].sampler for index in going], masks)
            scores = score(here, tokens, [rows[index].row.top_logprobs for index in going])
            now = monotonic_ns()
            on: list[int] = []
            for index, token, scored in zip(going, tokens, scores, strict=True):
                if not self._wrote(rows[index], token, scored, now, events):
                    rows[index].follow()
                    ended.add(index)
                elif rows[index].follow():
                    on.append(index)
            going = on
        for progress in rows:
            if progress.drafted:
                certain = len(progress.given) - progress.drafted
                progress.drafter.checked(progress.drafted, progress.right - certain)
        self._rewind([width - progress.right for progress in rows])
        for progress in rows:
            progress.read, progress.right, progress.given, progress.drafted = progress.in_cache, 0, [], 0
        self._keep([index for index in range(len(rows)) if index not in ended])

    def _rewind(self, wrong: list[int]) -> None:
        """Take back the last tokens of each row's cache, those of a draft that were wrong."""
        common = min(wrong)
        uneven = [count - common for count in wrong]
        for cache in self._caches:
            if common:
                cache.trim(common)
            if any(uneven):
                cache.prepare(right_padding=uneven)
                cache.finalize()
        if any(uneven) and self._caches[0].size() - max(row.in_cache for row in self._writing) > MOST_SLACK:
            # Uneven ends become padding at the beginning; where no row needs it any more it goes.
            for cache in self._caches:
                cache.filter(list(range(len(self._writing))))

    def _launch(self) -> int:
        """Set a pass over the writing rows in motion, drafts included; return how many tokens of each it takes."""
        if not self._writing:
            return 0
        most = self._most_given()
        for row in self._writing:
            row.given = row.sequence[row.read : row.read + most]
            row.right = len(row.given)
        if most == 1:
            self._draft()
        width = max(len(row.given) for row in self._writing)
        # Rows with less are filled up with anything; it is taken back.
        padded = mx.array([row.given + [0] * (width - len(row.given)) for row in self._writing])
        # The output has the shape (rows, width, vocabulary).
        self._logits = self._model.network(padded, cache=self._caches)
        mx.async_eval(self._logits)
        return width

    def _most_given(self) -> int:
        """Return how much of what each row has written a pass is to read: all, or one token if that pays better."""
        rows = self._writing
        unread = [len(row.sequence) - row.read for row in rows]
        if len(rows) == 1:
            return min(unread[0], MOST_GIVEN_ALONE)
        width = min(max(unread), MOST_GIVEN)
        if not self._plain or width == 1:
            return 1
        return width if self._pace.worth(len(rows), width, sum(min(count, width) for count in unread)) else 1

    def _draft(self) -> None:
        """Have every row draft, if that pays."""
        rows = self._writing
        if not self._speculates or len(rows) > MOST_SPECULATING:
            return
        drafts = [
            row.drafter.draft(row.sequence, row.row.max_tokens - row.written - 1)
            if row.in_cache == len(row.sequence)
            else []
            for row in rows
        ]
        longest = max(map(len, drafts))
        expected = sum(1 + row.drafter.rate * len(draft) for row, draft in zip(rows, drafts, strict=True))
        if not longest or not self._pace.worth(len(rows), 1 + longest, expected):
            return
        for row, draft in zip(rows, drafts, strict=True):
            row.given += draft
            row.drafted = len(draft)

    def _wait(self) -> None:
        """Wait for what the last step set in motion, and learn what it cost."""
        if self._launched is not None:
            mx.synchronize()
            began, writing, read = self._launched
            self._launched = None
            self._pace.took(perf_counter() - began, writing, read)

    def _wrote(
        self, progress: _Progress, token: int, scored: Scored | None, now: int, events: list[tuple[int, Event]]
    ) -> bool:
        """Take a row's next token, append what comes of it to `events`; whether the row goes on."""
        thinking = progress.answer.text.thinking
        written = progress.answer.take(
            token, None if scored is None else self._spelled(scored), progress.row.max_tokens - progress.written
        )
        progress.sequence += written.tokens
        progress.thought += len(written.tokens) if thinking else 0
        progress.sampler.wrote(written.tokens)
        if written.piece:
            events.append((progress.row.id, written.piece))
        if isinstance(written.end, ApiError):
            events.append((progress.row.id, Failed(written.end)))
        elif written.end is not None:
            events.append((progress.row.id, self._finished(progress, written.end, now)))
        return written.end is None

    def _spelled(self, scored: Scored) -> TokenScore:
        spelling = self._model.vocabulary.spelling
        best = tuple(TokenScore(spelling(token), logprob) for token, logprob in scored.best)
        return TokenScore(spelling(scored.token), scored.logprob, best)

    def _finished(self, progress: _Progress, reason: FinishReason, now: int) -> Finished:
        row = progress.row
        return Finished(
            reason=reason,
            usage=Usage(
                prompt_tokens=len(row.prompt),
                completion_tokens=progress.written,
                cached_tokens=progress.cached,
                reasoning_tokens=progress.thought,
            ),
            timings=Timings(
                total=now - row.arrived,
                load=row.load,
                prompt=progress.prompt_read - progress.added,
                generation=now - progress.prompt_read,
            ),
            tokens=tuple(progress.sequence) if row.tell_tokens else (),
        )

    def _keep(self, keep: list[int]) -> None:
        """Let the writing rows at these places stay; the others leave with their part of the caches."""
        if len(keep) == len(self._writing):
            return
        self._remember(set(range(len(self._writing))) - set(keep))
        self._writing = [self._writing[index] for index in keep]
        if not keep:
            self._caches, self._logits = [], None
            return
        for cache in self._caches:
            cache.filter(keep)
        if self._logits is not None:
            self._logits = self._logits[mx.array(keep)]

    def _take_out(self, row_id: int) -> None:
        """Let a row leave those that write, if it is one of them."""
        self._keep([index for index, progress in enumerate(self._writing) if progress.row.id != row_id])

    def _retain(self, progress: _Progress, *, leaving: bool = False) -> None:
        """Keep what a row has read since. At once, bit by bit: a long prompt's copies would be a gap in all streams."""
        layout = self._model.layout
        if layout is None:
            if progress.read // BLOCK > progress.kept // BLOCK:
                self._prefixes.put(self._scope(progress), progress.sequence[: progress.read], progress.cache)
                progress.kept = progress.read
            return
        bounded = progress.read in progress.row.boundaries
        if progress.read > progress.kept and (bounded or not progress.unread or leaving):
            tokens = progress.sequence[: progress.read]
            self._prefixes.put_whole(self._scope(progress), tokens, progress.cache, layout, lasting=bounded)
            progress.kept = progress.read

    def _remember(self, leaving: set[int]) -> None:
        """Keep what the rows at these places have read and written."""
        layout = self._model.layout
        for index in leaving:
            progress = self._writing[index]
            if layout is not None:
                tokens = progress.sequence[: progress.in_cache]
                caches = [cache.extract(index) for cache in self._caches]
                self._prefixes.put_whole(self._scope(progress), tokens, caches, layout, lasting=False)
                continue
            tokens = progress.sequence[: progress.in_cache]
            if self._batchable and len(tokens) // BLOCK > len(progress.row.prompt) // BLOCK:
                self._prefixes.put(self._scope(progress), tokens, [cache.extract(index) for cache in self._caches])

    def _taken(self, progress: _Progress) -> tuple[int, list[Any]]:
        """Return how much of what a row is to read was read before, and caches that hold it."""
        model, tokens = self._model, progress.sequence[:-1]
        if model.layout is None:
            return self._prefixes.take(self._scope(progress), tokens)
        return self._prefixes.take_whole(self._scope(progress), tokens, progress.row.boundaries, model.layout)

    def _scope(self, progress: _Progress) -> str:
        """Return whose prefixes serve a row: those of its model, and of its owner alone.

        How fast an answer begins tells what was read before; nobody should learn that way what others ask.
        """
        return self._model.key + progress.row.owner

    def _join(self) -> bool:
        """Let rows that have read all but their last token write; return whether there were any."""
        most = MOST_WRITING if self._batchable else 1
        joining = [progress for progress in self._reading if not progress.unread][: most - len(self._writing)]
        if not joining:
            return False
        if self._batchable:
            layers = list(zip(*(progress.cache for progress in joining), strict=True))
            before = self._caches or [None] * len(layers)
            self._caches = [join(cache, others) for cache, others in zip(before, layers, strict=True)]
        else:
            self._caches = joining[0].cache
        for progress in joining:
            progress.cache, progress.prompt_read = [], progress.prompt_read or monotonic_ns()
            self._reading.remove(progress)
            self._writing.append(progress)
        return True

    def _begin(self, events: list[tuple[int, Event]]) -> None:
        """Let rows begin to read, in the order they came, as long as there is room."""
        for progress in list(self._waiting):
            if len(self._reading) == MOST_READING:
                return
            if self._read_by_another(progress) or not self._fetched(progress):
                continue
            try:
                if not self._admit(self, self._claim([progress, *self._reading, *self._writing])):
                    return
            except NoRoomYet as error:
                self._waiting.remove(progress)
                events.append((progress.row.id, Failed(error)))
                continue
            self._waiting.remove(progress)
            progress.read, cache = self._taken(progress)
            progress.cache = cache or make_prompt_cache(self._model.network)
            if not progress.written:
                progress.cached = progress.read
            progress.kept = progress.read
            self._reading.append(progress)

    def _read_by_another(self, progress: _Progress) -> bool:
        """Whether another row is just reading what this one begins with, so that it had better wait for it.

        So the answers to one request, and clients with one system prompt, read together what they have in common.
        """
        for other in self._reading:
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

    def _fetched(self, progress: _Progress) -> bool:
        """Whether what the disk holds of a row's prompt is in memory. Bit by bit: it would be a gap in all streams."""
        most = len(progress.sequence) // BLOCK
        if self._model.layout is not None or not self._writing or progress.fetched > most:
            return True
        # Where memory does not hold what is fetched there is an end nevertheless.
        progress.fetched += MOST_FETCHED
        return self._prefixes.fetch(self._scope(progress), progress.sequence[:-1], MOST_FETCHED)

    def _read(self) -> int:
        """Set reading in motion, rows in turn, within this step's allowance; return how many tokens it computes."""
        allowance = chunk = self._pace.chunk(len(self._writing))
        turns = sum(1 for progress in self._reading if progress.unread)
        while turns > 0 and allowance > 0:
            group = self._next_readers(allowance)
            share = allowance // len(group)
            # A pass has its price, however little it reads: what would be left for another is read with this one.
            lengths = [p.stretch if p.stretch < share + LEAST_SHARE else share for p in group]
            self._read_together(group, lengths)
            for progress, length in zip(group, lengths, strict=True):
                progress.read += length
                self._reading.remove(progress)
                self._reading.append(progress)
            turns -= len(group)
            allowance -= len(group) * max(lengths)
        return chunk - allowance

    def _next_readers(self, allowance: int) -> list[_Progress]:
        """Return the row whose turn it is to read, with others that have about as much to read."""
        first, *others = [progress for progress in self._reading if progress.unread]
        most = allowance // LEAST_SHARE if self._plain else 1
        share = allowance // max(1, min(most, 1 + len(others)))
        length = min(first.unread, share)
        alike = [progress for progress in others if length <= 2 * min(progress.unread, share) <= 4 * length]
        return [first, *alike[: max(most - 1, 0)]]

    def _read_together(self, group: list[_Progress], lengths: list[int]) -> None:
        """Have each row read its next so many tokens, in one pass."""
        width = max(lengths)
        tokens = [
            progress.sequence[progress.read : progress.read + length] + [0] * (width - length)
            for progress, length in zip(group, lengths, strict=True)
        ]
        if len(group) == 1:
            self._model.network(mx.array(tokens), cache=group[0].cache)
        else:
            layers = zip(*(progress.cache for progress in group), strict=True)
            merged = [type(caches[0]).merge(list(caches)) for caches in layers]
            for cache in merged:
                cache.prepare(right_padding=[width - length for length in lengths])
            self._model.network(mx.array(tokens), cache=merged)
            for cache in merged:
                cache.finalize()
            for index, progress in enumerate(group):
                progress.cache = [cache.extract(index) for cache in merged]
        mx.async_eval([cache.state for progress in group for cache in progress.cache])
