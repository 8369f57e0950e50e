"""What was read outlasts the process, and nothing on the disk is believed."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from attrs import define

from osaurus.chat import Finished
from osaurus.engine.backend import Backend

from .conftest import CACHE
from .desk import Desk
from .test_prefixes import SYSTEM, ask

BUDGET = 2**26


def desk(backend: Backend, models: Path, folder: Path, budget: int = BUDGET) -> Desk:
    """A desk whose engine keeps prefixes in a folder, and none in memory that it was not told of since it began."""
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefix_files import PrefixFiles
    from osaurus.engine.prefixes import PrefixCache

    files = PrefixFiles(folder, budget, lambda thunk: thunk())
    return Desk(MLXEngine(backend, PrefixCache(2**24, files), 2**32), models)


def blocks(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if len(path.name) == 64)


def test_after_a_restart_a_prompt_is_not_read_again_and_the_answer_is_the_same(
    backend: Backend, tiny_models: Path, tmp_path: Path
) -> None:
    first = ask(desk(backend, tiny_models, tmp_path / "p"), SYSTEM)
    assert first[1] == 0
    again = desk(backend, tiny_models, tmp_path / "p")
    text, cached = ask(again, SYSTEM)
    assert text == first[0]
    assert cached > 100
    assert ask(again, SYSTEM, name="other")[1] == 0


def test_the_files_are_nobody_elses_business(backend: Backend, tiny_models: Path, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        ask(desk(backend, tiny_models, tmp_path / "p"), SYSTEM)
    finally:
        os.umask(old)
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in blocks(tmp_path / "p")} == {0o600}


def test_figures_tell_what_the_files_take(backend: Backend, tiny_models: Path, tmp_path: Path) -> None:
    kept = desk(backend, tiny_models, tmp_path / "p")
    assert kept.engine.figures().prefix_files_nbytes == 0
    ask(kept, SYSTEM)
    size = sum(path.stat().st_size for path in blocks(tmp_path / "p"))
    assert kept.engine.figures().prefix_files_nbytes == size > 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_file_is_removed_and_what_it_held_is_read_again(
    backend: Backend, tiny_models: Path, tmp_path: Path, damage: str
) -> None:
    expected = ask(desk(backend, tiny_models, tmp_path / "p"), SYSTEM)[0]
    for path in blocks(tmp_path / "p"):
        content = path.read_bytes()
        path.write_bytes(
            {
                "cut": content[:-1],
                "flipped": content[:-1] + bytes([content[-1] ^ 1]),
                "empty": b"",
                "other": b"\x80\x04cos\nsystem\n" * 10,
            }[damage]
        )
    before = set(blocks(tmp_path / "p"))
    assert ask(desk(backend, tiny_models, tmp_path / "p"), SYSTEM) == (expected, 0)
    # The first was found to be damaged, and all were written anew or left for later to find.
    assert len(set(blocks(tmp_path / "p"))) >= len(before) - 1
    assert ask(desk(backend, tiny_models, tmp_path / "p"), SYSTEM)[0] == expected


def refusing(code: int, done: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """What the system says in this folder, where nothing may be changed or there is no room; elsewhere it is done."""

    def refuse(path: Any, *given: Any, **named: Any) -> Any:
        if folder in Path(path).parents:
            raise OSError(code, os.strerror(code))
        return done(path, *given, **named)

    return refuse


def test_of_a_folder_that_has_become_read_only_everything_is_used(
    backend: Backend, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(desk(backend, tiny_models, tmp_path / "p"), SYSTEM)[0]
    again = desk(backend, tiny_models, tmp_path / "p")
    for owner, name in ((os, "utime"), (os, "open"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, refusing(errno.EROFS, getattr(owner, name), tmp_path))
    text, cached = ask(again, SYSTEM)
    assert text == expected
    assert cached > 100


def test_a_damaged_file_that_cannot_be_removed_costs_nothing_else(
    backend: Backend, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(desk(backend, tiny_models, tmp_path / "p"), SYSTEM)[0]
    for path in blocks(tmp_path / "p"):
        path.write_bytes(b"")
    again = desk(backend, tiny_models, tmp_path / "p")
    for owner, name in ((os, "open"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, refusing(errno.EROFS, getattr(owner, name), tmp_path))
    again.add(2, "x", max_tokens=64)
    again.step()
    assert ask(again, SYSTEM) == (expected, 0)
    assert isinstance(again.ends[2], Finished)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_where_a_file_cannot_be_written_none_is_tried_for_a_minute_and_the_log_says_so_once(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    import mlx.core as mx

    from osaurus.engine import prefix_files

    now, lines, waiting = [100.0], [], list[Callable[[], object]]()
    monkeypatch.setattr(prefix_files, "monotonic", lambda: now[0])
    monkeypatch.setattr(prefix_files.log, "warn", lambda *_, **told: lines.append(str(told["error"])))
    files = prefix_files.PrefixFiles(tmp_path / "p", BUDGET, waiting.append)
    block = {"keys": mx.zeros((4, 4))}

    def write() -> None:
        while waiting:
            waiting.pop()()

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refusing(code, os.open, tmp_path))
        for number in range(8):
            files.write(bytes([number]) * 32, block)
        assert len(waiting) == 8
        write()
    assert len(lines) == 1
    assert os.strerror(code) in lines[0]
    assert files.backlog == 0
    now[0] += 59
    files.write(b"n" * 32, block)
    assert waiting == []
    now[0] += 2
    files.write(b"n" * 32, block)
    write()
    assert len(blocks(tmp_path / "p")) == 1


@pytest.mark.parametrize("change", ["layers", "dtype", "names"])
def test_a_file_with_other_arrays_is_removed_however_right_its_checksum(
    backend: Backend, tiny_models: Path, tmp_path: Path, change: str
) -> None:
    import mlx.core as mx

    from osaurus.engine.prefix_files import PrefixFiles

    expected = ask(desk(backend, tiny_models, tmp_path / "p"), SYSTEM)[0]
    for path in blocks(tmp_path / "p"):
        name = bytes.fromhex(path.name)
        arrays = PrefixFiles(tmp_path / "p", BUDGET, lambda thunk: thunk()).read(name, dict)
        assert arrays is not None
        path.unlink()
        changed = {
            "layers": {key: mx.concatenate([values, values]) for key, values in arrays.items()},
            "dtype": {key: values.astype(mx.bfloat16) for key, values in arrays.items()},
            "names": {f"{key}s": values for key, values in arrays.items()},
        }[change]
        PrefixFiles(tmp_path / "p", BUDGET, lambda thunk: thunk()).write(name, changed)
    assert ask(desk(backend, tiny_models, tmp_path / "p"), SYSTEM) == (expected, 0)


def test_files_that_go_while_they_are_looked_for_are_not_missed(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server may be about to end, with the same folder."""
    from osaurus.engine.prefix_files import PrefixFiles

    folder = tmp_path / "p"
    folder.mkdir()
    names = ["a" * 64, f".{'b' * 64}.123", "c" * 64]
    for name in names:
        (folder / name).write_text("x")
    scandir = os.scandir

    def go_meanwhile(path: Path) -> Iterator[os.DirEntry[str]]:
        for entry in scandir(path):
            # Its kind is known from the folder.
            entry.is_file(follow_symlinks=False)
            if entry.name != "c" * 64:
                Path(entry.path).unlink()
            yield entry

    monkeypatch.setattr(os, "scandir", go_meanwhile)
    assert PrefixFiles(folder, BUDGET, lambda thunk: thunk()).nbytes == 1


def test_what_memory_does_not_hold_is_not_brought_into_it(backend: Backend, tiny_models: Path, tmp_path: Path) -> None:
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefix_files import PrefixFiles
    from osaurus.engine.prefixes import BLOCK, READ_AT_ONCE, PrefixCache

    long = SYSTEM * 2
    ask(desk(backend, tiny_models, tmp_path / "p"), long)
    token = desk(backend, tiny_models, tmp_path / "q").engine.load("tiny", tiny_models / "tests" / "tiny").token_nbytes
    budget = 2 * BLOCK * token
    most = 0

    @define(eq=False)
    class Watched(PrefixCache):
        def _evict(self) -> None:
            nonlocal most
            most = max(most, self.nbytes)
            super()._evict()

    files = PrefixFiles(tmp_path / "p", BUDGET, lambda thunk: thunk())
    again = Desk(MLXEngine(backend, Watched(budget, files), 2**32), tiny_models)
    assert ask(again, long)[0] == ask(desk(backend, tiny_models, tmp_path / "r"), long)[0]
    assert budget < most <= budget + (READ_AT_ONCE + 1) * BLOCK * token
    assert again.engine._prefixes.nbytes <= budget


def test_what_has_to_leave_memory_is_written_first(backend: Backend, tiny_models: Path, tmp_path: Path) -> None:
    kept = desk(backend, tiny_models, tmp_path / "p")
    kept.add(1, SYSTEM, max_tokens=64)
    while not kept.engine._prefixes._unwritten:
        kept.step()
    waiting = {name.hex() for name in kept.engine._prefixes._unwritten}
    kept.engine._prefixes.squeeze(0)
    assert kept.engine._prefixes.nbytes == 0
    assert not kept.engine._prefixes.unwritten
    assert waiting <= {path.name for path in blocks(tmp_path / "p")}
    kept.finish()


def test_a_file_that_belongs_to_other_tokens_is_not_found(backend: Backend, tiny_models: Path, tmp_path: Path) -> None:
    ask(desk(backend, tiny_models, tmp_path / "p"), SYSTEM)
    assert ask(desk(backend, tiny_models, tmp_path / "p"), "Something else, which is as long as that. " * 4)[1] == 0


def test_foreign_files_are_left_alone_and_unfinished_ones_removed(tmp_path: Path, backend: Backend) -> None:
    from osaurus.engine.prefix_files import PrefixFiles

    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / ("a" * 64)).symlink_to("/etc/passwd")
    (folder / f".{'b' * 64}.123").write_text("half")
    files = PrefixFiles(folder, BUDGET, lambda thunk: thunk())
    assert files.read(bytes.fromhex("a" * 64), dict) is None
    assert sorted(path.name for path in folder.iterdir()) == ["a" * 64, "notes.txt"]


def test_the_budget_holds_and_what_was_used_last_stays(backend: Backend, tmp_path: Path) -> None:
    import mlx.core as mx

    from osaurus.engine.prefix_files import PrefixFiles

    block = mx.zeros((2, 2, 32, 16))
    size = 2 * block.nbytes + 1024
    files = PrefixFiles(tmp_path / "p", 3 * size, lambda thunk: thunk())
    names = [bytes([number] * 32) for number in range(4)]
    for name in names[:3]:
        files.write(name, {"keys": block, "values": block})
    assert files.read(names[0], dict) is not None
    files.write(names[3], {"keys": block, "values": block})
    assert {path.name for path in blocks(tmp_path / "p")} == {names[number].hex() for number in (0, 2, 3)}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_block_comes_back_as_it_was(backend: Backend, tmp_path: Path, dtype: str) -> None:
    import mlx.core as mx

    from osaurus.engine.prefix_files import PrefixFiles

    keys, values = mx.random.normal((2, 2, 32, 16)).astype(getattr(mx, dtype)), mx.ones((2, 1, 32, 8))
    files = PrefixFiles(tmp_path / "p", BUDGET, lambda thunk: thunk())
    files.write(b"n" * 32, {"keys": keys, "values": values})
    found = PrefixFiles(tmp_path / "p", BUDGET, lambda thunk: thunk()).read(b"n" * 32, dict)
    assert found is not None
    assert found["keys"].dtype == keys.dtype
    assert mx.array_equal(found["keys"], keys)
    assert mx.array_equal(found["values"], values)


WRITER = """
import sys
from pathlib import Path
from osaurus.engine.backend import prepare
prepare(Path(sys.argv[1]))
import mlx.core as mx
from osaurus.engine.prefix_files import PrefixFiles, link
files = PrefixFiles(Path(sys.argv[2]), 2**28, lambda thunk: thunk())
name, number = b"", 0
while True:
    name, number = link(name, [number]), number + 1
    files.write(name, {kind: mx.full((4, 4, 256, 64), number) for kind in ("keys", "values")})
"""


def test_a_writer_that_is_killed_leaves_nothing_that_is_believed(backend: Backend, tmp_path: Path) -> None:
    from osaurus.engine.prefix_files import PrefixFiles, link

    folder = tmp_path / "p"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(CACHE), str(folder)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not folder.is_dir() or len(blocks(folder)) < 5):
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    files = PrefixFiles(folder, 2**28, lambda thunk: thunk())
    assert {path.name for path in folder.iterdir()} == {path.name for path in blocks(folder)}
    name, number = b"", 0
    while True:
        name, number = link(name, [number]), number + 1
        found = files.read(name, dict)
        if found is None:
            break
        assert {found["keys"].min().item(), found["values"].max().item()} == {number}
    assert number >= 5


@pytest.mark.parametrize(("memory", "warm"), [(2**24, True), (1, False)])
def test_while_others_write_a_prompt_comes_from_the_disk_bit_by_bit(
    backend: Backend, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, warm: bool
) -> None:
    """However much there is of it, and whether or not memory holds it."""
    from osaurus.engine import keeping
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefix_files import PrefixFiles
    from osaurus.engine.prefixes import PrefixCache

    expected = ask(desk(backend, tiny_models, tmp_path / "p"), SYSTEM)[0]
    files = PrefixFiles(tmp_path / "p", BUDGET, lambda thunk: thunk())
    again = Desk(MLXEngine(backend, PrefixCache(memory, files), 2**32), tiny_models)
    monkeypatch.setattr(keeping, "MOST_FETCHED", 2)
    read = PrefixFiles.read
    found: list[bool] = []

    def count(*asked: Any) -> Any:
        block = read(*asked)
        found.append(block is not None)
        return block

    monkeypatch.setattr(PrefixFiles, "read", count)
    again.add(1, "x", max_tokens=64)
    again.step()
    again.step()
    assert again.ends == {}
    again.add(2, SYSTEM)
    most = 0
    while 2 not in again.ends:
        found.clear()
        again.step()
        most = max(most, sum(found))
    assert again.texts[2] == expected
    end = again.ends[2]
    assert isinstance(end, Finished)
    if warm:
        assert most == 2
        assert end.usage.cached_tokens > 100


def test_writing_rests_while_the_engine_has_steps_to_do(backend: Backend, tiny_models: Path, tmp_path: Path) -> None:
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefix_files import PrefixFiles
    from osaurus.engine.prefixes import PrefixCache

    rests = []

    def write(thunk: Callable[[], object]) -> None:
        rests.append(not files.quiet.is_set())
        thunk()

    files = PrefixFiles(tmp_path / "p", BUDGET, write)
    assert files.quiet.is_set()
    ask(Desk(MLXEngine(backend, PrefixCache(2**24, files), 2**32), tiny_models), SYSTEM, max_tokens=1)
    # Some are written when the row has left, and nobody is in a hurry.
    assert (rests[0], rests[-1]) == (True, False)
    assert files.quiet.is_set()


@pytest.mark.parametrize("leave", ["remove", "park"])
def test_nobody_rests_for_a_row_that_has_left(backend: Backend, tiny_models: Path, tmp_path: Path, leave: str) -> None:
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefix_files import PrefixFiles
    from osaurus.engine.prefixes import PrefixCache

    files = PrefixFiles(tmp_path / "p", BUDGET, lambda thunk: thunk())
    desk = Desk(MLXEngine(backend, PrefixCache(2**24, files), 2**32), tiny_models)
    desk.add(1, "Hello", max_tokens=100)
    while 1 not in desk.texts:
        desk.step()
    assert not files.quiet.is_set()
    getattr(desk.engine, leave)(1)
    assert files.quiet.is_set()


class Waits(Event):
    """Remembers for how long it was waited for, and what was there then."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.times: list[float | None] = []
        self.there: list[int] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.times.append(timeout)
        self.there.append(len(blocks(self.folder)))
        return True


@pytest.mark.parametrize(("took", "rest"), [(0.001, 0.02), (0.02, 0.4), (7.0, 1.0)])
def test_behind_a_file_there_is_a_rest_as_long_as_the_work_deserves(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took: float, rest: float
) -> None:
    import mlx.core as mx

    from osaurus.engine import prefix_files

    files = prefix_files.PrefixFiles(tmp_path / "p", BUDGET, lambda thunk: thunk())
    files.quiet = quiet = Waits(tmp_path / "p")
    monkeypatch.setattr(prefix_files, "monotonic", iter([100.0, 100.0 + took]).__next__)
    files.write(b"n" * 32, {"keys": mx.zeros((4, 4))})
    assert quiet.times == [pytest.approx(rest)]
    assert quiet.there == [1]


def test_there_is_no_rest_while_much_waits(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    from osaurus.engine import prefix_files

    waiting: list[Callable[[], object]] = []
    files = prefix_files.PrefixFiles(tmp_path / "p", BUDGET, waiting.append)
    files.quiet = quiet = Waits(tmp_path / "p")
    # Room for ten.
    monkeypatch.setattr(prefix_files, "MOST_BACKLOG", 640)
    for number in range(10):
        files.write(bytes([number]) * 32, {"keys": mx.zeros((4, 4))})
    assert len(waiting) == 10
    for thunk in waiting:
        thunk()
    # With five of them left the backlog is half full.
    assert quiet.there == [5, 6, 7, 8, 9, 10]
