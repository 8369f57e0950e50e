"""One answer as the reactor sees it."""

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from osaurus.chat import ApiError, Completion, Event, Failed, InternalError, Piece, Started
from osaurus.serving.generation import Generation

from .doubles import finished


def outcome(deferred: Deferred[Any]) -> list[object]:
    """What a Deferred has fired with: nothing yet, a value, or an exception."""
    fired: list[object] = []
    deferred.addCallbacks(fired.append, lambda failure: fired.append(failure.value))
    return fired


@pytest.fixture
def cancelled() -> list[Generation]:
    return []


@pytest.fixture
def generation(cancelled: list[Generation]) -> Generation:
    return Generation(cancelled.append, lambda *_: None)


def test_started_fires_when_the_prompt_is_admitted(generation: Generation) -> None:
    fired = outcome(generation.started())
    assert fired == []
    generation.deliver(Started(3))
    assert fired == [Started(3)]


def test_an_error_before_the_start_is_startings_failure(generation: Generation) -> None:
    error = InternalError("no")
    generation.deliver(Failed(error))
    assert outcome(generation.started()) == [error]


def test_events_that_came_before_a_listener_are_not_lost(generation: Generation) -> None:
    heard: list[Event] = []
    generation.deliver(Started(3))
    generation.deliver(Piece("a"))
    generation.listen(heard.append)
    generation.deliver(Piece("b"))
    assert heard == [Piece("a"), Piece("b")]


def test_completion_joins_the_pieces(generation: Generation) -> None:
    generation.deliver(Started(3))
    fired = outcome(generation.completions())
    for event in (Piece("a"), Piece("b"), finished()):
        generation.deliver(event)
    assert fired == [[Completion("ab", finished())]]


def test_completion_fails_with_the_error(generation: Generation) -> None:
    error: ApiError = InternalError("no")
    generation.deliver(Started(3))
    fired = outcome(generation.completions())
    generation.deliver(Failed(error))
    assert fired == [error]


@pytest.mark.parametrize("stage", ["started", "completions"])
def test_cancelling_what_one_waits_for_ends_the_answer_once(
    generation: Generation, cancelled: list[Generation], stage: str
) -> None:
    waited: Deferred[Any] = getattr(generation, stage)()
    fired = outcome(waited)
    waited.cancel()
    generation.cancel()
    assert cancelled == [generation]
    assert isinstance(fired[0], CancelledError)


def test_nothing_is_told_after_the_end(generation: Generation, cancelled: list[Generation]) -> None:
    heard: list[Event] = []
    generation.deliver(Started(3))
    generation.listen(heard.append)
    generation.deliver(finished())
    generation.deliver(Piece("late"))
    generation.cancel()
    assert heard == [finished()]
    assert cancelled == []
