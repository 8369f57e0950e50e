"""The runner, turned by hand in one thread; and once with a real thread."""

from collections.abc import Iterator
from pathlib import Path
from threading import get_ident

import pytest
import pytest_twisted
from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.python.threadpool import ThreadPool

from osaurus.chat import (
    Event,
    Failed,
    Finished,
    InternalError,
    ModelLoadFailed,
    Piece,
    Sampling,
    ServiceUnavailable,
)
from osaurus.engine.runner import (
    LONGEST_COMMAND,
    LONGEST_STEP,
    LONGEST_STOP,
    Crossing,
    EngineThread,
    MLXRunner,
    Row,
)
from osaurus.figures import Figures

from .doubles import MemoryWorker, ScriptedEngine, finished
from .test_generation import outcome

FOLDER = Path("/models/tests/tiny")


def row(number: int = 1) -> Row:
    return Row(id=number, prompt=[1], max_tokens=8, sampling=Sampling(), stop=(), arrived=0, load=0)


def test_nothing_happens_before_the_thread_turns() -> None:
    worker = MemoryWorker()
    heard: list[Event] = []
    worker.runner.submit("tiny", FOLDER, row(), heard.append)
    assert heard == []


def test_a_rows_events_arrive_in_order() -> None:
    worker = MemoryWorker()
    heard: list[Event] = []
    worker.runner.submit("tiny", FOLDER, row(), heard.append)
    worker.settle()
    assert heard == [Piece("Hel"), Piece("lo"), finished()]


def test_one_wakeup_of_the_reactor_serves_all_rows_of_a_step() -> None:
    worker = MemoryWorker()
    worker.turn()
    before = worker.wakeups
    heard: list[Event] = []
    for number in range(8):
        worker.runner.submit("tiny", FOLDER, row(number), heard.append)
    worker.turn()
    assert worker.wakeups == before + 1
    assert len(heard) == 8


def test_a_cancelled_row_is_removed_before_the_next_step_and_heard_of_no_more() -> None:
    worker = MemoryWorker()
    heard: list[Event] = []
    worker.runner.submit("tiny", FOLDER, row(7), heard.append)
    worker.turn()
    worker.runner.cancel(7)
    steps = worker.engine.steps
    worker.settle()
    assert heard == [Piece("Hel")]
    assert worker.engine.removed == [7]
    assert worker.engine.steps == steps


def test_cancelling_a_row_that_has_ended_is_harmless() -> None:
    worker = MemoryWorker()
    worker.runner.submit("tiny", FOLDER, row(7), lambda event: None)
    worker.settle()
    worker.runner.cancel(7)
    worker.settle()
    assert worker.engine.removed == []


def test_a_model_that_cannot_be_loaded_fails_only_the_load() -> None:
    worker = MemoryWorker()
    worker.engine.failure = ModelLoadFailed("no weights")
    failures = outcome(worker.runner.load("tiny", FOLDER))
    worker.turn()
    assert failures == [worker.engine.failure]
    assert worker.runner.problem is None


class Panic(BaseException):
    """What Rust raises."""


def test_a_panic_while_a_model_is_loaded_fails_only_the_load() -> None:
    worker = MemoryWorker()
    heard: list[Event] = []
    worker.runner.submit("tiny", FOLDER, row(), heard.append)
    worker.turn()
    worker.engine.failure = Panic("at the disco")
    failures = outcome(worker.runner.load("damaged", FOLDER))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "step", lambda self: [])
        worker.turn()
    assert [type(failure) for failure in failures] == [InternalError]
    worker.engine.failure = None
    worker.settle()
    assert heard[-1] == finished()


def test_a_listener_that_raises_does_not_cost_the_others_their_events() -> None:
    heard: list[str] = []

    def fault() -> None:
        raise RuntimeError("a listener's fault")

    Crossing(lambda drain: drain()).post([fault, lambda: heard.append("next")])
    assert heard == ["next"]


def test_what_is_posted_while_the_reactor_drains_is_drained_too() -> None:
    heard: list[int] = []
    crossing = Crossing(lambda drain: drain())
    crossing.post([lambda: crossing.post([lambda: heard.append(2)]), lambda: heard.append(1)])
    assert sorted(heard) == [1, 2]


def dead(reason: str = "out of it") -> MemoryWorker:
    """A worker whose thread has died of an error in its first step."""
    worker = MemoryWorker()
    worker.engine.failure = MemoryError(reason)
    worker.runner.submit("tiny", FOLDER, row(99), lambda event: None)
    worker.thread.run()
    return worker


def test_when_the_thread_dies_everyone_waiting_is_told() -> None:
    worker = MemoryWorker()
    heard: list[Event] = []
    worker.runner.submit("tiny", FOLDER, row(1), heard.append)
    worker.engine.failure = MemoryError("out of it")
    waiting = outcome(worker.runner.unload("tiny"))
    worker.thread.run()
    assert isinstance(heard[-1], Failed)
    assert isinstance(heard[-1].error, ServiceUnavailable)
    assert waiting == [None]
    assert "out of it" in str(worker.runner.problem)
    assert worker.engine.closed


def test_until_another_thread_has_an_engine_requests_are_refused() -> None:
    worker = dead()
    heard: list[Event] = []
    worker.runner.submit("tiny", FOLDER, row(2), heard.append)
    failures = outcome(worker.runner.load("tiny", FOLDER))
    assert [type(event) for event in heard] == [Failed]
    assert [type(failure) for failure in failures] == [ServiceUnavailable]


def test_another_thread_takes_over_from_one_that_died() -> None:
    worker = dead()
    worker.engine = ScriptedEngine()
    worker.clock.advance(0)
    assert len(worker.started) == 2
    worker.turn()
    assert worker.runner.problem is None
    heard: list[Event] = []
    worker.runner.submit("tiny", FOLDER, row(2), heard.append)
    worker.settle()
    assert heard[-1] == finished()


def test_the_pause_before_the_next_thread_grows_while_they_keep_dying() -> None:
    worker = dead()
    pauses = []
    for _ in range(9):
        began = worker.clock.seconds()
        lives = len(worker.started)
        while len(worker.started) == lives:
            worker.clock.advance(1)
        pauses.append(worker.clock.seconds() - began)
        worker.engine = ScriptedEngine()
        worker.turn()
        worker.engine.failure = MemoryError("again")
        worker.runner.submit("tiny", FOLDER, row(), lambda event: None)
        worker.thread.run()
    assert pauses == [1, 1, 3, 7, 15, 31, 60, 60, 60]


def test_an_answer_makes_the_pause_short_again() -> None:
    worker = dead()
    worker.clock.advance(0)
    worker.engine = ScriptedEngine()
    worker.runner.submit("tiny", FOLDER, row(), lambda event: None)
    worker.turn()
    worker.runner.submit("tiny", FOLDER, row(), lambda event: None)
    worker.settle()
    worker.engine.failure = MemoryError("again")
    worker.runner.submit("tiny", FOLDER, row(), lambda event: None)
    worker.thread.run()
    worker.clock.advance(0)
    assert len(worker.started) == 3


def test_an_engine_that_cannot_be_made_says_why_and_is_tried_again() -> None:
    worker = MemoryWorker()

    def broken() -> ScriptedEngine:
        raise ImportError("no mlx")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.thread, "_make_engine", broken)
        worker.thread.run()
    assert "no mlx" in str(worker.runner.problem)
    worker.clock.advance(0)
    worker.turn()
    assert worker.runner.problem is None


def stuck(worker: MemoryWorker, heard: list[Event]) -> EngineThread:
    """Have the thread be in a step for longer than one may take; return the thread."""
    thread = worker.thread
    worker.runner.submit("tiny", FOLDER, row(), heard.append)

    def step() -> list[list[tuple[int, Event]]]:
        for _ in range(int(LONGEST_STEP) + 2):
            worker.clock.advance(1)
        return [[(1, Piece("late"))]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "step", lambda self: step())
        assert not thread.turn(wait=False)
    return thread


def test_another_thread_takes_over_from_one_that_is_stuck_which_ends_if_it_ever_goes_on() -> None:
    worker = MemoryWorker()
    heard: list[Event] = []
    thread = stuck(worker, heard)
    assert [type(event) for event in heard] == [Failed]
    assert "stuck" in str(worker.runner.problem)
    assert worker.engine.closed
    assert worker.thread is not thread
    worker.engine = ScriptedEngine()
    worker.turn()
    assert worker.runner.problem is None
    assert worker.runner.abandoned == 1


def test_another_thread_takes_over_from_one_that_is_stuck_in_a_command() -> None:
    """A model may be on a disk that does not answer."""
    worker = MemoryWorker()
    thread = worker.thread
    worker.turn()
    heard: list[Event] = []
    loads: list[str] = []

    def load(name: str) -> None:
        loads.append(name)
        worker.clock.pump([1.0] * (int(LONGEST_COMMAND) + 2))
        assert [type(event) for event in heard] == [Failed]
        assert "stuck in one command for 1800 seconds" in str(worker.runner.problem)

    failures = outcome(worker.runner.load("tiny", FOLDER))
    worker.runner.submit("tiny", FOLDER, row(1), heard.append)
    # What was asked for behind it is nobody's any more.
    outcome(worker.runner.load("other", FOLDER))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "load", lambda self, name, folder: load(name))
        assert not thread.turn(wait=False)
    assert [type(failure) for failure in failures] == [ServiceUnavailable]
    assert loads == ["tiny"]
    assert worker.engine.closed
    assert worker.engine.rows == {}
    assert len(worker.started) == 2
    assert worker.runner.abandoned == 1


def test_an_engine_that_takes_for_ever_to_be_made_is_given_up() -> None:
    worker = MemoryWorker()
    thread = worker.thread

    def make() -> ScriptedEngine:
        worker.clock.pump([1.0] * (int(LONGEST_COMMAND) + 2))
        return worker.engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thread, "_make_engine", make)
        assert not thread.turn(wait=False)
    # That there is one now, on a thread that was left behind, helps nobody.
    assert "stuck in its making" in str(worker.runner.problem)
    worker.turn()
    assert worker.runner.problem is None


def test_a_model_may_take_long_to_load() -> None:
    worker = MemoryWorker()

    def load() -> None:
        worker.clock.pump([1.0] * int(LONGEST_COMMAND - 2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "load", lambda self, *_: load())
        for _ in range(2):
            worker.runner.load("tiny", FOLDER)
        worker.turn()
    assert worker.runner.problem is None
    assert len(worker.started) == 1


def test_a_machine_that_slept_in_the_middle_of_a_step_was_not_stuck_in_it() -> None:
    worker = MemoryWorker()
    heard: list[Event] = []
    thread = worker.thread
    worker.runner.submit("tiny", FOLDER, row(), heard.append)

    def step() -> list[list[tuple[int, Event]]]:
        for _ in range(3):
            worker.clock.advance(1)
        worker.clock.advance(10 * LONGEST_STEP)
        worker.clock.advance(1)
        return [[(1, Piece("here"))]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "step", lambda self: step())
        assert thread.turn(wait=False)
    assert heard == [Piece("here")]
    assert worker.runner.problem is None


def test_the_end_of_a_thread_that_was_left_behind_is_nobodys_concern() -> None:
    worker = MemoryWorker()
    thread = stuck(worker, [])
    worker.turn()
    worker.runner._end(thread, "much later")
    assert worker.runner.problem is None


def test_a_thread_that_takes_long_but_goes_on_is_left_alone() -> None:
    worker = MemoryWorker(ScriptedEngine(script=[Piece("a")] * 400))
    worker.runner.submit("tiny", FOLDER, row(), lambda event: None)
    for _ in range(300):
        worker.turn()
        worker.clock.advance(1)
    assert worker.runner.problem is None
    assert len(worker.started) == 1


def test_stopping_does_not_wait_for_ever() -> None:
    worker = MemoryWorker()
    ended = worker.runner.stop()
    worker.clock.advance(LONGEST_STOP)
    assert ended.called
    assert worker.runner.abandoned == 1


def test_whoever_is_in_a_hurry_does_not_wait_at_all() -> None:
    worker = MemoryWorker()
    worker.runner.leave_behind()
    assert worker.runner.abandoned == 0
    ended = worker.runner.stop()
    worker.runner.leave_behind()
    assert ended.called
    assert worker.clock.getDelayedCalls() == []
    # Once.
    worker.runner.leave_behind()
    assert worker.runner.abandoned == 1


def test_stopping_between_two_threads_starts_no_more() -> None:
    worker = dead()
    assert worker.runner.stop().called
    worker.clock.advance(100)
    assert len(worker.started) == 1


@pytest_twisted.ensureDeferred
async def test_events_of_a_real_thread_are_delivered_on_the_reactors_thread() -> None:
    pool = ThreadPool(1, 1)
    pool.start()
    engine_threads: set[int] = set()
    heard: list[tuple[Event, int]] = []
    done: Deferred[None] = Deferred()

    class Engine(ScriptedEngine):
        def step(self) -> Iterator[list[tuple[int, Event]]]:
            engine_threads.add(get_ident())
            return super().step()

    runner = MLXRunner(
        pool.callInThread,
        reactor.callFromThread,  # type: ignore[attr-defined]
        Engine,
        reactor,
    )
    runner.start()

    def hear(event: Event) -> None:
        heard.append((event, get_ident()))
        if event == finished():
            done.callback(None)

    try:
        runner.submit("tiny", FOLDER, row(), hear)
        await done
    finally:
        await runner.stop()
        pool.stop()
    assert [event for event, _ in heard] == [Piece("Hel"), Piece("lo"), finished()]
    assert {thread for _, thread in heard} == {get_ident()}
    assert engine_threads.isdisjoint({get_ident()})


@pytest.mark.parametrize("rows", [0, 3])
def test_stopping_closes_the_engine_and_ends_its_rows_with_an_error(rows: int) -> None:
    worker = MemoryWorker()
    heard: list[Event] = []
    for number in range(rows):
        worker.runner.submit("tiny", FOLDER, evolve(row(), id=number), heard.append)
    ended = worker.runner.stop()
    worker.thread.run()
    assert ended.called
    assert worker.engine.closed
    assert [type(event) for event in heard] == [Failed] * rows


@pytest.mark.parametrize("error", [ValueError("a bug"), ModelLoadFailed("no weights"), Panic("at the disco")])
def test_a_command_that_fails_costs_only_its_own_row(error: BaseException) -> None:
    worker = MemoryWorker()
    heard: list[Event] = []

    def refuse(name: str, folder: Path, row: Row) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "add", lambda self, *args: refuse(*args))
        worker.runner.submit("tiny", FOLDER, row(1), heard.append)
        worker.settle()
    assert [type(event) for event in heard] == [Failed]
    assert worker.runner.problem is None
    worker.runner.submit("tiny", FOLDER, row(2), heard.append)
    worker.settle()
    assert heard[-1] == finished()


# Figures.


def test_figures_are_those_after_the_last_step_or_command() -> None:
    worker = MemoryWorker()
    assert worker.runner.figures == Figures()
    worker.runner.submit("tiny", FOLDER, row(), lambda event: None)
    worker.turn()
    assert worker.runner.figures == Figures(writing=1)
    worker.runner.park(1)
    worker.turn()
    assert worker.runner.figures == Figures(parked=1)
    worker.runner.cancel(1)
    worker.turn()
    assert worker.runner.figures == Figures()


def test_whoever_hears_of_the_end_of_a_row_finds_the_figures_without_it() -> None:
    worker = MemoryWorker()
    found: list[Figures] = []

    def deliver(event: Event) -> None:
        if isinstance(event, Finished):
            found.append(worker.runner.figures)

    worker.runner.submit("tiny", FOLDER, row(), deliver)
    worker.settle()
    assert found == [Figures()]


def test_when_another_thread_takes_over_nothing_is_in_memory() -> None:
    worker = MemoryWorker()
    worker.runner.submit("tiny", FOLDER, row(), lambda event: None)
    worker.turn()
    worker.engine.failure = MemoryError("no more")
    worker.thread.run()
    assert worker.runner.figures == Figures()
