"""Deletion, whose threads and whose engine take as long as a test likes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from osaurus.chat import InternalError
from osaurus.library.store import ModelStore
from osaurus.serving.catalogue import Catalogue

from .test_store import install


@define
class Deletion:
    """The deletion of a model, step by step."""

    store: ModelStore
    steps: list[Callable[[], None]] = field(factory=list)
    told: Deferred[None] = field(init=False)

    def __attrs_post_init__(self) -> None:
        catalogue = Catalogue(self.store, self.blocking)
        deleting = catalogue.delete(self.store.find("tiny"), lambda _: self.later(lambda: None))
        self.told = Deferred.fromCoroutine(deleting)

    def blocking(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        return self.later(lambda: function(*args))

    def later(self, step: Callable[[], Any]) -> Deferred[Any]:
        through: Deferred[Any] = Deferred()

        def take() -> None:
            maybeDeferred(step).addBoth(through.callback)

        self.steps.append(take)
        return through

    def go_on(self) -> None:
        while self.steps:
            self.steps.pop(0)()


@pytest.fixture
def deletion(tmp_path: Path) -> Deletion:
    install(tmp_path, "org/tiny")
    return Deletion(ModelStore(tmp_path))


def test_who_waits_is_told_when_the_files_are_gone(deletion: Deletion) -> None:
    told: list[object] = []
    deletion.told.addBoth(told.append)
    for _ in ("taken away", "let go", "removed"):
        assert not told
        deletion.steps.pop(0)()
    assert told == [None]
    assert list(deletion.store.folder.iterdir()) == []


@pytest.mark.parametrize("done", [0, 1, 2])
def test_the_files_go_though_who_asked_left(done: int, deletion: Deletion) -> None:
    for _ in range(done):
        deletion.steps.pop(0)()
    left: list[Any] = []
    deletion.told.addErrback(left.append)
    deletion.told.cancel()
    assert left[0].check(CancelledError)
    deletion.go_on()
    assert list(deletion.store.folder.iterdir()) == []


@pytest.mark.parametrize("waits", [True, False])
def test_who_waits_is_told_that_it_failed_and_else_the_log(
    waits: bool, deletion: Deletion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Path, "rename", broken)
    failures: list[Any] = []
    deletion.told.addErrback(failures.append)
    if not waits:
        deletion.told.cancel()
    with capturedLogs() as events:
        deletion.go_on()
    [failure] = failures
    assert isinstance(failure, Failure)
    assert failure.check(InternalError if waits else CancelledError)
    assert len([event for event in events if "cannot be deleted" in str(event["log_format"])]) == (not waits)
