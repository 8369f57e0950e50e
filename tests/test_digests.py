"""Digests of models' files, computed by threads that a test lets go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from osaurus.chat import InstalledModel
from osaurus.serving.digests import Digests

from .doubles import inline
from .test_api import Client

ONE = InstalledModel(
    id="one",
    repository="tests/one",
    folder=Path("/models/tests/one"),
    size=1,
    modified=0.0,
    family="llama",
    parameters=1,
    quantization="",
    context_length=1,
)
TWO, THREE = evolve(ONE, id="two"), evolve(ONE, id="three")


@define
class Disk:
    """Reads one model after the other, each for as long as a test likes."""

    reading: list[tuple[str, Deferred[Any]]] = field(factory=list)
    begun: list[str] = field(factory=list)
    digests: Digests = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.digests = Digests(lambda model: f"sha256:{model.id}", self.blocking)

    def blocking(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        [model] = args
        self.begun.append(model.id)
        result: Deferred[Any] = Deferred()
        self.reading.append((function(model), result))
        return result

    def go_on(self, error: Exception | None = None) -> None:
        """Have the thread that began first end."""
        digest, result = self.reading.pop(0)
        result.callback(digest) if error is None else result.errback(error)


@pytest.fixture
def disk() -> Disk:
    return Disk()


def heard(waiting: Deferred[str]) -> list[Any]:
    """What became of it, once that is known."""
    outcome: list[Any] = []
    waiting.addBoth(lambda result: outcome.append(result.type if isinstance(result, Failure) else result))
    return outcome


def test_models_are_read_one_after_the_other(disk: Disk) -> None:
    outcomes = [heard(disk.digests.of(model)) for model in (ONE, TWO)]
    assert disk.begun == ["one"]
    disk.go_on()
    assert (disk.begun, outcomes) == (["one", "two"], [["sha256:one"], []])
    disk.go_on()
    assert outcomes[1] == ["sha256:two"]


def test_all_who_ask_for_a_model_wait_for_the_same_thread(disk: Disk) -> None:
    outcomes = [heard(disk.digests.of(ONE)) for _ in range(3)]
    disk.go_on()
    assert (disk.begun, outcomes) == (["one"], [["sha256:one"]] * 3)
    heard(disk.digests.of(ONE))
    assert disk.begun == ["one", "one"]


def test_those_who_leave_do_not_begin_another_thread(disk: Disk) -> None:
    for _ in range(10):
        for model in (ONE, TWO):
            for in_memory in (True, False):
                waiting = disk.digests.of(model, in_memory=in_memory)
                outcome = heard(waiting)
                waiting.cancel()
                assert outcome == [CancelledError]
    assert disk.begun == ["one", "two"]
    stays = heard(disk.digests.of(ONE))
    disk.go_on()
    disk.go_on()
    assert (disk.begun, stays, disk.reading) == (["one", "two"], ["sha256:one"], [])


def test_a_model_in_memory_does_not_wait_behind_those_that_are_not(disk: Disk) -> None:
    listed = [heard(disk.digests.of(model)) for model in (ONE, TWO, THREE)]
    resident = [heard(disk.digests.of(model, in_memory=True)) for model in (THREE, TWO)]
    assert disk.begun == ["one", "three"]
    del disk.reading[0]
    disk.go_on()
    assert (resident[0], listed[2]) == (["sha256:three"], ["sha256:three"])
    disk.go_on()
    assert (resident[1], listed[1], listed[0]) == (["sha256:two"], ["sha256:two"], [])
    assert disk.begun == ["one", "three", "two"]


def test_files_that_cannot_be_read_are_told_to_all_and_hold_up_nobody(disk: Disk) -> None:
    outcomes = [heard(disk.digests.of(model)) for model in (ONE, ONE, TWO)]
    disk.go_on(OSError("gone"))
    disk.go_on()
    assert outcomes == [[OSError], [OSError], ["sha256:two"]]


def test_clients_that_leave_hold_no_thread_each(tiny_models: Path, disk: Disk) -> None:
    def blocking(function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        return disk.blocking(function, *args) if function.__name__ == "digest" else inline(function, *args)

    client = Client(tiny_models, blocking=blocking)
    client.ollama()
    for path in ("/api/tags", "/api/ps") * 5:
        sent = client.stub.request("GET", f"http://127.0.0.1:1337{path}")
        sent.addErrback(lambda _: None)
        for _ in range(3):
            client.stub.flush()
            client.worker.turn()
        sent.cancel()
        client.stub.flush()
    assert disk.begun == ["other", "tiny"]
