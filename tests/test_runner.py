"""The runner, turned by hand in one thread; and once with a real thread."""

from pathlib import Path
from threading import get_ident

import pytest
import pytest_twisted
from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.python.threadpool import ThreadPool

from osaurus.chat import Event, Failed, ModelLoadFailed, Piece, Sampling, ServiceUnavailable
from osaurus.engine.runner import Crossing, MLXRunner, Row

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
    heard: list[Event] = []
    for number in range(8):
        worker.runner.submit("tiny", FOLDER, row(number), heard.append)
    worker.turn()
    assert worker.wakeups == 1
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


def test_when_the_thread_dies_everyone_waiting_is_told_and_later_requests_are_refused() -> None:
    worker = MemoryWorker()
    heard: list[Event] = []
    worker.runner.submit("tiny", FOLDER, row(1), heard.append)
    worker.engine.failure = MemoryError("out of it")
    worker.runner.run()
    assert isinstance(heard[-1], Failed)
    assert isinstance(heard[-1].error, ServiceUnavailable)
    assert "out of it" in str(worker.runner.problem)
    worker.runner.submit("tiny", FOLDER, row(2), heard.append)
    failures = outcome(worker.runner.load("tiny", FOLDER))
    assert [type(event) for event in heard] == [Failed, Failed]
    assert [type(failure) for failure in failures] == [ServiceUnavailable]


@pytest_twisted.ensureDeferred
async def test_events_of_a_real_thread_are_delivered_on_the_reactors_thread() -> None:
    pool = ThreadPool(1, 1)
    pool.start()
    engine_threads: set[int] = set()
    heard: list[tuple[Event, int]] = []
    done: Deferred[None] = Deferred()

    class Engine(ScriptedEngine):
        def step(self) -> list[tuple[int, Event]]:
            engine_threads.add(get_ident())
            return super().step()

    runner = MLXRunner(pool.callInThread, reactor.callFromThread, Engine)  # type: ignore[attr-defined]
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
    worker.runner.run()
    assert ended.called
    assert worker.engine.closed
    assert [type(event) for event in heard] == [Failed] * rows


@pytest.mark.parametrize("error", [ValueError("a bug"), ModelLoadFailed("no weights")])
def test_a_command_that_fails_costs_only_its_own_row(error: Exception) -> None:
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
