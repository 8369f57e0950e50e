"""Counting on the engine thread: what is counted, and that what rows say of themselves is true."""

from collections.abc import Callable

import pytest

from osaurus.chat import Finished
from osaurus.engine.tally import ModelTally, Stopwatch, Tally
from osaurus.figures import BETWEEN_TOKENS, TO_FIRST_TOKEN, ModelCounts

from .desk import GREEDY, PROMPTS, Desk

MILLISECOND = 10**6


def of(tally: ModelTally) -> ModelCounts:
    return tally.counts()


@pytest.mark.parametrize(("seconds", "interval"), [(0.0, 0), (0.5, 0), (1.0, 0), (1.1, 1), (2.0, 1), (2.1, 2)])
def test_a_duration_is_counted_in_the_first_interval_that_does_not_end_before_it(seconds: float, interval: int) -> None:
    watch = Stopwatch((1.0, 2.0))
    watch.took(seconds)
    counts = [0, 0, 0]
    counts[interval] = 1
    assert watch.durations().counts == tuple(counts)
    assert watch.durations().total == seconds


@pytest.mark.parametrize("bounds", [TO_FIRST_TOKEN, BETWEEN_TOKENS])
def test_the_intervals_reach_from_milliseconds_to_minutes(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
    assert bounds[0] == 0.005
    assert bounds[-1] >= 120


def test_tokens_that_come_at_once_share_the_time_that_they_took() -> None:
    tally = ModelTally("tiny")
    tally.wrote_first(1, 300 * MILLISECOND)
    tally.wrote(4, 100 * MILLISECOND)
    counts = of(tally)
    assert counts.completion_tokens == 5
    assert (sum(counts.to_first_token.counts), counts.to_first_token.total) == (1, 0.3)
    assert counts.between_tokens.counts[BETWEEN_TOKENS.index(0.03)] == 4
    assert counts.between_tokens.total == pytest.approx(0.1)


def test_the_time_in_which_a_row_stood_still_is_not_between_its_tokens() -> None:
    tally = ModelTally("tiny")
    tally.wrote(1, None)
    assert of(tally).completion_tokens == 1
    assert sum(of(tally).between_tokens.counts) == 0


def test_a_prompt_of_which_nothing_was_read_before_is_a_miss() -> None:
    tally = ModelTally("tiny")
    tally.began(10, 0)
    tally.began(10, 8)
    counts = of(tally)
    assert (counts.prompt_tokens, counts.cached_tokens) == (20, 8)
    assert (counts.prefix_hits, counts.prefix_misses) == (1, 1)


def test_each_model_is_counted_by_itself_and_goes_on_where_it_was() -> None:
    tally = Tally()
    tally.of("one").began(1, 0)
    tally.of("two").began(2, 0)
    tally.of("one").began(3, 0)
    assert [(counts.name, counts.prompt_tokens) for counts in tally.counts()] == [("one", 4), ("two", 2)]


# What real rows have counted.


@pytest.fixture
def counted(desk: Desk) -> Callable[[], ModelCounts]:
    """What the desk's engine has counted of its model."""

    def counts() -> ModelCounts:
        [found] = desk.engine._tally.counts()
        assert isinstance(found, ModelCounts)
        return found

    return counts


def usages(desk: Desk) -> tuple[int, int, int]:
    """The tokens that the rows say were read, found read, and written."""
    ends = [end.usage for end in desk.ends.values() if isinstance(end, Finished)]
    assert len(ends) == len(desk.ends)
    return (
        sum(usage.prompt_tokens for usage in ends),
        sum(usage.cached_tokens for usage in ends),
        sum(usage.completion_tokens for usage in ends),
    )


def test_what_is_counted_is_what_the_answers_say(desk: Desk, counted: Callable[[], ModelCounts]) -> None:
    for number, prompt in enumerate(PROMPTS):
        desk.add(number, prompt)
    desk.finish()
    desk.add(len(PROMPTS), PROMPTS[2])
    desk.finish()
    counts = counted()
    assert (counts.prompt_tokens, counts.cached_tokens, counts.completion_tokens) == usages(desk)
    assert counts.cached_tokens > 0
    assert (counts.prefix_hits, counts.prefix_misses) == (1, len(PROMPTS))


def test_every_token_but_the_first_of_each_answer_has_a_time_before_it(
    desk: Desk, counted: Callable[[], ModelCounts]
) -> None:
    # The last repeats itself, so that drafts are right and several tokens come at once.
    prompts = [*PROMPTS, "one two three four five six seven eight nine ten " * 6]
    for number, prompt in enumerate(prompts):
        desk.add(number, prompt, max_tokens=60)
    desk.finish()
    counts = counted()
    assert sum(counts.to_first_token.counts) == len(prompts)
    assert sum(counts.between_tokens.counts) == counts.completion_tokens - len(prompts)


def test_tokens_are_counted_while_an_answer_is_written(desk: Desk, counted: Callable[[], ModelCounts]) -> None:
    desk.add(1, "Hello", max_tokens=20)
    seen = []
    while not desk.ends:
        desk.step()
        seen.append(counted().completion_tokens)
    assert seen == sorted(seen)
    assert len(set(seen)) > 3


def test_a_parked_row_is_read_again_without_being_counted_again(desk: Desk, counted: Callable[[], ModelCounts]) -> None:
    desk.add(1, "Hello", max_tokens=20, sampling=GREEDY)
    while not counted().completion_tokens:
        desk.step()
    desk.engine.park(1)
    before = counted()
    desk.engine.unpark(1)
    desk.finish()
    after = counted()
    assert after.prompt_tokens == before.prompt_tokens
    assert after.prefix_hits + after.prefix_misses == 1
    # Neither the first token has one before it, nor that with which it went on.
    assert sum(after.between_tokens.counts) == after.completion_tokens - 2
