"""The one thread that owns MLX: commands in, events out.

MLX arrays belong to the thread that made them, so models are loaded, kept and run on a single thread for as long as
the server runs. The reactor puts commands into a queue; the thread takes them between steps, and sleeps on the queue
when there is nothing to do. What the thread has to say crosses to the reactor through `Crossing`, once a step for all
rows together. Only plain values cross.

The thread is supervised. If it dies, or does not finish a step or a command for a long time, whoever waits is told,
`problem` says what happened, and another thread with a new engine takes over, after a pause that grows while this keeps
happening. A thread that is stuck cannot be ended from outside: it is abandoned, and ends by itself should it go on.

How to test it: hand in something that only remembers what it should run in place of the pool's `callInThread`, a
`call_from_thread` that calls, a `task.Clock`, and drive `EngineThread.turn` by hand.

This module does not import MLX: the engine is made on the thread, when it starts.
"""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..chat import (
    ApiError,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    InternalError,
    ResidentModel,
    Sampling,
    ServiceUnavailable,
    Text,
    Tokens,
)
from ..figures import Figures
from .panics import panics_as_errors
from .prompt import EncodedPrompt
from .shape import Shape

log = Logger()

T = TypeVar("T")
Thunk = Callable[[], object]

# In seconds: how often the thread is looked at, the longest that a step may take, and a command (a large model may come
# from a slow disk), the longest pause before another thread takes over, and how long an orderly end may take.
CHECK_EVERY = 1.0
LONGEST_STEP = 120.0
LONGEST_COMMAND = 1800.0
LONGEST_PAUSE = 60.0
LONGEST_STOP = 10.0


@frozen(kw_only=True)
class Row:
    """One answer to be generated. Times are in nanoseconds, `arrived` on the monotonic clock.

    `boundaries` are how many tokens the prompt is likely to have in common with others, ascending. `request` is what
    was asked, for a runner whose model is not given tokens.
    """

    id: int
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    arrived: int
    load: int
    top_logprobs: int | None = None
    tell_tokens: bool = False
    owner: str = ""
    thinking: bool | None = None
    """Whether the prompt ends within a thought; None if thoughts are not to be told from the answer."""
    boundaries: tuple[int, ...] = ()
    shape: Shape = field(factory=Shape)
    continues: bool = False
    """Whether what is written goes on with the prompt's own text."""
    echo: str = ""
    """The prompt's text, where it is to be told first, with the scores of its tokens."""
    request: GenerationRequest | None = None


class Encoder(Protocol):
    """What reads requests for a model; see PromptEncoder. On any thread."""

    def encode(self, request: GenerationRequest) -> EncodedPrompt: ...  # noqa: D102
    def spell(self, raw: Text | Tokens | None) -> str: ...  # noqa: D102


class LoadedModel(Protocol):
    """What of a loaded model may be used on any thread."""

    @property
    def prompt(self) -> Encoder:
        """Renders and tokenises conversations for it."""


class Engine(Protocol):
    """What the thread drives; see MLXEngine."""

    def load(self, name: str, folder: Path) -> LoadedModel: ...  # noqa: D102
    def unload(self, name: str) -> None: ...  # noqa: D102
    def add(self, name: str, folder: Path, row: Row) -> None: ...  # noqa: D102
    def remove(self, row_id: int) -> None: ...  # noqa: D102
    def park(self, row_id: int) -> None: ...  # noqa: D102
    def unpark(self, row_id: int) -> None: ...  # noqa: D102
    def resident(self) -> list[ResidentModel]: ...  # noqa: D102
    @property
    def busy(self) -> bool: ...  # noqa: D102
    def step(self) -> Iterable[list[tuple[int, Event]]]: ...  # noqa: D102
    def figures(self) -> Figures: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


Command = Callable[[Engine], None]


def _explained(error: Exception, request: GenerationRequest | None = None) -> ApiError:
    """Return an error that may be told to a client; what is not one of those goes to the log. In an except clause."""
    if isinstance(error, ApiError):
        return error
    log.failure("The engine failed to do as it was told", request_id=None if request is None else request.request_id)
    return InternalError("The engine failed; the server's log has the reason.")


@frozen
class Work:
    """What the thread may be stuck in, and for how many seconds it may be at it."""

    name: str
    longest: float


MAKING = Work("in its making", LONGEST_COMMAND)
COMMAND = Work("in one command", LONGEST_COMMAND)
STEP = Work("in one step", LONGEST_STEP)


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
class EngineThread:
    """One life of an engine, from its making to its end; all on one thread but what says otherwise."""

    _make_engine: Callable[[], Engine]
    _crossing: Crossing
    _on_ready: Callable[["EngineThread"], None]
    _on_event: Callable[[int, Event], None]
    _on_end: Callable[["EngineThread", str | None], None]
    _commands: SimpleQueue[Command | None] = field(factory=SimpleQueue, init=False)
    _engine: Engine | None = field(default=None, init=False)
    begun: int = field(default=0, init=False)
    """How many steps and commands have been begun; for any thread to read."""
    work: Work | None = field(default=None, init=False)
    """What is under way; for any thread to read."""
    abandoned: bool = field(default=False, init=False)
    """Whether another thread has taken over; set on the reactor."""
    figures: Figures = field(factory=Figures, init=False)
    """How it stood after the last step, frozen; for any thread to read."""

    def tell(self, command: Command | None) -> None:
        """Have a command carried out between two steps; None ends the thread. On any thread."""
        self._commands.put(command)

    def run(self) -> None:
        """Run until told to stop."""
        reason = None
        try:
            while self.turn(wait=True):
                pass
        except BaseException as error:  # noqa: BLE001 - the thread is ending, and everyone waiting must hear of it
            log.failure("The engine thread died")
            reason = f"The engine's thread died: {type(error).__name__}: {error}"
            self._close()
        self._crossing.post([partial(self._on_end, self, reason)])

    def turn(self, *, wait: bool) -> bool:
        """Take the commands that are there, then do one step; False when told to stop. `wait` for one if idle."""
        if self._engine is None:
            self._begin(MAKING)
            self._engine = self._make_engine()
            self.work = None
            self._crossing.post([partial(self._on_ready, self)])
        engine = self._engine
        block = wait and not engine.busy
        while not self.abandoned:
            try:
                command = self._commands.get(block=block)
            except Empty:
                break
            if command is None:
                self._close()
                return False
            self._begin(COMMAND)
            command(engine)
            self.work = None
            block = False
        if engine.busy and not self.abandoned:
            self._begin(STEP)
            # What is said before the step is through is told at once: the rest of it may be long.
            for events in engine.step():
                self.figures = engine.figures()
                self._crossing.post([partial(self._on_event, row_id, event) for row_id, event in events])
            self.work = None
        self.figures = engine.figures()
        if self.abandoned:
            self._close()
        return not self.abandoned

    def _begin(self, work: Work) -> None:
        # In this order: what is seen to be under way must not be taken for what was before it.
        self.begun += 1
        self.work = work

    def _close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            try:
                engine.close()
            except Exception:  # noqa: BLE001 - what is broken already may not even close
                log.failure("Closing the engine failed")


@define(eq=False)
class MLXRunner:
    """The reactor's handle on the engine thread, and its supervisor. All of it runs on the reactor."""

    _start_thread: Callable[[Thunk], object]
    _call_from_thread: Callable[[Thunk], object]
    _make_engine: Callable[[], Engine]
    _clock: IReactorTime
    _crossing: Crossing = field(init=False)
    _thread: EngineThread = field(init=False)
    _rows: dict[int, Callable[[Event], None]] = field(factory=dict, init=False)
    _answers: set[Deferred[Any]] = field(factory=set, init=False)
    _watch: LoopingCall = field(init=False)
    _last_seen: tuple[int, int] = field(default=(0, 0), init=False)
    """How much had been begun, and how many times since the last of it was seen under way."""
    _failures: int = field(default=0, init=False)
    _restart: IDelayedCall | None = field(default=None, init=False)
    _ended: Deferred[None] | None = field(default=None, init=False)
    problem: str | None = field(default=None, init=False)
    """Why the engine cannot generate; None while it can."""
    abandoned: int = field(default=0, init=False)
    """How many threads were left behind in what did not end."""

    @_crossing.default
    def _make_crossing(self) -> Crossing:
        return Crossing(self._call_from_thread)

    @_thread.default
    def _make_thread(self) -> EngineThread:
        return EngineThread(self._make_engine, self._crossing, self._ready, self._deliver, self._end)

    @_watch.default
    def _make_watch(self) -> LoopingCall:
        watch = LoopingCall(self._check)
        watch.clock = self._clock
        return watch

    @property
    def figures(self) -> Figures:
        """How the engine stood after its last step."""
        return self._thread.figures

    def start(self) -> None:
        """Start the thread, and to watch it."""
        self._start_thread(self._thread.run)
        self._watch.start(CHECK_EVERY, now=False)

    def stop(self) -> Deferred[None]:
        """End the thread after the step it is in; fires when it has ended, or is not waited for any longer.

        Rows still there end with an error.
        """
        ended = self._ended = Deferred()
        if self._watch.running:
            self._watch.stop()
        if self._restart is not None and self._restart.active():
            self._restart.cancel()
            self._stopped()
        else:
            self._thread.tell(None)
            patience = self._clock.callLater(LONGEST_STOP, self.leave_behind)
            ended.addCallback(lambda _: patience.cancel() if patience.active() else None)
        return ended

    def leave_behind(self) -> None:
        """Wait no longer for a thread that was told to end."""
        if self._ended is not None and not self._ended.called:
            log.warn("The engine thread is not waited for; it is left behind")
            self._thread.abandoned = True
            self.abandoned += 1
            self._stopped()

    def load(self, name: str, folder: Path) -> Deferred[LoadedModel]:
        """Have a model in memory; fires with it, or fails with ModelLoadFailed."""
        return self._ask(lambda engine: engine.load(name, folder))

    def unload(self, name: str) -> Deferred[None]:
        """Give back a model's memory, when its last row has ended; fires once that is arranged."""
        return self._ask(lambda engine: engine.unload(name))

    def resident(self) -> Deferred[list[ResidentModel]]:
        """Fires with the models in memory."""
        return self._ask(lambda engine: engine.resident())

    def submit(self, name: str, folder: Path, row: Row, deliver: Callable[[Event], None]) -> None:
        """Generate a row; its events go to `deliver`, Finished or Failed being the last."""
        if self.problem is not None:
            deliver(Failed(self._unavailable()))
            return
        self._rows[row.id] = deliver

        def add(engine: Engine) -> None:
            try:
                with panics_as_errors():
                    engine.add(name, folder, row)
            except Exception as error:  # noqa: BLE001 - a fault in one row must not cost the thread
                self._crossing.post([partial(self._deliver, row.id, Failed(_explained(error, row.request)))])

        self._thread.tell(add)

    def cancel(self, row_id: int) -> None:
        """Free a row at the next step; nothing more is delivered from it."""
        if self._rows.pop(row_id, None) is not None:
            self._thread.tell(lambda engine: engine.remove(row_id))

    def park(self, row_id: int) -> None:
        """Let a row stand still from the next step on; what was said by then is still delivered."""
        if row_id in self._rows:
            self._thread.tell(lambda engine: engine.park(row_id))

    def unpark(self, row_id: int) -> None:
        """Let a row go on where it was."""
        if row_id in self._rows:
            self._thread.tell(lambda engine: engine.unpark(row_id))

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
                with panics_as_errors():
                    value = question(engine)
            except Exception as error:  # noqa: BLE001 - a fault in one question must not cost the thread
                self._crossing.post([partial(reply, answer.errback, Failure(_explained(error)))])
            else:
                self._crossing.post([partial(reply, answer.callback, value)])

        self._thread.tell(command)
        return answer

    # What the thread has to say; a thread that was left behind is not listened to: its rows are gone already.

    def _deliver(self, row_id: int, event: Event) -> None:
        if isinstance(event, Finished):
            self._failures = 0
        last = isinstance(event, (Finished, Failed))
        deliver = self._rows.pop(row_id, None) if last else self._rows.get(row_id)
        if deliver is not None:
            deliver(event)

    def _ready(self, thread: EngineThread) -> None:
        if thread is self._thread and self._ended is None:
            self.problem = None

    def _end(self, thread: EngineThread, reason: str | None) -> None:
        if thread is not self._thread:
            return
        if self._ended is not None:
            self._stopped()
        else:
            self._take_over(reason or "The engine's thread ended")

    # Supervision.

    def _check(self) -> None:
        """See whether the thread is stuck.

        Looks are counted, not seconds: a machine that slept, or whose clock was set, has lost seconds in no step.
        """
        begun, looks = self._last_seen
        work = self._thread.work
        if work is None or self._thread.begun != begun:
            self._last_seen = self._thread.begun, 0
        elif looks * CHECK_EVERY < work.longest:
            self._last_seen = begun, looks + 1
        else:
            log.error("The engine thread is stuck; another takes over")
            self._thread.abandoned = True
            self.abandoned += 1
            self._take_over(f"The engine has been stuck {work.name} for {work.longest:.0f} seconds")

    def _take_over(self, reason: str) -> None:
        self._give_up(reason)
        self._thread = self._make_thread()
        self._last_seen = 0, 0
        pause = min(2.0**self._failures - 1, LONGEST_PAUSE)
        self._failures += 1
        self._restart = self._clock.callLater(pause, self._start_thread, self._thread.run)

    def _stopped(self) -> None:
        self._give_up("The engine has stopped")
        if self._ended is not None and not self._ended.called:
            self._ended.callback(None)

    def _give_up(self, reason: str) -> None:
        """Tell everyone who waits that nothing will come."""
        self.problem = reason
        for row_id in list(self._rows):
            self._deliver(row_id, Failed(self._unavailable()))
        while self._answers:
            self._answers.pop().errback(self._unavailable())

    def _unavailable(self) -> ServiceUnavailable:
        return ServiceUnavailable(self.problem or "The engine is not available", retry_after=5)
