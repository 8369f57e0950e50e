"""The step loop over the rows that one model is answering at a time.

mlx_lm's BatchGenerator does the continuous batching: rows join and leave between steps, and each step decodes one
token for every row and reads at most one chunk of prompts. This module puts our rows into it and takes events out.
Everything here runs on the thread that owns MLX.
"""

from time import monotonic_ns

from attrs import define, field
from mlx_lm.generate import BatchGenerator
from twisted.logger import Logger

from ..chat import Event, Failed, Finished, FinishReason, InternalError, Piece, Timings, Usage
from .backend import Backend
from .loader import Model
from .output import StopScanner, TextAssembler
from .runner import Row
from .sampling import make_sampler

log = Logger()

# More rows than this wait in the generator for a place.
MOST_ROWS = 32


@define
class _Progress:
    """What has become of a row so far."""

    row: Row
    text: TextAssembler
    added: int
    prompt_read: int | None = None
    tokens: int = 0


@define
class Batch:
    """The rows of one model."""

    _model: Model
    _backend: Backend
    _generator: BatchGenerator = field(init=False)
    _rows: dict[int, _Progress] = field(factory=dict, init=False)
    _uids: dict[int, int] = field(factory=dict, init=False)

    @_generator.default
    def _make_generator(self) -> BatchGenerator:
        return BatchGenerator(
            self._model.network,
            stop_tokens=[[token] for token in self._model.end_tokens],
            completion_batch_size=MOST_ROWS,
            prefill_batch_size=4,
            prefill_step_size=self._backend.prefill_step_size,
        )

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> None:
        """Take a row in, from the next step on."""
        text = TextAssembler(self._model.tokenizer, self._model.end_tokens, StopScanner(row.stop))
        [uid] = self._generator.insert([row.prompt], [row.max_tokens], samplers=[make_sampler(row.sampling)])
        self._rows[uid] = _Progress(row, text, monotonic_ns())
        self._uids[row.id] = uid

    def remove(self, row_id: int) -> None:
        """Free a row, wherever it has got to; an unknown one is left alone, it has ended by itself."""
        uid = self._uids.pop(row_id, None)
        if uid is not None:
            del self._rows[uid]
            self._generator.remove([uid])

    def step(self) -> list[tuple[int, Event]]:
        """Decode one token for each row that is writing and read some of the prompts that wait.

        An error of the generator leaves it in an unknown state: its rows end with that error and a new generator
        takes its place.
        """
        try:
            prompts, tokens = self._generator.next()
        except Exception:  # noqa: BLE001 - whatever MLX raises, the rows must be told
            log.failure("A step failed; its rows are ended")
            failed = [progress.row.id for progress in self._rows.values()]
            self._rows.clear()
            self._uids.clear()
            self._generator = self._make_generator()
            error = InternalError("The engine failed while generating; the server's log has the reason.")
            return [(row_id, Failed(error)) for row_id in failed]
        now = monotonic_ns()
        for prompt in prompts:
            if prompt.end_of_prompt:
                self._rows[prompt.uid].prompt_read = now
        return [event for token in tokens for event in self._token(token.uid, token.token, token.finish_reason, now)]

    def _token(self, uid: int, token: int, ended: FinishReason | None, now: int) -> list[tuple[int, Event]]:
        progress = self._rows[uid]
        progress.tokens += 1
        text, stopped = progress.text.add(token)
        if not stopped and ended is not None:
            text += progress.text.flush()
        row_id = progress.row.id
        events: list[tuple[int, Event]] = [(row_id, Piece(text))] if text else []
        if stopped or ended is not None:
            events.append((row_id, self._finished(progress, "stop" if stopped or ended is None else ended, now)))
            if ended is None:
                self.remove(row_id)
            else:
                del self._rows[uid], self._uids[row_id]
        return events

    def _finished(self, progress: _Progress, reason: FinishReason, now: int) -> Finished:
        row = progress.row
        prompt_read = now if progress.prompt_read is None else progress.prompt_read
        return Finished(
            reason=reason,
            usage=Usage(prompt_tokens=len(row.prompt), completion_tokens=progress.tokens),
            timings=Timings(
                total=now - row.arrived,
                load=row.load,
                prompt=prompt_read - progress.added,
                generation=now - prompt_read,
            ),
        )
