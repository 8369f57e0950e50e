"""What blocks for one model takes turns, so that there are threads for the others."""

from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred

from osaurus.serving.blocking import AT_ONCE, Turns

from .test_generation import outcome


@define
class Threads:
    """As many threads as are wanted; what one runs is over when a test says so."""

    running: dict[str, Deferred[Any]] = field(factory=dict)
    turns: Turns = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.turns = Turns(self.run)

    def run(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        [name] = args
        self.running[name] = Deferred()
        return self.running[name].addCallback(lambda _: function(name))

    def end(self, name: str) -> None:
        self.running.pop(name).callback(None)

    def ask(self, model: str, *names: str) -> list[Deferred[str]]:
        return [self.turns.run(model, str.upper, name) for name in names]


@pytest.fixture
def threads() -> Threads:
    return Threads()


def test_one_model_has_so_many_threads_and_the_others_theirs(threads: Threads) -> None:
    first = threads.ask("one", "a", "b", "c", "d", "e")
    assert AT_ONCE == 3
    assert list(threads.running) == ["a", "b", "c"]
    threads.ask("two", "x")
    assert list(threads.running) == ["a", "b", "c", "x"]
    threads.end("b")
    assert list(threads.running) == ["a", "c", "x", "d"]
    assert outcome(first[1]) == ["B"]


def test_what_fails_is_told_and_gives_its_turn_back(threads: Threads) -> None:
    def fail(name: str) -> str:
        raise ValueError(name)

    failing = [threads.turns.run("one", fail, name) for name in "abcd"]
    threads.end("a")
    [error] = outcome(failing[0])
    assert isinstance(error, ValueError)
    assert list(threads.running) == ["b", "c", "d"]
    for name in "bcd":
        threads.end(name)
    assert [type(error) for asked in failing[1:] for error in outcome(asked)] == [ValueError] * 3


def test_who_leaves_the_line_is_not_run(threads: Threads) -> None:
    *_, leaving, staying = threads.ask("one", "a", "b", "c", "d", "e")
    leaving.cancel()
    assert [type(error) for error in outcome(leaving)] == [CancelledError]
    threads.end("a")
    assert list(threads.running) == ["b", "c", "e"]
    threads.end("e")
    assert outcome(staying) == ["E"]


def test_who_leaves_while_the_thread_runs_keeps_the_turn_until_it_is_over(threads: Threads) -> None:
    leaving = threads.ask("one", "a", "b", "c")
    waiting = threads.ask("one", "d")
    for asked in leaving:
        asked.cancel()
    assert [type(error) for asked in leaving for error in outcome(asked)] == [CancelledError] * 3
    assert list(threads.running) == ["a", "b", "c"]
    threads.end("c")
    assert list(threads.running) == ["a", "b", "d"]
    threads.end("d")
    assert outcome(waiting[0]) == ["D"]
