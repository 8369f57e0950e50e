"""The file that tells of a running server: what it says, how long it is there, who believes it."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from stat import S_IMODE
from time import sleep

import pytest
from attrs import evolve

from osaurus.discovery import FILE, Announcement, Instance, running

from .server import TWISTD, environment, free_port, serving, wait_for_port

ADDRESS = ("127.0.0.1", 1337)


def published(folder: Path, address: tuple[str, int] | None = ADDRESS) -> Announcement:
    announcement = Announcement(folder, exposed=False, models_dir=Path("/models"))
    announcement.publish(address)
    return announcement


def wait_for_word(runtime: Path) -> Instance:
    """A server's ports are open a little before it tells of itself."""
    for _ in range(600):
        if found := running(runtime):
            return found[0]
        sleep(0.05)
    raise AssertionError("no server tells of itself")


def left_behind(folder: Path, **content: object) -> Path:
    """A file whose server nobody knows."""
    path = folder / "F26F8B59" / FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"health": "running", "updatedAt": "2025-09-08T12:35:12Z", **content}))
    return path


def test_it_says_what_the_app_for_macos_says_and_which_process_and_models(tmp_path: Path) -> None:
    published(tmp_path)
    [file] = tmp_path.glob(f"*/{FILE}")
    content = json.loads(file.read_text())
    assert content.pop("updatedAt").endswith("Z")
    assert content.pop("version")
    assert content == {
        "instanceId": file.parent.name,
        "port": 1337,
        "address": "127.0.0.1",
        "url": "http://127.0.0.1:1337",
        "exposeToNetwork": False,
        "health": "running",
        "pid": os.getpid(),
        "modelsDirectory": "/models",
    }


def test_only_its_user_can_read_it(tmp_path: Path) -> None:
    published(tmp_path / "runtime")
    [file] = tmp_path.glob(f"*/*/{FILE}")
    assert [S_IMODE(path.stat().st_mode) for path in (file, file.parent, file.parent.parent)] == [0o600, 0o700, 0o700]


def test_an_address_of_version_6_is_bracketed_in_the_url(tmp_path: Path) -> None:
    published(tmp_path, address=("::1", 1337))
    assert running(tmp_path)[0].url == "http://[::1]:1337"


def test_a_server_without_a_tcp_port_is_running_but_has_no_url(tmp_path: Path) -> None:
    published(tmp_path, address=None)
    [instance] = running(tmp_path)
    assert (instance.url, instance.pid) == (None, os.getpid())


def test_the_latest_comes_first(tmp_path: Path) -> None:
    for port in (1001, 1002, 1003):
        published(tmp_path, address=("127.0.0.1", port))
    assert [instance.url for instance in running(tmp_path)] == [
        f"http://127.0.0.1:{port}" for port in (1003, 1002, 1001)
    ]


def test_withdrawn_it_is_gone_with_its_folder(tmp_path: Path) -> None:
    announcement = published(tmp_path)
    [instance] = running(tmp_path)
    assert instance.now() == instance
    announcement.withdraw()
    assert list(tmp_path.iterdir()) == []
    assert instance.now() is None
    announcement.withdraw()


def test_one_that_stops_says_by_when_and_is_known_until_then(tmp_path: Path) -> None:
    announcement = published(tmp_path)
    [before] = running(tmp_path)
    assert before.ends_by is None
    announcement.tell_end(60)
    [instance] = running(tmp_path)
    assert instance.ends_by is not None
    assert instance.ends_by > datetime.now(UTC)
    assert before.now() == instance == evolve(before, ends_by=instance.ends_by)
    announcement.withdraw()
    assert (before.now(), list(tmp_path.iterdir())) == (None, [])


def test_who_looks_at_the_file_just_then_does_not_take_it_for_dead(tmp_path: Path) -> None:
    announcement = published(tmp_path)
    [file] = tmp_path.glob(f"*/{FILE}")
    with file.open() as looking:
        announcement.tell_end(60)
        with pytest.raises(BlockingIOError):
            fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_one_that_told_nothing_tells_no_end(tmp_path: Path) -> None:
    Announcement(tmp_path, exposed=False, models_dir=Path("/models")).tell_end(60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["soon", 1, None])
def test_an_end_that_makes_no_sense_is_none(tmp_path: Path, moment: object) -> None:
    left_behind(tmp_path, health="stopping", endsBy=moment)
    assert [instance.ends_by for instance in running(tmp_path)] == [None]


def test_where_nothing_can_be_locked_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks"):
        published(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_server_left_is_removed_even_if_its_number_lives_on(tmp_path: Path) -> None:
    left_behind(tmp_path, pid=os.getpid(), url="http://127.0.0.1:1337")
    assert running(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_the_app_is_believed_and_left_alone(tmp_path: Path) -> None:
    path = left_behind(tmp_path, url="http://127.0.0.1:1338", port=1338, address="127.0.0.1")
    [instance] = running(tmp_path)
    assert (instance.url, instance.pid, instance.models_dir) == ("http://127.0.0.1:1338", None, None)
    assert path.exists()


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 60000, '{"health": "starting"}', '{"health": 1}'])
def test_what_makes_no_sense_is_passed_over(tmp_path: Path, text: str) -> None:
    left_behind(tmp_path).write_text(text)
    assert running(tmp_path) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = left_behind(tmp_path / "elsewhere", url="http://127.0.0.1:1338")
    (tmp_path / "runtime" / "X").mkdir(parents=True)
    (tmp_path / "runtime" / "X" / FILE).symlink_to(target)
    assert running(tmp_path / "runtime") == []


def test_without_the_folder_nothing_runs(tmp_path: Path) -> None:
    assert running(tmp_path / "none") == []


def test_a_server_is_told_of_while_it_runs(tmp_path: Path) -> None:
    runtime = tmp_path / ".osaurus" / "runtime"
    with serving(tmp_path, tmp_path / "models") as server:
        instance = wait_for_word(runtime)
        assert (instance.url, instance.pid, instance.exposed) == (server.url, server.process.pid, False)
        assert instance.models_dir == tmp_path / "models"
        assert instance.now() == instance
        server.stop()
        assert list(runtime.iterdir()) == []


def test_a_server_that_was_killed_is_not_believed(tmp_path: Path) -> None:
    runtime = tmp_path / ".osaurus" / "runtime"
    with serving(tmp_path, tmp_path / "models") as server:
        wait_for_word(runtime)
        server.stop(signal.SIGKILL)
        assert len(list(runtime.iterdir())) == 1
        assert running(runtime) == []
        assert list(runtime.iterdir()) == []


def test_the_port_that_the_system_chose_is_told(tmp_path: Path) -> None:
    socket_path = tmp_path / "a socket"
    process = subprocess.Popen(
        [TWISTD, "-n", "--pidfile=", "osaurus", "--no-auth", "--listen", f"unix:{socket_path}", "--listen", "tcp:0"],
        cwd=tmp_path,
        env=environment(tmp_path, tmp_path, free_port()),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        instance = wait_for_word(tmp_path / ".osaurus" / "runtime")
        assert instance.exposed
        assert instance.url is not None
        host, _, port = instance.url.removeprefix("http://").partition(":")
        assert host == "127.0.0.1"
        wait_for_port(int(port), process)
    finally:
        process.terminate()
        process.wait(30)


def test_a_server_that_cannot_tell_of_itself_serves_all_the_same(tmp_path: Path) -> None:
    (tmp_path / ".osaurus").write_text("in the way")
    with serving(tmp_path, tmp_path / "models") as server:
        # The port is open before anybody is told.
        deadline = time.monotonic() + 30
        while "are not told how the server is" not in server.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert server.stop() == -signal.SIGTERM
