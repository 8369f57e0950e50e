"""The one thread that owns MLX: commands in, events out.

MLX arrays belong to the thread that made them, so models are loaded, kept and run on a single thread for as long as
the server runs. The reactor puts commands into a queue; the thread takes them between steps, and sleeps on the queue
when there is nothing to do. What the thread has to say crosses to the reactor through `Crossing`, once a step for all
rows together. Only plain values cross.

How to test it: hand in something that only remembers what it should run in place of the pool's `callInThread`, a
`call_from_thread` that calls, and drive `turn` by hand.

This module does not import MLX: the engine is made on the thread, when it starts.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..chat import ApiError, Event, Failed, Finished, InternalError, Sampling, ServiceUnavailable
from .prompt import PromptEncoder

log = Logger()

T = TypeVar("T")
Thunk = Callable[[], object]


@frozen(kw_only=True)
class Row:
    """One answer to be generated. Times are in nanoseconds, `arrived` on the monotonic clock."""

    id: int
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    arrived: int
    load: int
    top_logprobs: int | None = None


class LoadedModel(Protocol):
    """What of a loaded model may be used on any thread."""

    @property
    def prompt(self) -> PromptEncoder:
        """Renders and tokenises conversations for it."""


class Engine(Protocol):
    """What the thread drives; see MLXEngine."""

    def load(self, name: str, folder: Path) -> LoadedModel: ...  # noqa: D102
    def unload(self, name: str) -> None: ...  # noqa: D102
    def add(self, name: str, folder: Path, row: Row) -> None: ...  # noqa: D102
    def remove(self, row_id: int) -> None: ...  # noqa: D102
    @property
    def busy(self) -> bool: ...  # noqa: D102
    def step(self) -> list[tuple[int, Event]]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


Command = Callable[[Engine], None]


def _explained(error: Exception) -> ApiError:
    """Return an error that may be told to a client; what is not one of those goes to the log. In an except clause."""
    if isinstance(error, ApiError):
        return error
    log.failure("The engine failed to do as it was told")
    return InternalError("The engine failed; the server's log has the reason.")


@define
class Crossing:
    """Calls from the engine thread, made on the reactor in the order they were posted.

    A wake-up of the reactor costs more than a call, so it is woken once for everything that arrives until it comes.
    The order of the steps is what makes that safe: the thread appends before it looks at the flag, the reactor clears
    the flag before it takes anything out; so whatever finds the flag set is still seen by the wake-up under way.
    """

    _call_from_thread: Callable[[Thunk], object]
    _waiting: deque[Thunk] = field(factory=deque, init=False)
    _woken: bool = field(default=False, init=False)

    def post(self, thunks: list[Thunk]) -> None:
        """Have these called on the reactor; from the engine thread."""
        if thunks:
            self._waiting.extend(thunks)
            if not self._woken:
                self._woken = True
                self._call_from_thread(self._drain)

    def _drain(self) -> None:
        self._woken = False
        while self._waiting:
            try:
                self._waiting.popleft()()
            except Exception:  # noqa: BLE001 - one listener's fault must not cost the others their events
                log.failure("Delivering from the engine thread failed")


@define(eq=False)
class MLXRunner:
    """The reactor's handle on the engine thread. All methods but `turn` and `run` are the reactor's."""

    _start_thread: Callable[[Thunk], object]
    _call_from_thread: Callable[[Thunk], object]
    _make_engine: Callable[[], Engine]
    _crossing: Crossing = field(init=False)
    _commands: SimpleQueue[Command | None] = field(factory=SimpleQueue, init=False)
    _engine: Engine | None = field(default=None, init=False)
    _rows: dict[int, Callable[[Event], None]] = field(factory=dict, init=False)
    _answers: set[Deferred[Any]] = field(factory=set, init=False)
    _ended: Deferred[None] = field(factory=Deferred, init=False)
    problem: str | None = field(default=None, init=False)
    """Why the engine cannot generate; None while it can."""

    @_crossing.default
    def _make_crossing(self) -> Crossing:
        return Crossing(self._call_from_thread)

    def start(self) -> None:
        """Start the thread."""
        self._start_thread(self.run)

    def stop(self) -> Deferred[None]:
        """End the thread after the step it is in; fires when it has ended. Rows still there end with an error."""
        self._commands.put(None)
        return self._ended

    def load(self, name: str, folder: Path) -> Deferred[LoadedModel]:
        """Have a model in memory; fires with it, or fails with ModelLoadFailed."""
        return self._ask(lambda engine: engine.load(name, folder))

    def unload(self, name: str) -> Deferred[None]:
        """Give back a model's memory, when its last row has ended; fires once that is arranged."""
        return self._ask(lambda engine: engine.unload(name))

    def submit(self, name: str, folder: Path, row: Row, deliver: Callable[[Event], None]) -> None:
        """Generate a row; its events go to `deliver`, Finished or Failed being the last."""
        if self.problem is not None:
            deliver(Failed(self._unavailable()))
            return
        self._rows[row.id] = deliver

        def add(engine: Engine) -> None:
            try:
                engine.add(name, folder, row)
            except Exception as error:  # noqa: BLE001 - a fault in one row must not cost the thread
                self._crossing.post([partial(self._deliver, row.id, Failed(_explained(error)))])

        self._commands.put(add)

    def cancel(self, row_id: int) -> None:
        """Free a row at the next step; nothing more is delivered from it."""
        if self._rows.pop(row_id, None) is not None:
            self._commands.put(lambda engine: engine.remove(row_id))

    # On the engine thread.

    def run(self) -> None:
        """Run until told to stop; on the engine thread."""
        try:
            while self.turn(wait=True):
                pass
        except BaseException as error:  # noqa: BLE001 - the thread is ending, and everyone waiting must hear of it
            log.failure("The engine thread died")
            self._crossing.post([partial(self._end, f"The engine's thread died: {type(error).__name__}: {error}")])
        else:
            self._crossing.post([partial(self._end, "The engine has stopped")])

    def turn(self, *, wait: bool) -> bool:
        """Take the commands that are there, then do one step; False when told to stop. `wait` for one if idle."""
        if self._engine is None:
            self._engine = self._make_engine()
        engine = self._engine
        block = wait and not engine.busy
        while True:
            try:
                command = self._commands.get(block=block)
            except Empty:
                break
            if command is None:
                self._engine = None
                engine.close()
                return False
            command(engine)
            block = False
        if engine.busy:
            self._crossing.post([partial(self._deliver, row_id, event) for row_id, event in engine.step()])
        return True

    def _ask(self, question: Callable[[Engine], T]) -> Deferred[T]:
        answer: Deferred[T] = Deferred()
        if self.problem is not None:
            answer.errback(self._unavailable())
            return answer
        self._answers.add(answer)

        def reply(fire: Callable[[Any], None], value: object) -> None:
            if answer in self._answers:
                self._answers.discard(answer)
                fire(value)

        def command(engine: Engine) -> None:
            try:
                value = question(engine)
            except Exception as error:  # noqa: BLE001 - a fault in one question must not cost the thread
                self._crossing.post([partial(reply, answer.errback, Failure(_explained(error)))])
            else:
                self._crossing.post([partial(reply, answer.callback, value)])

        self._commands.put(command)
        return answer

    # On the reactor.

    def _deliver(self, row_id: int, event: Event) -> None:
        last = isinstance(event, (Finished, Failed))
        deliver = self._rows.pop(row_id, None) if last else self._rows.get(row_id)
        if deliver is not None:
            deliver(event)

    def _end(self, reason: str) -> None:
        self.problem = reason
        for row_id in list(self._rows):
            self._deliver(row_id, Failed(self._unavailable()))
        while self._answers:
            self._answers.pop().errback(self._unavailable())
        self._ended.callback(None)

    def _unavailable(self) -> ServiceUnavailable:
        return ServiceUnavailable(self.problem or "The engine is not available", retry_after=5)
