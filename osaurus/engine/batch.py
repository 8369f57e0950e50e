"""The step loop over the rows that one model is answering at a time.

A row waits, reads its prompt in chunks into a cache of its own (`reading`), then joins the rows that write. One step
draws a token for every writing row from the logits that the step before set in motion, says what came of it, lets rows
leave and join, sets the next forward pass in motion, and behind it as much reading as the time allows. So the device
has work while the host turns tokens into text and events, and a row that has ended is never computed once more.

Where a row's text repeats itself, a pass checks a draft of several tokens at once (`speculation`). Where a grammar left
no choice (`constraint`), several tokens are written at once and read in one pass. All rows get as many places in it as
the longest has, and what was not right in the end is taken back from their caches.

What rows have read and written is kept for those that begin alike (`keeping`).

mlx_lm's BatchGenerator was the first design. It draws one step ahead (so a sampler may not look at its logits), calls
a sampler for every row, reads in chunks of a fixed size and decodes rows once more after their end. What is built on
is the layer below: mlx_lm's cache classes, with `merge`, `extend`, `filter` and `extract`. Models whose rows do not go
together (`batchable`) write one at a time, through the same loop.

Everything here runs on the thread that owns MLX.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from time import monotonic_ns, perf_counter
from traceback import clear_frames
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from attrs import define, field, frozen
from mlx_lm.models.cache import KVCache, make_prompt_cache
from twisted.logger import Logger

from ..chat import ApiError, Event, Failed, InternalError, Piece, TokenScore
from .answer import Answer
from .backend import Backend
from .harmony import ANSWER, HarmonyCalls, HarmonyScanner
from .joining import join, line_up
from .keeping import Keeper
from .loader import Model
from .output import StopScanner, TextAssembler
from .pace import Pace
from .prefixes import PrefixCache
from .progress import Progress
from .reading import Reading
from .runner import Row
from .sampling import RowSampler, greatest, sample
from .scores import Scored, score
from .tally import ModelTally
from .thoughts import ThoughtScanner

log = Logger()

# Rows that write together; more wait.
MOST_WRITING = 32

# Written tokens of a row that are read in one pass: alone, and beside others, which are filled up to as many.
MOST_GIVEN_ALONE = 256
MOST_GIVEN = 16

# Beyond so many rows a pass is not much cheaper than as many tokens in passes of their own.
MOST_SPECULATING = 8
# Padding that rewinding may leave in caches, in tokens.
MOST_SLACK = 64

# MLX keeps freed buffers for use again; after this many steps they are given back.
STEPS_BETWEEN_CLEARING = 256


@frozen
class Rows:
    """How many rows wait to begin, read, write, and stand still."""

    waiting: int
    reading: int
    writing: int
    parked: int


@define(eq=False)
class Batch:
    """The rows of one model.

    `admit` says whether there is memory for all its rows together, given when the one came that is to begin, in
    nanoseconds, and so many bytes.
    """

    _model: Model
    _backend: Backend
    _prefixes: PrefixCache
    _admit: Callable[["Batch", int, int], bool]
    _tally: ModelTally
    _speculation: bool
    _pace: Pace = field(init=False)
    _plain: bool = field(init=False)
    """Whether caches are plain keys and values, so that what was wrong can be taken back."""
    _speculates: bool = field(init=False)
    _keeper: Keeper = field(init=False)
    _reading: Reading = field(init=False)
    _writing: list[Progress] = field(factory=list, init=False)
    _parked: dict[int, Progress] = field(factory=dict, init=False)
    _caches: list[Any] = field(factory=list, init=False)
    _logits: mx.array | None = field(default=None, init=False)
    _launched: tuple[float, int, int, int] | None = field(default=None, init=False)
    _steps: int = field(default=0, init=False)
    _ends: list[tuple[int, Event]] = field(factory=list, init=False)
    """Ends of rows that were ended between two steps."""

    @_pace.default
    def _make_pace(self) -> Pace:
        return Pace(self._backend.prefill_step_size)

    @_keeper.default
    def _make_keeper(self) -> Keeper:
        return Keeper(self._model, self._prefixes)

    @_reading.default
    def _make_reading(self) -> Reading:
        return Reading(self._model, self._keeper, self._pace, self._tally, self._plain)

    @_speculates.default
    def _find_speculates(self) -> bool:
        return self._speculation and self._plain

    @_plain.default
    def _find_plain(self) -> bool:
        return self._model.batchable and all(type(cache) is KVCache for cache in make_prompt_cache(self._model.network))

    def __len__(self) -> int:
        return len(self._reading) + len(self._writing) + len(self._parked) + len(self._ends)

    @property
    def busy(self) -> bool:
        """Whether there is a step to do."""
        return bool(self._reading or self._writing or self._ends)

    @property
    def at_work(self) -> bool:
        """Whether rows read or write, so that there will be room when they end."""
        return bool(self._reading.readers or self._writing or self._ends)

    @property
    def rows(self) -> Rows:
        """How many rows there are of each kind."""
        return Rows(len(self._reading.waiting), len(self._reading.readers), len(self._writing), len(self._parked))

    @property
    def claimed(self) -> int:
        """What the caches of the rows that have begun may grow to, in bytes."""
        return self._claim([*self._reading.readers, *self._writing])

    def _claim(self, rows: Sequence[Progress]) -> int:
        # Merged caches are as long as the longest of them in every row, and grow by a step at a time: those that are
        # put together here to whole steps, mlx_lm's own from wherever they are.
        longest = max((len(progress.row.prompt) + progress.row.max_tokens for progress in rows), default=0)
        grown: int = longest + (-longest % KVCache.step if self._plain else KVCache.step)
        # A row that may be as long as there is memory for is not refused for the rest of its last step.
        grown = min(grown, self._model.context_length)
        return len(rows) * (grown * self._model.token_nbytes + self._model.row_nbytes)

    def _has_room(self, reading: Sequence[Progress]) -> bool:
        """Tell whether there is room for these rows, the first of which is to begin, beside those that write.

        Raises NoRoomYet if there will be none.
        """
        return self._admit(self, reading[0].row.arrived, self._claim([*reading, *self._writing]))

    def add(self, row: Row) -> None:
        """Take a row in, from the next step on."""
        tags, calls = self._model.thought_tags, row.shape.scanner()
        thoughts: ThoughtScanner | HarmonyScanner | None = None
        opening: list[int] = []
        if row.thinking is not None and self._model.harmony:
            thoughts = HarmonyScanner(calls if isinstance(calls, HarmonyCalls) else None, row.thinking)
            opening = self._encode(ANSWER)
        elif row.thinking is not None and tags is not None:
            thoughts = ThoughtScanner(tags, row.thinking)
        # In JSON a stop string would stop in the middle.
        stops = StopScanner(() if row.shape.grammar is not None else row.stop)
        text = TextAssembler(
            self._model.tokenizer,
            self._model.end_tokens,
            stops,
            thoughts,
            calls,
            self._model.marks,
            row.prompt if row.continues else (),
        )
        answer = Answer(
            text,
            self._model.end_tokens,
            row.shape,
            self._encode,
            row.top_logprobs is None,
            opening,
        )
        sampler = RowSampler.after(row.prompt, row.sampling)
        self._reading.waiting.append(Progress(row, answer, sampler, list(row.prompt)))

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = self._model.tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    def remove(self, row_id: int) -> None:
        """Free a row, wherever it has got to; an unknown one is left alone, it has ended by itself."""
        try:
            if not self._reading.remove(row_id):
                self._parked.pop(row_id, None)
                self._take_out(row_id)
        except Exception:  # noqa: BLE001 - what the pass under way came to shows where its arrays are looked at
            self._ends += self._end_all()

    def park(self, row_id: int) -> None:
        """Let a row that writes stand still, until `unpark`; one that does not write yet is left alone.

        What it has read and written is kept like any prefix. Should that be gone by then, it is read again.
        """
        for progress in self._writing:
            if progress.row.id == row_id:
                try:
                    self._take_out(row_id)
                except Exception:  # noqa: BLE001 - as in `remove`
                    self._ends += self._end_all()
                    return
                progress.read, progress.kept, progress.fetched, progress.wrote = 0, 0, 0, 0
                progress.right, progress.given = 0, []
                self._parked[row_id] = progress
                return

    def unpark(self, row_id: int) -> None:
        """Let a row go on where it was; before those that wait to begin."""
        progress = self._parked.pop(row_id, None)
        if progress is not None:
            self._reading.waiting.appendleft(progress)

    def step(self) -> Iterator[list[tuple[int, Event]]]:
        """Draw a token for every row that writes, and read on; yield what the rows have to say.

        An error leaves the caches in an unknown state: the rows end with it, and later ones begin anew.
        """
        events, self._ends = self._ends, []
        try:
            began, width, joined = self._write(events)
            # Reading may take as long as several steps.
            yield events
            events = []
            self._read(began, width, joined, events)
        except Exception:  # noqa: BLE001 - whatever MLX raises, the rows must be told
            # A row may have ended in this very step; its listener hears the end that comes first.
            events += self._end_all()
        yield events

    def _end_all(self) -> list[tuple[int, Event]]:
        """Let all rows leave that read or write; return their ends. In an except clause."""
        failed = [*self._writing, *self._reading.clear()]
        log.failure("A step failed; its rows are ended", request_ids=_requests(failed))
        self._writing, self._caches, self._logits, self._launched = [], [], None, None
        ends: list[tuple[int, Event]] = [(progress.row.id, _failed()) for progress in failed]
        # If there was no memory, those who come next need it: what the failed step held, and what is kept of prefixes.
        failed.clear()
        clear_frames(getattr(sys.exception(), "__traceback__", None))
        self._prefixes.squeeze(0)
        mx.clear_cache()
        return ends

    def _write(self, events: list[tuple[int, Event]]) -> tuple[float, int, bool]:
        """Draw what rows write, append to `events` what they say, and set the next pass in motion.

        Return when that began, how many tokens of each row it takes, and whether rows joined for it.
        """
        self._wait()
        self._reading.keep()
        if self._logits is not None:
            self._draw(self._logits, events)
        joined = self._join(events)
        began = perf_counter()
        return began, self._launch(), joined

    def _read(self, began: float, width: int, joined: bool, events: list[tuple[int, Event]]) -> None:
        """Set in motion, behind a pass that began then, as much reading as the time allows."""
        self._reading.begin(bool(self._writing), self._has_room, events)
        read = self._reading.read(len(self._writing), width)
        # The copies of a join do not tell what a step takes.
        if not joined:
            self._launched = (began, len(self._writing), read, width)
        self._steps += 1
        if self._steps % STEPS_BETWEEN_CLEARING == 0:
            mx.clear_cache()

    def _draw(self, logits: mx.array, events: list[tuple[int, Event]]) -> None:
        """Draw each row's next token, and more where its draft turns out right. Logits: (rows, width, vocabulary)."""
        rows, width = self._writing, logits.shape[1]
        # A row that has written more than was read of it draws nothing yet.
        going = [index for index, progress in enumerate(rows) if progress.in_cache == len(progress.sequence)]
        ended: set[int] = set()
        # Tokens that a row draws at once are told at once: each piece costs its reader's thread, and a client, as much.
        pieces: dict[int, Piece] = {}
        ends: list[tuple[int, Event]] = []
        # Nothing is written unless something is drawn.
        now = 0
        # One wait for the device, not one for each token that was foretold.
        best = None
        if width > 1 and all(row.sampler.plain for row in rows):
            best = greatest(logits.reshape(-1, logits.shape[-1])).reshape(logits.shape[:2])
        while going:
            masks: list[npt.NDArray[np.bool_] | None] = []
            for index in list(going):
                try:
                    masks.append(rows[index].answer.allowed())
                except BaseException:  # noqa: BLE001 - none of the others' business; Rust's panics are no Exceptions
                    ends.append((rows[index].row.id, self._broken(rows[index])))
                    ended.add(index)
                    going.remove(index)
            if not going:
                break
            places = [rows[index].right - 1 for index in going]
            if len(set(places)) == 1 and len(going) == len(rows):
                here = logits[:, places[0]]
            else:
                here = logits[mx.array(going), mx.array(places)]
            if best is None or any(mask is not None for mask in masks):
                tokens = sample(here, [rows[index].sampler for index in going], masks)
            else:
                tokens = [int(best[index, place]) for index, place in zip(going, places, strict=True)]
            scores = score(here, tokens, [rows[index].row.top_logprobs for index in going])
            now = monotonic_ns()
            on: list[int] = []
            for index, token, scored in zip(going, tokens, scores, strict=True):
                number = rows[index].row.id
                try:
                    piece, end = self._wrote(rows[index], token, scored, now)
                except BaseException:  # noqa: BLE001 - as above
                    piece, end = Piece(""), self._broken(rows[index])
                if piece:
                    pieces[number] = pieces[number] + piece if number in pieces else piece
                follows = rows[index].follow()
                if end is not None:
                    ends.append((number, end))
                    ended.add(index)
                elif follows:
                    on.append(index)
            going = on
        events += [*pieces.items(), *ends]
        self._rewind([width - progress.right for progress in rows])
        for progress in rows:
            progress.count(self._tally, now)
            progress.read, progress.right, progress.given = progress.in_cache, 0, []
        self._keep([index for index in range(len(rows)) if index not in ended])

    def _rewind(self, wrong: list[int]) -> None:
        """Take back the last tokens of each row's cache, those of a draft that were wrong."""
        common = min(wrong)
        uneven = [count - common for count in wrong]
        if common:
            for cache in self._caches:
                cache.trim(common)
        line_up(self._caches, uneven)
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
        """Return how much of what each row has written a pass is to read: as much as pays best."""
        rows = self._writing
        unread = [len(row.sequence) - row.read for row in rows]
        if len(rows) == 1:
            return min(unread[0], MOST_GIVEN_ALONE)
        if not self._plain or max(unread) == 1:
            return 1

        def gain(width: int) -> float:
            return self._pace.gain(len(rows), width, sum(min(count, width) for count in unread))

        return max(range(1, min(max(unread), MOST_GIVEN, self._room) + 1), key=gain)

    @property
    def _room(self) -> int:
        """How many tokens a pass may take, for every row to stay within the context: learned positions end there."""
        return max(1, self._model.context_length - max(row.read for row in self._writing))

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

        def expected(width: int) -> float:
            return sum(
                row.drafter.expected(min(len(draft), width - 1)) for row, draft in zip(rows, drafts, strict=True)
            )

        def gain(width: int) -> float:
            return self._pace.gain(len(rows), width, expected(width))

        most = min(1 + max(map(len, drafts)), self._room)
        if not all(drafts) or self._reading.pressing:
            most = min(most, self._pace.widest(len(rows)))
        width = max(range(1, most + 1), key=gain)
        if self._pace.worth(len(rows), width, expected(width)):
            for row, draft in zip(rows, drafts, strict=True):
                row.given += draft[: width - 1]

    def _wait(self) -> None:
        """Wait for what the last step set in motion, and learn what it cost."""
        if self._launched is not None:
            mx.synchronize()
            began, *done = self._launched
            self._launched = None
            self._pace.took(perf_counter() - began, *done)

    def _wrote(self, progress: Progress, token: int, scored: Scored | None, now: int) -> tuple[Piece, Event | None]:
        """Take a row's next token; return what it says, and its end if that is one."""
        thinking = progress.answer.text.thinking
        written = progress.answer.take(
            token, None if scored is None else self._spelled(scored), progress.row.max_tokens - progress.written
        )
        progress.sequence += written.tokens
        progress.thought += len(written.tokens) if thinking else 0
        progress.sampler.wrote(written.tokens)
        if isinstance(written.end, ApiError):
            return written.piece, Failed(written.end)
        return written.piece, None if written.end is None else progress.finished(written.end, now)

    def _broken(self, progress: Progress) -> Failed:
        """Return the end of an answer that cannot be gone on with. In an except clause."""
        log.failure("An answer failed", request_ids=_requests([progress]))
        return _failed()

    def _spelled(self, scored: Scored) -> TokenScore:
        spelling = self._model.vocabulary.spelling
        best = tuple(TokenScore(spelling(token), logprob) for token, logprob in scored.best)
        return TokenScore(spelling(scored.token), scored.logprob, best)

    def _keep(self, keep: list[int]) -> None:
        """Let the writing rows at these places stay; the others leave with their part of the caches."""
        if len(keep) == len(self._writing):
            return
        for index in set(range(len(self._writing))) - set(keep):
            self._keeper.keep_written(self._writing[index], self._caches, index)
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

    def _join(self, events: list[tuple[int, Event]]) -> bool:
        """Let rows that have read all but their last token write; return whether there were any."""
        most = MOST_WRITING if self._model.batchable else 1
        joining = self._reading.ready(most - len(self._writing))
        if not joining:
            return False
        if self._model.batchable:
            layers = list(zip(*(progress.cache for progress in joining), strict=True))
            before = self._caches or [None] * len(layers)
            self._caches = [join(cache, others) for cache, others in zip(before, layers, strict=True)]
        else:
            self._caches = joining[0].cache
        # Until here they are among the readers: none is nowhere when something fails.
        self._reading.leave(joining)
        for progress in joining:
            progress.cache, progress.prompt_read = [], progress.prompt_read or monotonic_ns()
            self._writing.append(progress)
            if progress.echoes:
                events.append((progress.row.id, self._echo(progress)))
        return True

    def _echo(self, progress: Progress) -> Piece:
        """Return a row's prompt, with the scores of its tokens."""
        first = TokenScore(self._model.vocabulary.spelling(progress.row.prompt[0]), None)
        scores = (first, *map(self._spelled, progress.scored))
        progress.scored, progress.echoed = [], True
        return Piece(progress.row.echo, scores)


def _failed() -> Failed:
    return Failed(InternalError("The engine failed while generating; the server's log has the reason."))


def _requests(rows: Sequence[Progress]) -> list[str]:
    """Return the ids that rows were asked for with, for the log."""
    return sorted({progress.row.request.request_id for progress in rows if progress.row.request is not None})
