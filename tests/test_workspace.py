"""The folders in which pulls are gathered do not get in each other's way."""

import fcntl
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from osaurus.library.progress import PullError
from osaurus.library.workspace import workspace


def write_old(folder: Path) -> Path:
    """Have a folder that nobody has written to for longer than it is kept."""
    folder.mkdir(parents=True)
    (folder / "a.part").write_text("x")
    os.utime(folder / "a.part", (time.time() - 8 * 86400,) * 2)
    return folder


def test_pulls_of_different_models_may_begin_and_end_at_any_time(tmp_path: Path) -> None:
    def pull(number: int) -> None:
        for _ in range(300):
            with workspace(tmp_path, f"org/model{number}") as folder:
                (folder / "a.part").touch()
                (folder / "a.part").rename(folder / "a")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(pull, range(4)))
    assert not (tmp_path / ".pulling").exists()


def test_an_old_folder_that_another_process_has_taken_up_is_left_to_it(tmp_path: Path) -> None:
    old = write_old(tmp_path / ".pulling" / "org--old")
    with (tmp_path / ".pulling" / "org--old.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with workspace(tmp_path, "org/new"):
            pass
        assert old.exists()
    # The lock of a process that was killed is nobody's.
    with workspace(tmp_path, "org/new"):
        pass
    assert not old.exists()


def test_one_that_cannot_be_looked_at_keeps_nobody_from_pulling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_old(tmp_path / ".pulling" / "org--old")
    look = Path.stat

    def stat(self: Path, **options: bool) -> os.stat_result:
        if self.name == "a.part":
            raise FileNotFoundError(2, "it has got its name meanwhile")
        return look(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    with workspace(tmp_path, "org/new") as folder:
        assert folder.exists()
    assert old.exists()


def test_a_folder_has_one_process_only(tmp_path: Path) -> None:
    with (
        workspace(tmp_path, "org/new"),
        pytest.raises(PullError, match="being pulled by another process"),
        workspace(tmp_path, "ORG/New"),
    ):
        pass
