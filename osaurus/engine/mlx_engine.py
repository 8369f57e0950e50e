"""The models in memory and the rows being answered on each: what the engine thread drives.

Like all modules that import MLX, this one may be imported only after `backend.prepare`.
"""

import ctypes
import gc
import platform
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import mlx.core as mx
from attrs import define, field

from ..chat import Event, NoRoomYet, ResidentModel
from ..figures import Figures
from .backend import Backend
from .batch import Batch
from .loader import Model, identity, load
from .prefixes import PrefixCache
from .runner import Row
from .tally import Tally

# After so many steps without fruit, models take no turns any more; if no row can begin then, one is told so.
TAKE_TURNS = 1


@define
class MLXEngine:
    """One or more models, each with its batch. Everything here runs on the thread that made it.

    MLX ends the process when memory runs out, so everything that takes much of it has its place in `memory_limit`, in
    bytes, before it begins: models by their weights, rows by what their caches may grow to. What does not fit makes
    room in turn: what is kept of prefixes goes first, then models that have nothing to do, the least recently used one
    first. What does not fit even then waits, and whoever comes later waits behind it: newcomers to one model would keep
    a large row of another out for good.
    """

    _backend: Backend
    _prefixes: PrefixCache
    _memory_limit: int
    _speculation: bool = True
    _tally: Tally = field(factory=Tally)
    _resident: dict[str, tuple[Model, Batch]] = field(factory=dict, init=False)
    _leaving: set[str] = field(factory=set, init=False)
    _numbers: Iterator[int] = field(factory=count, init=False)
    _sizes: dict[str, tuple[tuple[str, ...], int]] = field(factory=dict, init=False)
    """What models took when room was asked for them, with the identity of their files."""
    _refused: list[int] = field(factory=list, init=False)
    """When the rows came that found no room in the step before."""
    _refusing: list[int] = field(factory=list, init=False)
    """The same in this step."""
    _fruitless: int = field(default=0, init=False)
    """How many steps in a row nothing was at work, and rows found no room."""
    _stalled: bool = field(default=False, init=False)
    """Whether nothing can be done until something is said: rows wait for room that rows have which stand still."""

    def __attrs_post_init__(self) -> None:
        # The thread may have had an engine before, which gave the thread's streams back when it was closed.
        mx.set_default_stream(mx.new_stream(mx.default_device()))

    def load(self, name: str, folder: Path) -> Model:
        """Return the model, loading it if it is not in memory. Raises ModelLoadFailed, NoRoomYet."""
        self._look_again()
        self._leaving.discard(name)
        if name in self._resident and self._replaced_on_disk(name, folder):
            # Other files are there by now. Rows of the old ones go on to their end.
            old = f"{name} {next(self._numbers)}"
            self._resident[old] = self._resident.pop(name)
            self.unload(old)
        model, _ = self._reside(name, folder)
        return model

    def unload(self, name: str) -> None:
        """Give back a model's memory, now or when its last row has ended."""
        if name in self._resident:
            self._leaving.add(name)
            self._let_go()

    def add(self, name: str, folder: Path, row: Row) -> None:
        """Take a row in, from the next step on. Raises what `load` does, if the model has gone meanwhile."""
        self._look_again()
        _, batch = self._reside(name, folder)
        batch.add(row)

    def remove(self, row_id: int) -> None:
        """Free a row, wherever it has got to."""
        self._look_again()
        for _, batch in self._resident.values():
            batch.remove(row_id)
        self._let_go()
        self._tell()

    def park(self, row_id: int) -> None:
        """Let a row stand still until `unpark`."""
        for _, batch in self._resident.values():
            batch.park(row_id)
        self._tell()

    def unpark(self, row_id: int) -> None:
        """Let a row go on where it was."""
        self._look_again()
        for _, batch in self._resident.values():
            batch.unpark(row_id)

    def resident(self) -> list[ResidentModel]:
        """Return the models in memory."""
        # Of two with one name the one whose files are there is the later.
        models = {model.name: model for model, _ in self._resident.values()}
        return [
            ResidentModel(
                id=name,
                nbytes=nbytes,
                on_gpu=self._backend.device != "cpu",
                context_length=models[name].context_length,
            )
            for name, nbytes in self._models_nbytes().items()
        ]

    def figures(self) -> Figures:
        """Return how it stands; after each step, so it takes microseconds."""
        rows = [batch.rows for _, batch in self._resident.values()]
        return Figures(
            waiting=sum([counts.waiting for counts in rows]),
            reading=sum([counts.reading for counts in rows]),
            writing=sum([counts.writing for counts in rows]),
            parked=sum([counts.parked for counts in rows]),
            models_nbytes=self._models_nbytes(),
            rows_nbytes=sum([batch.claimed for _, batch in self._resident.values()]),
            prefixes_nbytes=self._prefixes.nbytes,
            prefix_files_nbytes=self._prefixes.files_nbytes,
            memory_limit=self._memory_limit,
        )

    def _models_nbytes(self) -> dict[str, int]:
        """Return what the weights of each model take, by its name."""
        nbytes: dict[str, int] = {}
        for model, _ in self._resident.values():
            # One whose files were replaced stays beside the new one for as long as it has rows.
            nbytes[model.name] = nbytes.get(model.name, 0) + model.nbytes
        return nbytes

    @property
    def busy(self) -> bool:
        """Whether there is a step to do."""
        return self._prefixes.unwritten or self._has_rows

    @property
    def _has_rows(self) -> bool:
        return not self._stalled and any(batch.busy for _, batch in self._resident.values())

    def _look_again(self) -> None:
        """See whether there is room for rows that found none, now that something is different."""
        self._fruitless, self._stalled = 0, False

    def _tell(self) -> None:
        """Let those who write files know whether they are in anybody's way."""
        self._prefixes.tell(quiet=not self._has_rows)

    def step(self) -> Iterator[list[tuple[int, Event]]]:
        """Do one step of every batch that has rows; yield the events as they come, each with its row's id."""
        self._prefixes.squeeze(self._memory_limit - self._taken(None))
        self._tell()
        self._prefixes.write_one()
        self._refused, self._refusing = self._refusing, []
        for name in list(self._resident):
            # Looked up one by one: a model that makes room in this step must not be held by it.
            if name in self._resident and self._resident[name][1].busy:
                yield from self._resident[name][1].step()
        batches = [batch for _, batch in self._resident.values()]
        self._fruitless = 0 if not self._refusing or any(batch.at_work for batch in batches) else self._fruitless + 1
        self._stalled = self._fruitless > TAKE_TURNS and any(batch.rows.parked for batch in batches)
        self._let_go()
        self._tell()

    def close(self) -> None:
        """Give everything back; the thread may end after this."""
        # Should anything fail here, models must not stay for good.
        gc.unfreeze()
        self._prefixes.tell(quiet=True)
        while self._prefixes.unwritten:
            self._prefixes.write_one()
        self._drop(list(self._resident))
        # A thread that used MLX and ends without this aborts the process at exit.
        mx.synchronize()
        mx.clear_streams()

    def _replaced_on_disk(self, name: str, folder: Path) -> bool:
        try:
            return self._resident[name][0].identity != identity(folder)
        except OSError:
            # Loading it will say what is wrong.
            return True

    def _reside(self, name: str, folder: Path) -> tuple[Model, Batch]:
        """Return the model with its batch, loading it if it is not in memory."""
        if name in self._resident:
            # The last one is the one that was used last.
            self._resident[name] = self._resident.pop(name)
        else:
            model = load(name, folder, self._backend, self._memory_limit, self._make_room_for(name, folder))
            tally = self._tally.of(name)
            batch = Batch(model, self._backend, self._prefixes, self._admit, tally, self._speculation)
            self._resident[name] = model, batch
            # What a model brings stays: looking through it for garbage was a gap of several steps in all streams.
            gc.collect()
            gc.freeze()
        return self._resident[name]

    def _make_room_for(self, name: str, folder: Path) -> Callable[[int], None]:
        """Return what makes room for a model's weights. Raises NoRoomYet if it is known already that there is none.

        Else each attempt would build the network first, which is a gap in all streams.
        """
        try:
            files = identity(folder)
        except OSError:
            # Loading it will say what is wrong.
            return self._make_room
        known = self._sizes.get(name)
        if known is not None and known[0] == files:
            self._make_room(known[1])

        def make_room(nbytes: int) -> None:
            self._sizes[name] = files, nbytes
            self._make_room(nbytes)

        return make_room

    def _admit(self, batch: Batch, arrived: int, nbytes: int) -> bool:
        """Tell whether a batch may take this much memory in all, a row's included that came then; if not, then later.

        Raises NoRoomYet if nobody is at work, or stands still, who would make room, and nobody else can begin either.
        """
        if self._fruitless < TAKE_TURNS and any(row < arrived for row in (*self._refused, *self._refusing)):
            return False
        try:
            self._make_room(nbytes, batch)
        except NoRoomYet:
            if self._fruitless > TAKE_TURNS and not any(other.rows.parked for _, other in self._resident.values()):
                # One at a time: without it there may be room for the next.
                self._fruitless = 0
                raise
            self._refusing.append(arrived)
            return False
        return True

    def _make_room(self, nbytes: int, batch: Batch | None = None) -> None:
        """Have this much memory free for a batch beside its model, or else for a model. Raises NoRoomYet."""
        for name in list(self._resident):
            if self._taken(batch) + nbytes <= self._memory_limit:
                break
            if not self._resident[name][1] and self._resident[name][1] is not batch:
                self._drop([name])
        taken = self._taken(batch)
        if taken + nbytes > self._memory_limit:
            raise NoRoomYet(
                f"This needs {nbytes / 2**30:.2f} GiB of memory, and {taken / 2**30:.2f} GiB of "
                f"{self._memory_limit / 2**30:.2f} GiB are in use",
                retry_after=5,
            )
        self._prefixes.squeeze(self._memory_limit - taken - nbytes)

    def _taken(self, apart_from: Batch | None) -> int:
        """Return what models and rows may take, apart from the rows of this batch."""
        rows = sum(batch.claimed for _, batch in self._resident.values() if batch is not apart_from)
        return rows + sum(model.nbytes for model, _ in self._resident.values())

    def _let_go(self) -> None:
        if self._leaving:
            self._drop([name for name in self._leaving if not self._resident[name][1]])

    def _drop(self, names: list[str]) -> None:
        for name in names:
            # No name may hold the model any longer when its memory is asked back.
            self._prefixes.forget(self._resident.pop(name)[0].key)
            self._leaving.discard(name)
        if names:
            gc.unfreeze()
            gc.collect()
            if self._resident:
                gc.freeze()
            mx.clear_cache()
            if platform.system() == "Linux":
                # glibc keeps freed memory for itself unless asked.
                ctypes.CDLL(None).malloc_trim(0)
