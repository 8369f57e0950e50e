"""When a server that nobody asks anything of ends."""

import math

import pytest
from attrs import define, field
from twisted.internet.task import Clock

from osaurus.serving.idleness import Idleness


@define
class House:
    """An idleness of ten seconds that has begun, and how often it ended."""

    clock: Clock = field(factory=Clock)
    ends: list[float] = field(factory=list)
    idleness: Idleness = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.idleness = Idleness(self.clock, lambda: self.ends.append(self.clock.seconds()), 10)
        self.idleness.start()


@pytest.fixture
def house() -> House:
    return House()


def test_without_anybody_it_ends_when_its_time_is_over(house: House) -> None:
    house.clock.advance(9)
    assert house.ends == []
    house.clock.advance(1)
    assert house.ends == [10]


def test_who_is_served_holds_it_up_and_the_time_begins_anew(house: House) -> None:
    house.clock.advance(9)
    house.idleness.begin()
    house.idleness.begin()
    house.clock.advance(100)
    house.idleness.finish()
    house.clock.advance(100)
    house.idleness.finish()
    house.clock.advance(9)
    assert house.ends == []
    house.clock.advance(1)
    assert house.ends == [219]


def test_what_was_no_use_is_waited_for_and_its_time_goes_on(house: House) -> None:
    house.clock.advance(5)
    house.idleness.begin()
    house.clock.advance(8)
    assert house.ends == []
    house.idleness.finish(used=False)
    house.clock.advance(0)
    assert house.ends == [13]


def test_another_patience_counts_from_when_somebody_was_served_last(house: House) -> None:
    house.clock.advance(5)
    house.idleness.apply(30)
    house.clock.advance(24)
    assert house.ends == []
    house.idleness.apply(2)
    house.clock.advance(0)
    assert house.ends == [29]


def test_patience_without_end_waits_for_nothing(house: House) -> None:
    house.idleness.apply(math.inf)
    assert house.clock.getDelayedCalls() == []


def test_where_the_end_has_begun_it_waits_for_nothing_whoever_is_served(house: House) -> None:
    house.idleness.begin()
    house.idleness.stop()
    house.idleness.finish()
    house.idleness.apply(1)
    assert house.clock.getDelayedCalls() == []


def test_before_the_start_it_waits_for_nothing() -> None:
    clock = Clock()
    idleness = Idleness(clock, lambda: None, 10)
    idleness.begin()
    idleness.finish()
    assert clock.getDelayedCalls() == []
