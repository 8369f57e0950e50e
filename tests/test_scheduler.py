"""Admission: from a request to a row, and the ways it can end on the way."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import Any

import pytest
from attrs import define, evolve, field
from twisted.internet.defer import Deferred

from osaurus.chat import (
    Completion,
    ContextLengthExceeded,
    Event,
    Failed,
    GenerationRequest,
    InternalError,
    Message,
    ModelLoadFailed,
    ModelNotFound,
    NoRoomYet,
    Piece,
    ServiceUnavailable,
    Started,
)
from osaurus.engine.runner import Row
from osaurus.library.store import ModelStore
from osaurus.serving.blocking import AT_ONCE
from osaurus.serving.generation import Generation
from osaurus.serving.limits import Limits
from osaurus.serving.scheduler import Scheduler

from .doubles import CountingPrompt, MemoryWorker, ScriptedEngine, finished, inline
from .test_generation import outcome


@define
class Stage:
    """A scheduler over a scripted engine and the models in a folder."""

    models: Path
    worker: MemoryWorker = field(factory=MemoryWorker)
    scheduler: Scheduler = field(init=False)

    def __attrs_post_init__(self) -> None:
        store, limits = ModelStore(self.models), Limits(self.worker.clock, 10, 100)
        self.scheduler = Scheduler(store, self.worker.runner, self.worker.residency, limits, inline)


@pytest.fixture
def stage(tiny_models: Path) -> Stage:
    return Stage(tiny_models)


def ask(model: str = "tiny", content: str = "abc") -> GenerationRequest:
    return GenerationRequest(
        model=model, messages=(Message("user", content),), max_tokens=8, max_tokens_may_shrink=True, stop=("x",)
    )


def test_an_admitted_request_is_answered(stage: Stage) -> None:
    generation = stage.scheduler.submit(ask())
    stage.worker.turn()
    assert outcome(generation.started()) == [Started(3)]
    fired = outcome(generation.completions())
    stage.worker.settle()
    assert fired == [[Completion("Hello", finished())]]


def test_the_row_has_what_the_request_asked_for(stage: Stage) -> None:
    request = ask()
    stage.scheduler.submit(request)
    stage.worker.turn(2)
    [(row, _)] = stage.worker.engine.rows.values()
    assert (row.prompt, row.max_tokens, row.stop, row.sampling) == ([97, 98, 99], 8, ("x",), request.sampling)


def test_an_unknown_model_is_not_found_and_nothing_is_loaded(stage: Stage) -> None:
    [error] = outcome(stage.scheduler.submit(ask("nope")).started())
    assert isinstance(error, ModelNotFound)
    assert stage.worker.engine.loads == []


def test_a_model_that_cannot_be_loaded_is_told_to_everyone_who_waits(stage: Stage) -> None:
    stage.worker.engine.failure = ModelLoadFailed("no weights")
    waiting = [outcome(stage.scheduler.submit(ask()).started()) for _ in range(3)]
    stage.worker.turn()
    assert waiting == [[stage.worker.engine.failure]] * 3


@pytest.mark.parametrize("error", [ContextLengthExceeded("too long"), ValueError("a bug of ours")])
def test_a_prompt_that_cannot_be_encoded_fails_that_request(stage: Stage, error: Exception) -> None:
    class Refusing:
        def encode(self, request: GenerationRequest) -> tuple[list[int], int]:
            raise error

    stage.worker.engine.model.prompt = Refusing()
    fired = outcome(stage.scheduler.submit(ask()).started())
    stage.worker.turn()
    assert [type(failure) for failure in fired] == [
        ContextLengthExceeded if isinstance(error, ContextLengthExceeded) else InternalError
    ]
    assert stage.worker.engine.rows == {}


def test_prompts_of_one_model_take_turns_in_being_read(stage: Stage) -> None:
    reading: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def blocking(function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        if function.__name__ == "find":
            return inline(function, *args)
        reading.append((Deferred(), partial(function, *args)))
        return reading[-1][0]

    limits = Limits(stage.worker.clock, 10, 100)
    scheduler = Scheduler(ModelStore(stage.models), stage.worker.runner, stage.worker.residency, limits, blocking)
    many = [scheduler.submit(ask()) for _ in range(5)]
    stage.worker.turn()
    assert len(reading) == AT_ONCE
    scheduler.submit(ask("other"))
    stage.worker.turn()
    assert len(reading) == AT_ONCE + 1
    many[0].cancel()
    many[3].cancel()
    assert len(reading) == AT_ONCE + 1
    for ended, read in reading:
        ended.callback(read())
    assert len(reading) == AT_ONCE + 2
    assert outcome(many[1].started()) == [Started(3)]


def test_a_client_that_leaves_while_the_model_loads_gets_no_row(stage: Stage) -> None:
    generation = stage.scheduler.submit(ask())
    generation.cancel()
    stage.worker.settle()
    assert stage.worker.engine.steps == 0


def test_a_client_that_leaves_frees_its_row_and_no_other(stage: Stage) -> None:
    leaving, staying = stage.scheduler.submit(ask()), stage.scheduler.submit(ask())
    stage.worker.turn(2)
    leaving.cancel()
    fired = outcome(staying.completions())
    stage.worker.settle()
    assert len(stage.worker.engine.removed) == 1
    assert fired == [[Completion("Hello", finished())]]


def test_stopping_ends_what_is_being_answered_and_refuses_what_comes(stage: Stage) -> None:
    running = stage.scheduler.submit(ask())
    stage.worker.turn(2)
    heard: list[Event] = []
    running.listen(heard.append)
    stage.scheduler.stop()
    assert isinstance(heard[-1], Failed)
    assert isinstance(heard[-1].error, ServiceUnavailable)
    stage.worker.settle()
    assert len(stage.worker.engine.removed) == 1
    [refused] = outcome(stage.scheduler.submit(ask()).started())
    assert isinstance(refused, ServiceUnavailable)
    assert stage.scheduler.problem is not None


def test_whoever_hears_that_the_server_stops_may_end_another_answer(stage: Stage) -> None:
    first, second = stage.scheduler.submit(ask()), stage.scheduler.submit(ask())
    stage.worker.turn()
    heard: list[Event] = []

    def ending(other: Generation) -> Callable[[Event], None]:
        def hear(event: Event) -> None:
            if isinstance(event, Failed):
                heard.append(event)
                other.cancel()

        return hear

    first.listen(ending(second))
    second.listen(ending(first))
    stage.scheduler.stop()
    assert len(heard) == 1
    assert stage.scheduler.waiting == 0


def test_a_panic_while_a_prompt_is_read_is_told(stage: Stage) -> None:
    class Panic(BaseException):
        """What Rust raises."""

    def panic(*_: Any) -> None:
        raise Panic("at the disco")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CountingPrompt, "encode", panic)
        heard = outcome(stage.scheduler.submit(ask()).started())
        stage.worker.settle()
    [error] = heard
    assert isinstance(error, InternalError)


def test_stopping_while_a_model_loads_fails_the_request_that_waits(stage: Stage) -> None:
    fired = outcome(stage.scheduler.submit(ask()).started())
    stage.scheduler.stop()
    assert [type(failure) for failure in fired] == [ServiceUnavailable]


def test_loading_and_unloading_by_name(stage: Stage) -> None:
    loaded = outcome(Deferred.fromCoroutine(stage.scheduler.load("tests/TINY")))
    stage.worker.turn()
    assert [type(value).__name__ for value in loaded] == ["Loaded"]
    unloaded = outcome(Deferred.fromCoroutine(stage.scheduler.unload("tiny:latest")))
    stage.worker.turn()
    assert unloaded == [None]
    assert (stage.worker.engine.loads, stage.worker.engine.unloads) == (["tests/tiny"], ["tests/tiny"])


def test_a_listener_hears_every_piece(stage: Stage) -> None:
    generation: Generation = stage.scheduler.submit(ask())
    heard: list[Event] = []
    stage.worker.turn()
    generation.listen(heard.append)
    stage.worker.settle()
    assert heard == [Piece("Hel"), Piece("lo"), finished()]


def test_a_model_is_unloaded_when_it_was_not_used_for_its_time(stage: Stage) -> None:
    stage.scheduler.submit(ask())
    stage.worker.turn()
    stage.worker.clock.advance(1000)
    stage.worker.settle()
    assert stage.worker.engine.unloads == []
    stage.worker.clock.advance(300)
    stage.worker.turn()
    assert stage.worker.engine.unloads == ["tests/tiny"]


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_client_that_leaves_lets_the_model_go_too(stage: Stage, turns: int) -> None:
    generation = stage.scheduler.submit(evolve(ask(), keep_alive=5))
    stage.worker.turn(turns)
    generation.cancel()
    stage.worker.settle()
    stage.worker.clock.advance(5)
    stage.worker.turn()
    assert stage.worker.engine.unloads == ["tests/tiny"]


def test_a_model_that_is_loaded_at_the_start_stays(stage: Stage) -> None:
    loaded = outcome(Deferred.fromCoroutine(stage.scheduler.preload("tiny")))
    stage.worker.turn()
    assert loaded == [None]
    stage.worker.clock.advance(10**6)
    stage.worker.turn()
    assert (stage.worker.engine.loads, stage.worker.engine.unloads) == (["tests/tiny"], [])


def test_a_model_that_cannot_be_loaded_at_the_start_stops_nothing(stage: Stage) -> None:
    assert outcome(Deferred.fromCoroutine(stage.scheduler.preload("nope"))) == [None]
    assert stage.scheduler.problem is None


def test_those_wait_that_have_no_row_yet(stage: Stage) -> None:
    first, second = stage.scheduler.submit(ask()), stage.scheduler.submit(ask())
    assert stage.scheduler.waiting == 2
    second.cancel()
    assert stage.scheduler.waiting == 1
    stage.worker.turn()
    assert outcome(first.started()) == [Started(3)]
    assert stage.scheduler.waiting == 0
    stage.worker.settle()
    stage.scheduler.stop()
    assert stage.scheduler.waiting == 0


def test_waiting_for_memory_is_not_loading(stage: Stage) -> None:
    first = stage.scheduler.submit(ask())
    stage.worker.turn()
    stage.worker.engine.failure = NoRoomYet("full")
    stage.scheduler.submit(ask("other"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "step", lambda self: [])
        stage.worker.turn()
    asked = monotonic_ns()
    stage.worker.engine.failure = None
    first.cancel()
    stage.worker.turn(2)
    [row] = [row for row, _ in stage.worker.engine.rows.values()]
    assert row.arrived < asked
    assert row.load < monotonic_ns() - asked


def test_a_request_waits_until_there_is_room_for_its_model(stage: Stage) -> None:
    first = stage.scheduler.submit(ask())
    stage.worker.turn()
    stage.worker.engine.failure = NoRoomYet("full")
    waiting = stage.scheduler.submit(ask("other"))
    leaving = stage.scheduler.submit(ask("other"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "step", lambda self: [])
        stage.worker.turn()
    leaving.cancel()
    stage.worker.engine.failure = None
    assert (waiting.over, leaving.over) == (False, True)
    ended = outcome(first.completions())
    stage.worker.settle()
    assert ended == [[Completion("Hello", finished())]]
    stage.worker.settle()
    assert outcome(waiting.started()) == [Started(3)]


def test_an_answer_that_nobody_takes_stands_still_until_somebody_does(stage: Stage) -> None:
    generation = stage.scheduler.submit(ask())
    stage.worker.turn()
    heard: list[Event] = []
    generation.listen(heard.append)
    generation.park()
    stage.worker.settle()
    assert heard == [Piece("Hel")]
    generation.unpark()
    stage.worker.settle()
    assert heard[-1] == finished()
    # Too late to do anything.
    generation.park()
    stage.worker.turn()
    assert stage.worker.engine.parked == set()


def test_what_ended_while_the_engine_was_asked_for_room_is_not_missed(stage: Stage) -> None:
    """The engine says that there is no room, having been asked before it heard that the last answer ended."""
    leaving = stage.scheduler.submit(ask())
    stage.worker.turn()
    waiting = stage.scheduler.submit(ask("other"))
    leaving.cancel()
    answers = [NoRoomYet("no room", retry_after=1)]
    load = ScriptedEngine.load

    def full_at_first(engine: ScriptedEngine, *asked: Any) -> Any:
        if answers:
            raise answers.pop()
        return load(engine, *asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "load", full_at_first)
        stage.worker.turn()
    ended = outcome(waiting.completions())
    stage.worker.settle()
    assert ended == [[Completion("Hello", finished())]]


def test_who_waits_for_room_is_told_when_the_server_stops(stage: Stage) -> None:
    stage.worker.engine.failure = NoRoomYet("no room", retry_after=1)
    loading = outcome(Deferred.fromCoroutine(stage.scheduler.load("tiny")))
    stage.worker.turn()
    assert loading == []
    stage.scheduler.stop()
    [error] = loading
    assert isinstance(error, ServiceUnavailable)


def test_those_that_come_later_wait_behind_a_model_for_which_there_is_no_room(stage: Stage) -> None:
    answering = stage.scheduler.submit(ask())
    stage.worker.turn()
    load, full = ScriptedEngine.load, [True]

    def full_for_the_other(engine: ScriptedEngine, name: str, folder: Path) -> Any:
        if name == "tests/other" and full[0]:
            raise NoRoomYet("no room", retry_after=1)
        return load(engine, name, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "load", full_for_the_other)
        patch.setattr(ScriptedEngine, "step", lambda self: [])
        first = outcome(stage.scheduler.submit(ask("other")).started())
        stage.worker.turn()
        second = outcome(stage.scheduler.submit(ask()).started())
        stage.worker.turn()
        assert (first, second) == ([], [])
        full[0] = False
        answering.cancel()
        stage.worker.turn(2)
        assert (first, second) == ([Started(3)], [Started(3)])
    assert stage.worker.engine.loads == ["tests/tiny", "tests/other", "tests/tiny"]


def test_who_gives_up_waiting_for_room_keeps_nobody_behind(stage: Stage) -> None:
    stage.worker.engine.failure = NoRoomYet("no room", retry_after=1)
    waiting = stage.scheduler.submit(ask("other"))
    stage.worker.turn()
    stage.worker.engine.failure = None
    behind = stage.scheduler.submit(ask())
    stage.worker.turn()
    fired = outcome(behind.completions())
    assert fired == []
    waiting.cancel()
    stage.worker.settle()
    assert fired == [[Completion("Hello", finished())]]


# A model that was loaded has made room for another by the time its row comes.


def crowded_out(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Have the first row for each of these models find no room."""
    add, full = ScriptedEngine.add, list(names)

    def add_later(engine: ScriptedEngine, name: str, folder: Path, row: Row) -> None:
        if name in full:
            full.remove(name)
            raise NoRoomYet("no room", retry_after=1)
        add(engine, name, folder, row)

    patch.setattr(ScriptedEngine, "add", add_later)


@pytest.fixture
def crowded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> tuple[Stage, Generation, Generation]:
    """A stage where one request is being answered, and another has found no room for its row."""
    crowded_out(monkeypatch, "tests/other")
    answering = stage.scheduler.submit(ask())
    stage.worker.turn()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "step", lambda self: [])
        waiting = stage.scheduler.submit(ask("other"))
        stage.worker.turn(3)
    assert not waiting.over
    return stage, answering, waiting


def test_a_row_that_finds_no_room_is_submitted_again_when_another_answer_has_ended(
    crowded: tuple[Stage, Generation, Generation],
) -> None:
    stage, answering, waiting = crowded
    heard = outcome(waiting.completions())
    answering.cancel()
    stage.worker.settle()
    assert heard == [[Completion("Hello", finished())]]
    # Its model is asked for again.
    assert stage.worker.engine.loads == ["tests/tiny", "tests/other", "tests/other"]


def test_what_ended_while_the_row_was_on_its_way_is_not_missed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    crowded_out(monkeypatch, "tests/other")
    leaving, staying = stage.scheduler.submit(ask()), stage.scheduler.submit(ask())
    stage.worker.turn()
    waiting = stage.scheduler.submit(ask("other"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "step", lambda self: [])
        stage.worker.turn()
        leaving.cancel()
        stage.worker.turn(3)
    heard = outcome(waiting.completions())
    stage.worker.turn(3)
    staying.cancel()
    stage.worker.settle()
    assert heard == [[Completion("Hello", finished())]]


def test_a_row_that_finds_no_room_where_nobody_is_answered_is_told(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowded_out(monkeypatch, "tests/other")
    heard = outcome(stage.scheduler.submit(ask("other")).completions())
    stage.worker.settle()
    [error] = heard
    assert isinstance(error, NoRoomYet)


def test_rows_that_find_no_room_do_not_wait_for_each_other(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is told that there is none, when nobody is left who would make any; then there is for the other."""
    crowded_out(monkeypatch, "tests/tiny", "tests/other")
    heard = [outcome(stage.scheduler.submit(ask(name)).completions()) for name in ("tiny", "other")]
    stage.worker.settle()
    [[error], answered] = heard if isinstance(heard[0][0], NoRoomYet) else heard[::-1]
    assert isinstance(error, NoRoomYet)
    assert answered == [[Completion("Hello", finished())]]


def test_a_row_that_waits_goes_on_when_another_row_has_ended_though_its_answer_has_not(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedEngine, "step", lambda _: [])
    several = outcome(stage.scheduler.submit(ask(), ask()).completions())
    one = outcome(stage.scheduler.submit(ask("other")).completions())
    stage.worker.turn(3)
    deliver, rows = stage.worker.runner._deliver, stage.worker.engine.rows
    first, second, alone = rows
    for row, event in ((first, None), (alone, None), (second, finished())):
        rows.pop(row)
        deliver(row, event or Failed(NoRoomYet("no room", retry_after=1)))
    stage.worker.turn(3)
    # They are in the engine again: the row of the others' answer that has ended has made room.
    assert set(rows) == {first, alone}
    assert (several, one) == ([], [])


def test_who_gives_up_while_the_row_waits_keeps_nobody_behind(crowded: tuple[Stage, Generation, Generation]) -> None:
    stage, answering, waiting = crowded
    waiting.cancel()
    answering.cancel()
    stage.worker.settle()
    assert list(stage.worker.engine.rows) == []
    heard = outcome(stage.scheduler.submit(ask("other")).completions())
    stage.worker.settle()
    assert heard == [[Completion("Hello", finished())]]


def test_whose_row_waits_is_told_when_the_server_stops(crowded: tuple[Stage, Generation, Generation]) -> None:
    stage, _, waiting = crowded
    heard = outcome(waiting.completions())
    stage.scheduler.stop()
    [error] = heard
    assert isinstance(error, ServiceUnavailable)


def test_an_answer_that_has_begun_cannot_begin_again(stage: Stage) -> None:
    stage.scheduler.submit(ask())
    stage.worker.engine.script = [Piece("Hel"), Failed(NoRoomYet("no room", retry_after=1))]
    heard = outcome(stage.scheduler.submit(ask("other")).completions())
    stage.worker.settle()
    [error] = heard
    assert isinstance(error, NoRoomYet)
