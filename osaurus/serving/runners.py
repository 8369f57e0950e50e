"""Which runner answers for which model."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import Deferred

from ..chat import Event, Failed, Finished, ResidentModel
from ..engine.runner import LoadedModel, Row


class Runner(Protocol):
    """What generates answers; see MLXRunner."""

    @property
    def problem(self) -> str | None: ...  # noqa: D102
    def load(self, name: str, folder: Path) -> Deferred[LoadedModel]: ...  # noqa: D102
    def unload(self, name: str) -> Deferred[None]: ...  # noqa: D102
    def resident(self) -> Deferred[list[ResidentModel]]: ...  # noqa: D102
    def submit(self, name: str, folder: Path, row: Row, deliver: Callable[[Event], None]) -> None: ...  # noqa: D102
    def cancel(self, row_id: int) -> None: ...  # noqa: D102
    def park(self, row_id: int) -> None: ...  # noqa: D102
    def unpark(self, row_id: int) -> None: ...  # noqa: D102


@define(eq=False)
class RunnerForEach:
    """One runner for the models that are named, another for all others, behind the face of one.

    Whether answers can be generated, and what is in memory, is what the other says: those that are named here are the
    operating system's.
    """

    _other: Runner
    _named: dict[str, Runner]
    _rows: dict[int, Runner] = field(factory=dict, init=False)

    @property
    def problem(self) -> str | None:
        """Why no answer can be generated; None while one can."""
        return self._other.problem

    def load(self, name: str, folder: Path) -> Deferred[LoadedModel]:
        """Have a model in memory."""
        return self._of(name).load(name, folder)

    def unload(self, name: str) -> Deferred[None]:
        """Give back a model's memory."""
        return self._of(name).unload(name)

    def resident(self) -> Deferred[list[ResidentModel]]:
        """Fires with the models in memory."""
        return self._other.resident()

    def submit(self, name: str, folder: Path, row: Row, deliver: Callable[[Event], None]) -> None:
        """Generate a row; its events go to `deliver`."""
        self._rows[row.id] = self._of(name)

        def deliver_until_the_end(event: Event) -> None:
            if isinstance(event, (Finished, Failed)):
                self._rows.pop(row.id, None)
            deliver(event)

        self._rows[row.id].submit(name, folder, row, deliver_until_the_end)

    def cancel(self, row_id: int) -> None:
        """Free a row."""
        runner = self._rows.pop(row_id, None)
        if runner is not None:
            runner.cancel(row_id)

    def park(self, row_id: int) -> None:
        """Let a row stand still."""
        if row_id in self._rows:
            self._rows[row_id].park(row_id)

    def unpark(self, row_id: int) -> None:
        """Let a row go on."""
        if row_id in self._rows:
            self._rows[row_id].unpark(row_id)

    def _of(self, name: str) -> Runner:
        return self._named.get(name, self._other)
