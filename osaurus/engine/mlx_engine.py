"""The models in memory and the rows being answered on each: what the engine thread drives.

Like all modules that import MLX, this one may be imported only after `backend.prepare`.
"""

import ctypes
import gc
import platform
from pathlib import Path

import mlx.core as mx
from attrs import define, field

from ..chat import Event
from .backend import Backend
from .batch import Batch
from .loader import Model, load
from .prefixes import PrefixCache
from .runner import Row


@define
class MLXEngine:
    """One or more models, each with its batch. Everything here runs on the thread that made it.

    A model stays until it is unloaded or another one needs to be loaded while it has nothing to do.
    """

    _backend: Backend
    _prefixes: PrefixCache
    _resident: dict[str, tuple[Model, Batch]] = field(factory=dict, init=False)
    _leaving: set[str] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        # The thread may have had an engine before, which gave the thread's streams back when it was closed.
        mx.set_default_stream(mx.new_stream(mx.default_device()))

    def load(self, name: str, folder: Path) -> Model:
        """Return the model, loading it if it is not in memory. Raises ModelLoadFailed."""
        self._leaving.discard(name)
        model, _ = self._reside(name, folder)
        return model

    def unload(self, name: str) -> None:
        """Give back a model's memory, now or when its last row has ended."""
        if name in self._resident:
            self._leaving.add(name)
            self._let_go()

    def add(self, name: str, folder: Path, row: Row) -> None:
        """Take a row in, from the next step on. Raises ModelLoadFailed if the model had to be loaded again."""
        _, batch = self._reside(name, folder)
        batch.add(row)

    def remove(self, row_id: int) -> None:
        """Free a row, wherever it has got to."""
        for _, batch in self._resident.values():
            batch.remove(row_id)
        self._let_go()

    @property
    def busy(self) -> bool:
        """Whether there is a step to do."""
        return any(batch for _, batch in self._resident.values())

    def step(self) -> list[tuple[int, Event]]:
        """Do one step of every batch that has rows; return the events, each with its row's id."""
        events = [event for _, batch in list(self._resident.values()) if batch for event in batch.step()]
        self._let_go()
        return events

    def close(self) -> None:
        """Give everything back; the thread may end after this."""
        self._drop(list(self._resident))
        # A thread that used MLX and ends without this aborts the process at exit.
        mx.synchronize()
        mx.clear_streams()

    def _reside(self, name: str, folder: Path) -> tuple[Model, Batch]:
        """Return the model with its batch, loading it if it is not in memory."""
        if name not in self._resident:
            self._drop([other for other, (_, batch) in self._resident.items() if not batch])
            model = load(name, folder, self._backend)
            self._resident[name] = (model, Batch(model, self._backend, self._prefixes))
        return self._resident[name]

    def _let_go(self) -> None:
        if self._leaving:
            self._drop([name for name in self._leaving if not self._resident[name][1]])

    def _drop(self, names: list[str]) -> None:
        for name in names:
            model, _ = self._resident.pop(name)
            self._prefixes.forget(model)
            self._leaving.discard(name)
        if names:
            gc.collect()
            mx.clear_cache()
            if platform.system() == "Linux":
                # glibc keeps freed memory for itself unless asked.
                ctypes.CDLL(None).malloc_trim(0)
