"""Which runner answers for which model."""

from pathlib import Path

import pytest
from attrs import define, field

from osaurus.chat import Event, Piece, Sampling
from osaurus.engine.runner import Row
from osaurus.serving.runners import RunnerForEach

from .doubles import MemoryWorker, finished


@define
class Pair:
    """Two runners behind one face, and what is heard from them."""

    other: MemoryWorker = field(factory=MemoryWorker)
    named: MemoryWorker = field(factory=MemoryWorker)
    heard: list[Event] = field(factory=list)
    runner: RunnerForEach = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.runner = RunnerForEach(self.other.runner, {"mine": self.named.runner})

    def submit(self, name: str) -> None:
        row = Row(id=1, prompt=[1], max_tokens=8, sampling=Sampling(), stop=(), arrived=0, load=0)
        self.runner.submit(name, Path("folder"), row, self.heard.append)
        self.other.turn()
        self.named.turn()


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_model_is_loaded_and_unloaded_by_its_runner(pair: Pair) -> None:
    for name in ("mine", "theirs"):
        pair.runner.load(name, Path("folder"))
        pair.runner.unload(name)
    pair.other.turn()
    pair.named.turn()
    assert (pair.named.engine.loads, pair.named.engine.unloads) == (["mine"], ["mine"])
    assert (pair.other.engine.loads, pair.other.engine.unloads) == (["theirs"], ["theirs"])


@pytest.mark.parametrize("name", ["mine", "theirs"])
def test_a_row_is_heard_parked_and_cancelled_where_it_was_submitted(pair: Pair, name: str) -> None:
    worker, idle = (pair.named, pair.other) if name == "mine" else (pair.other, pair.named)
    pair.submit(name)
    assert pair.heard == [Piece("Hel")]
    pair.runner.park(1)
    worker.turn()
    assert worker.engine.parked == {1}
    pair.runner.unpark(1)
    worker.turn()
    assert worker.engine.parked == set()
    pair.runner.cancel(1)
    worker.turn()
    assert worker.engine.removed == [1]
    assert idle.engine.steps == 0


def test_a_row_that_has_ended_is_forgotten(pair: Pair) -> None:
    pair.submit("mine")
    pair.named.settle()
    assert pair.heard[-1] == finished()
    pair.runner.cancel(1)
    pair.runner.park(1)
    pair.named.turn()
    assert (pair.named.engine.removed, pair.named.engine.parked) == ([], set())


def test_what_is_in_the_way_is_what_the_other_says(pair: Pair) -> None:
    pair.other.runner.problem = "stuck"
    pair.named.runner.problem = "broken"
    assert pair.runner.problem == "stuck"
