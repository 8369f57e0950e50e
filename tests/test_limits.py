"""So many requests for a model at once, and so many a minute; one that is too many is told when to come again."""

import pytest
from twisted.internet.task import Clock

from osaurus.chat import InvalidRequest, RateLimitExceeded
from osaurus.serving.limits import MOST_CHOICES, Limits


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refusal(limits: Limits, model: str = "m") -> RateLimitExceeded:
    """The error that one request more gets."""
    with pytest.raises(RateLimitExceeded) as caught:
        limits.enter(model, object())
    return caught.value


def test_as_many_are_let_in_as_the_limit_says(clock: Clock) -> None:
    limits = Limits(clock, 2, 0)
    limits.enter("m", "first")
    limits.enter("m", "second")
    assert "2 are the most" in refusal(limits).message
    limits.enter("other", "third")


def test_a_request_that_is_over_makes_place(clock: Clock) -> None:
    limits = Limits(clock, 1, 0)
    limits.enter("m", "first")
    limits.leave("m", "first")
    limits.enter("m", "second")
    refusal(limits)


def test_what_was_never_let_in_makes_no_place(clock: Clock) -> None:
    limits = Limits(clock, 1, 0)
    limits.enter("m", "first")
    limits.leave("m", "second")
    limits.leave("unknown", "first")
    refusal(limits)


def test_as_many_are_let_in_a_minute_as_the_limit_says(clock: Clock) -> None:
    limits = Limits(clock, 0, 3)
    for number in range(3):
        limits.enter("m", number)
        limits.leave("m", number)
        clock.advance(10)
    assert refusal(limits).retry_after == 30
    clock.advance(29.5)
    assert refusal(limits).retry_after == 1
    clock.advance(0.5)
    limits.enter("m", "again")


def test_those_that_are_refused_do_not_count(clock: Clock) -> None:
    limits = Limits(clock, 1, 2)
    limits.enter("m", "first")
    for _ in range(5):
        refusal(limits)
    limits.leave("m", "first")
    limits.enter("m", "second")


def test_a_full_model_says_to_come_again_when_its_oldest_request_should_be_over(clock: Clock) -> None:
    limits = Limits(clock, 1, 0)
    for number in range(50):
        limits.enter("m", number)
        clock.advance(20)
        limits.leave("m", number)
    limits.enter("m", "long")
    assert refusal(limits).retry_after == 20
    clock.advance(15)
    assert refusal(limits).retry_after == 5
    clock.advance(100)
    assert refusal(limits).retry_after == 1


def test_a_limit_of_none_lets_everybody_in(clock: Clock) -> None:
    limits = Limits(clock, 0, 0)
    for number in range(1000):
        limits.enter("m", number)


@pytest.mark.parametrize(("concurrent", "most"), [(10, 10), (0, MOST_CHOICES)])
def test_one_request_asks_for_no_more_answers_than_there_may_be_requests(
    clock: Clock, concurrent: int, most: int
) -> None:
    limits = Limits(clock, concurrent, 0)
    limits.enter("m", "most", most)
    with pytest.raises(InvalidRequest, match=rf"at most {most} .* not {most + 1}") as caught:
        limits.enter("m", "more", most + 1)
    assert caught.value.param == "n"


def test_where_each_prompt_has_one_answer_it_is_the_prompts_that_are_too_many(clock: Clock) -> None:
    limits = Limits(clock, 10, 0)
    limits.enter("m", "most", 10, 10)
    with pytest.raises(InvalidRequest, match=r"^prompt: at most 10 can be answered at once, not 11$") as caught:
        limits.enter("m", "more", 11, 11)
    assert caught.value.param == "prompt"
    with pytest.raises(InvalidRequest, match="prompts times n, not 12") as caught:
        limits.enter("m", "more", 12, 6)
    assert caught.value.param == "n"


def test_other_limits_hold_from_then_on_and_whoever_is_in_stays(clock: Clock) -> None:
    limits = Limits(clock, 3, 0)
    for number in range(3):
        limits.enter("m", number)
    limits.apply(2, 0)
    refusal(limits)
    limits.leave("m", 0)
    refusal(limits)
    limits.leave("m", 1)
    limits.enter("m", "again")
    limits.apply(0, 1)
    limits.enter("m", "one")
    assert "within a minute" in refusal(limits).message
