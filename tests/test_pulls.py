"""Pulls under way: one process for each model, however many watch, and none that nobody waits for."""

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from osaurus.chat import (
    ApiError,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    PullFailed,
    RateLimitExceeded,
    ServiceUnavailable,
)
from osaurus.library.progress import Progress
from osaurus.serving.pulls import MOST_PULLS, PATIENCE, Pulls, Watch

from .doubles import MemoryProcess, MemorySpawn

NAME = "org/Tiny"


class Desk:
    """Pulls whose processes are the test's."""

    def __init__(self, models: Any) -> None:
        self.clock = Clock()
        self.spawn = MemorySpawn()
        self.pulls = Pulls(models, self.spawn, self.clock)

    def watch(self, name: str = NAME, quantize: int | None = None) -> Watch:
        """Watch a pull, which is not just being ended. Raises ApiError."""
        results: list[Any] = []
        Deferred.fromCoroutine(self.pulls.watch(name, quantize)).addBoth(results.append)
        [result] = results
        if isinstance(result, Failure):
            assert isinstance(result.value, ApiError)
            raise result.value
        assert isinstance(result, Watch)
        return result

    @property
    def process(self) -> MemoryProcess:
        """The process that was started last."""
        return self.spawn.processes[-1]


@pytest.fixture
def desk(tmp_path: Any) -> Desk:
    return Desk(tmp_path)


def now(waiting: Deferred[Progress]) -> Progress:
    """Return what is there already."""
    results: list[Progress] = []
    waiting.addCallback(results.append)
    [result] = results
    return result


def error(waiting: Deferred[Any]) -> ApiError:
    """Return what it has failed with."""
    failures: list[Any] = []
    waiting.addErrback(failures.append)
    [failure] = failures
    assert isinstance(failure.value, ApiError)
    return failure.value


def is_over(watch: Watch) -> bool:
    waiting = watch.next()
    over = waiting.called
    waiting.addErrback(lambda _: None)
    waiting.cancel()
    return over


def test_a_pull_is_a_process_of_its_own(desk: Desk, tmp_path: Any) -> None:
    desk.watch("Org/Tiny", 4)
    expected = ["-P", "-m", "osaurus.library.pull_process", "Org/Tiny", str(tmp_path), "--quantize", "4"]
    assert desk.process.arguments == expected


def test_a_short_name_is_pulled_as_what_it_stands_for(desk: Desk) -> None:
    desk.watch("SmolLM2:135m")
    assert desk.process.arguments[3] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_watcher_is_told_how_far_it_is(desk: Desk) -> None:
    watch = desk.watch(NAME)
    waiting = watch.next()
    assert not waiting.called
    desk.process.tell(status="pulling manifest")
    assert now(waiting) == Progress("pulling manifest")
    desk.process.tell(status="pulling 00", digest="sha256:00", total=10, completed=3)
    assert now(watch.next()) == Progress("pulling 00", "sha256:00", 10, 3)
    desk.process.tell(status="success")
    assert now(watch.next()).status == "success"


def test_what_arrives_in_pieces_is_put_together(desk: Desk) -> None:
    watch = desk.watch(NAME)
    for piece in (b'{"sta', b'tus": "a"}\n{"status"', b': "b"}\n'):
        desk.process.write(piece)
    assert [now(watch.next()).status for _ in range(2)] == ["a", "b"]


def test_of_one_file_a_slow_watcher_learns_the_latest_only(desk: Desk) -> None:
    watch = desk.watch(NAME)
    for digest in ("sha256:00", "sha256:11"):
        for completed in range(5):
            desk.process.tell(status="pulling", digest=digest, total=4, completed=completed)
    desk.process.tell(status="verifying")
    desk.process.tell(status="writing")
    told = [now(watch.next()) for _ in range(4)]
    assert [(progress.status, progress.digest, progress.completed) for progress in told] == [
        ("pulling", "sha256:00", 4),
        ("pulling", "sha256:11", 4),
        ("verifying", "", 0),
        ("writing", "", 0),
    ]


def test_several_watch_one_pull(desk: Desk) -> None:
    first = desk.watch(NAME)
    desk.process.tell(status="pulling", digest="sha256:00", total=4, completed=2)
    second = desk.watch("ORG/tiny")
    assert len(desk.spawn.processes) == 1
    assert now(first.next()) == now(second.next())
    desk.process.tell(status="success")
    assert now(first.next()) == now(second.next()) == Progress("success")


def test_other_bits_are_another_pull(desk: Desk) -> None:
    desk.watch(NAME)
    desk.watch(NAME, 4)
    assert len(desk.spawn.processes) == 2


def test_when_the_last_watcher_leaves_the_process_is_told_to_end_and_then_made_to(desk: Desk) -> None:
    first, second = desk.watch(NAME), desk.watch(NAME)
    first.leave()
    assert desk.process.signals == []
    second.leave()
    assert desk.process.signals == ["TERM"]
    desk.clock.advance(PATIENCE)
    assert desk.process.signals == ["TERM", "KILL"]
    desk.process.end(9)
    assert desk.clock.getDelayedCalls() == []


def test_one_that_ends_when_told_is_not_made_to(desk: Desk) -> None:
    desk.watch(NAME).leave()
    desk.process.end(143)
    desk.clock.advance(PATIENCE)
    assert desk.process.signals == ["TERM"]


def test_who_leaves_twice_leaves_once(desk: Desk) -> None:
    first, second = desk.watch(NAME), desk.watch(NAME)
    first.leave()
    first.leave()
    assert desk.process.signals == []
    assert not is_over(second)


def test_who_leaves_when_all_is_done_ends_nothing(desk: Desk) -> None:
    watch = desk.watch(NAME)
    desk.process.tell(status="success")
    watch.leave()
    desk.process.end()
    assert desk.process.signals == []


def test_who_comes_while_it_is_being_ended_waits_for_that_and_has_another(desk: Desk) -> None:
    desk.watch(NAME).leave()
    watches: list[Watch] = []
    waiting = [Deferred.fromCoroutine(desk.pulls.watch(NAME)) for _ in range(3)]
    for one in waiting[:2]:
        one.addCallback(watches.append)
    waiting[2].addErrback(lambda failure: failure.trap(CancelledError))
    waiting[2].cancel()
    assert watches == []
    desk.process.end(143)
    assert len(watches) == 2
    assert len(desk.spawn.processes) == 2
    desk.process.tell(status="success")
    assert [now(watch.next()).status for watch in watches] == ["success", "success"]


def test_who_waits_for_that_when_the_server_stops_is_told(desk: Desk) -> None:
    desk.watch(NAME).leave()
    waiting = Deferred.fromCoroutine(desk.pulls.watch(NAME))
    desk.pulls.stop()
    desk.process.end(143)
    assert isinstance(error(waiting), ServiceUnavailable)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("NoSuchRepository", ModelNotFound), ("AccessDenied", Forbidden), ("PullError", PullFailed), ("x", PullFailed)],
)
def test_what_goes_wrong_is_told_to_everybody(desk: Desk, kind: str, expected: type[ApiError]) -> None:
    watches = [desk.watch(NAME), desk.watch(NAME)]
    desk.process.tell(error="there is none", kind=kind)
    desk.process.end()
    for watch in watches:
        told = error(watch.next())
        assert (type(told), told.message, told.param) == (expected, "there is none", "model")


def test_who_leaves_because_it_failed_ends_nothing(desk: Desk) -> None:
    watch = desk.watch(NAME)
    watch.next().addErrback(lambda _: watch.leave())
    desk.process.end(1)
    assert desk.process.signals == []
    assert desk.clock.getDelayedCalls() == []


@pytest.mark.parametrize("succeeds", [True, False])
def test_who_leaves_when_it_is_over_keeps_no_news_from_the_others(desk: Desk, succeeds: bool) -> None:
    told: list[str] = []
    for name in ("first", "second", "third"):
        watch = desk.watch(NAME)

        def over(_: object, watch: Watch = watch, name: str = name) -> None:
            told.append(name)
            watch.leave()

        watch.next().addBoth(over)
    if succeeds:
        desk.process.tell(status="success")
    desk.process.end(0 if succeeds else 1)
    assert told == ["first", "second", "third"]
    assert desk.process.signals == []


def test_a_process_that_dies_is_logged_with_what_it_said(desk: Desk) -> None:
    watch = desk.watch(NAME)
    assert desk.process.protocol is not None
    desk.process.protocol.errReceived(b"x" * 10_000 + b"out of memory")
    with capturedLogs() as events:
        desk.process.end(1)
    assert isinstance(error(watch.next()), PullFailed)
    [event] = events
    assert event["errors"].endswith("out of memory")
    assert len(event["errors"]) < 5000


@pytest.mark.parametrize(
    "line", [b"Loading...\n", b"[1]\n", b'{"no": "status"}\n', b"\xff\n", b'{"error": "x"}\n', b"\n"]
)
def test_what_is_not_understood_is_passed_over(desk: Desk, line: bytes) -> None:
    watch = desk.watch(NAME)
    with capturedLogs() as events:
        desk.process.write(line)
    assert len(events) == 1
    desk.process.tell(status="success")
    assert now(watch.next()).status == "success"


def test_a_line_without_end_ends_it(desk: Desk) -> None:
    watch = desk.watch(NAME)
    desk.process.write(b"x" * 100_000)
    assert desk.process.signals == ["TERM"]
    desk.process.end(143)
    assert isinstance(error(watch.next()), PullFailed)


@pytest.mark.parametrize("name", ["", "tiny", "../x/y", "http://evil.example/a/b", "org/a--b", "--help/x", "x" * 500])
def test_a_name_that_is_none_starts_nothing(desk: Desk, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        desk.watch(name)
    assert caught.value.param == "model"
    assert desk.spawn.processes == []


def test_bits_that_cannot_be_packed_start_nothing(desk: Desk) -> None:
    with pytest.raises(InvalidRequest) as caught:
        desk.watch(NAME, 7)
    assert caught.value.param == "quantize"
    assert desk.spawn.processes == []


def test_there_are_only_so_many_at_once(desk: Desk) -> None:
    for number in range(MOST_PULLS):
        desk.watch(f"org/model{number}")
    with pytest.raises(RateLimitExceeded):
        desk.watch(NAME)
    desk.watch("org/model0")
    desk.process.end(1)
    desk.watch(NAME)


def test_a_process_that_cannot_be_started_is_an_error_and_no_pull(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as context:
        context.setattr(MemorySpawn, "__call__", none)
        with pytest.raises(PullFailed, match="Resource temporarily unavailable"):
            desk.watch(NAME)
    desk.watch(NAME)
    assert len(desk.spawn.processes) == 1


def test_stopping_ends_all_and_tells_everybody(desk: Desk) -> None:
    watch = desk.watch(NAME)
    stopped = desk.pulls.stop()
    assert desk.process.signals == ["TERM"]
    assert not stopped.called
    desk.process.end(143)
    assert stopped.called
    assert isinstance(error(watch.next()), ServiceUnavailable)
    with pytest.raises(ServiceUnavailable):
        desk.watch(NAME)


def test_stopping_with_nothing_under_way_waits_for_nothing(desk: Desk) -> None:
    assert desk.pulls.stop().called


def test_waiting_that_is_cancelled_loses_nothing(desk: Desk) -> None:
    watch = desk.watch(NAME)
    waiting = watch.next()
    waiting.addErrback(lambda _: None)
    waiting.cancel()
    desk.process.tell(status="pulling")
    assert now(watch.next()).status == "pulling"
