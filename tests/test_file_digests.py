"""SHA-256 of files: each is read once, also by those who come after a restart."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osaurus.library import file_digests
from osaurus.library.file_digests import WORTH_KEEPING, FileDigests

CONTENT = bytes(WORTH_KEEPING)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "weights"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "digests.json"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which files were read, as often as they were."""
    compute, read = FileDigests._compute, []

    def computed(digests: FileDigests, path: Path) -> str:
        read.append(path)
        return compute(digests, path)

    monkeypatch.setattr(FileDigests, "_compute", computed)
    return read


@pytest.mark.parametrize("size", [0, 1, 3 * 2**20 + 1])
def test_a_digest_is_of_the_whole_content(size: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    assert FileDigests().of(tmp_path / "file") == hashlib.sha256(b"x" * size).hexdigest()


def test_a_file_is_read_once(weights: Path, read: list[Path]) -> None:
    digests = FileDigests()
    assert digests.of(weights) == digests.of(weights) == DIGEST
    assert read == [weights]


def test_a_file_is_read_once_whatever_is_started_anew(weights: Path, kept: Path, read: list[Path]) -> None:
    for _ in range(3):
        assert FileDigests(kept).of(weights) == DIGEST
    assert read == [weights]
    assert list(kept.parent.iterdir()) == [kept]


def test_small_files_are_not_worth_it(weights: Path, kept: Path) -> None:
    (weights.parent / "config.json").write_text("{}")
    digests = FileDigests(kept)
    digests.of(weights.parent / "config.json")
    assert not kept.exists()
    digests.of(weights)
    assert list(json.loads(kept.read_text())) == [str(weights)]


def longer(path: Path) -> None:
    moment = path.stat().st_mtime_ns
    path.write_bytes(CONTENT + b"x")
    os.utime(path, ns=(moment, moment))


def later(path: Path) -> None:
    moment = path.stat().st_mtime_ns
    path.write_bytes(b"x" * len(CONTENT))
    os.utime(path, ns=(moment, moment + 1))


def another(path: Path) -> None:
    moment = path.stat().st_mtime_ns
    path.with_name("new").write_bytes(b"x" * len(CONTENT))
    os.utime(path.with_name("new"), ns=(moment, moment))
    path.with_name("new").replace(path)


@pytest.mark.parametrize("change", [longer, later, another])
def test_a_file_that_has_changed_is_read_again(change: Callable[[Path], None], weights: Path, kept: Path) -> None:
    digests = FileDigests(kept)
    digests.of(weights)
    change(weights)
    for asked in (FileDigests(kept), digests):
        assert asked.of(weights) == hashlib.sha256(weights.read_bytes()).hexdigest() != DIGEST


@settings(max_examples=60, deadline=None)
@given(
    damage=st.binary()
    | st.recursive(
        st.none() | st.integers() | st.floats() | st.text() | st.just("0" * 64),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: json.dumps(value).encode())
    | st.sampled_from(
        [
            b"[" * 100_000,
            b'{"a": [[1, 2, Infinity], "%s"]}' % (b"0" * 64),
            b'{"a": [[1, 2], "%s"]}' % (b"0" * 64),
            b'{"a": [[1, 2, 3], "0"]}',
            b'{"a": [[1, 2, 3], 4]}',
            b" " * (file_digests.MOST_BYTES + 1),
        ]
    )
)
def test_what_is_damaged_is_written_anew(damage: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "digests.json").write_bytes(damage)
    (folder / "weights").write_bytes(CONTENT)
    assert FileDigests(folder / "digests.json").of(folder / "weights") == DIGEST
    assert str(folder / "weights") in json.loads((folder / "digests.json").read_text())


def test_only_so_many_are_kept_and_the_latest(weights: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_digests, "MOST_KEPT", 2)
    digests = FileDigests(kept)
    paths = [weights.with_name(name) for name in "abc"]
    for path in paths:
        path.hardlink_to(weights)
        digests.of(path)
    assert list(json.loads(kept.read_text())) == [str(path) for path in paths[1:]]


def test_where_nothing_can_be_kept_digests_are_told_all_the_same(weights: Path, kept: Path) -> None:
    kept.mkdir(parents=True)
    assert FileDigests(kept).of(weights) == DIGEST
    assert list(kept.parent.iterdir()) == [kept]


def test_a_server_that_stops_reads_no_further(weights: Path) -> None:
    digests = FileDigests()
    digests.stop()
    with pytest.raises(OSError, match="stopping"):
        digests.of(weights)
