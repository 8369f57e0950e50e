"""How long models stay in memory."""

import math

import pytest
from attrs import define, field
from twisted.internet.task import Clock

from osaurus.serving.residency import Residency


@define
class House:
    """A residency whose usual time is five minutes."""

    clock: Clock = field(factory=Clock)
    unloaded: list[str] = field(factory=list)
    residency: Residency = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.residency = Residency(self.clock, self.unloaded.append, 300)

    def use(self, name: str, keep_alive: float | None = None) -> None:
        self.residency.begin(name, keep_alive)
        self.residency.end(name)


@pytest.fixture
def house() -> House:
    return House()


def test_a_model_stays_for_its_time_after_the_last_use(house: House) -> None:
    house.use("a")
    house.clock.advance(299)
    assert house.unloaded == []
    house.clock.advance(1)
    assert house.unloaded == ["a"]


def test_a_use_begins_the_time_anew(house: House) -> None:
    house.use("a")
    house.clock.advance(299)
    house.use("a")
    house.clock.advance(299)
    assert house.unloaded == []


def test_a_model_in_use_stays(house: House) -> None:
    house.residency.begin("a", 10)
    house.use("a", 10)
    house.clock.advance(1000)
    assert house.unloaded == []
    house.residency.end("a")
    house.clock.advance(10)
    assert house.unloaded == ["a"]


def test_the_last_request_says_how_long(house: House) -> None:
    house.use("a", math.inf)
    house.clock.advance(10**6)
    house.use("a", 5)
    house.clock.advance(5)
    assert house.unloaded == ["a"]


def test_no_time_is_at_once(house: House) -> None:
    house.use("a", 0)
    assert house.unloaded == ["a"]


def test_each_model_has_its_own_time(house: House) -> None:
    house.use("a", 5)
    house.use("b", 10)
    house.clock.advance(5)
    assert house.unloaded == ["a"]
    house.clock.advance(5)
    assert house.unloaded == ["a", "b"]


def test_a_model_that_is_to_stay_stays_unless_a_request_says_otherwise(house: House) -> None:
    house.residency.keep("a")
    house.use("a")
    house.clock.advance(10**6)
    assert house.unloaded == []
    house.use("a", 1)
    house.clock.advance(1)
    assert house.unloaded == ["a"]


def test_after_the_end_nothing_is_unloaded(house: House) -> None:
    house.use("a")
    house.residency.stop()
    house.residency.end("a")
    assert house.clock.getDelayedCalls() == []


def test_another_keep_alive_holds_from_the_next_use_on(house: House) -> None:
    house.use("a")
    house.residency.apply(10)
    assert house.residency.remaining("a") == 300
    house.use("a")
    assert house.residency.remaining("a") == 10
