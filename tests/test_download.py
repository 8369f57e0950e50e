"""One file over HTTP; what cuts and other errors do to a pull is in test_pull.py."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest

from osaurus.library.download import Downloader, RemoteFile, here_already
from osaurus.library.progress import Progress, PullError

from .hub import COMMIT, FakeHub, Repository

CONTENT = bytes(range(256)) * 4096  # 1 MiB
NAME = "weights.bin"


@pytest.fixture
def told() -> list[Progress]:
    return []


@pytest.fixture
def downloader(told: list[Progress]) -> Iterator[Downloader]:
    with httpx2.Client(follow_redirects=True) as client:
        yield Downloader(client, told.append, sleep=lambda _: None)


def served(hub: FakeHub, content: bytes = CONTENT, size: int | None = None) -> RemoteFile:
    """Have the hub serve a file, perhaps of another size than is told."""
    hub.repositories["org/Tiny"] = Repository({NAME: content})
    return RemoteFile(
        name=NAME,
        url=f"{hub.endpoint}/org/Tiny/resolve/{COMMIT}/{NAME}",
        size=len(content) if size is None else size,
        sha256=sha256(content).hexdigest(),
    )


def test_a_file_is_had_under_its_digest(downloader: Downloader, hub: FakeHub, tmp_path: Path) -> None:
    file = served(hub)
    path = downloader.fetch(file, tmp_path)
    assert path == tmp_path / sha256(CONTENT).hexdigest()
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


def test_its_progress_begins_at_nothing_and_ends_with_all(
    downloader: Downloader, hub: FakeHub, told: list[Progress], tmp_path: Path
) -> None:
    downloader.fetch(served(hub), tmp_path)
    assert (told[0].completed, told[-1].completed) == (0, len(CONTENT))
    assert [progress.completed for progress in told] == sorted(progress.completed for progress in told)


def test_one_that_is_there_is_not_asked_for(
    downloader: Downloader, hub: FakeHub, told: list[Progress], tmp_path: Path
) -> None:
    file = served(hub)
    downloader.fetch(file, tmp_path)
    hub.requests.clear()
    told.clear()
    downloader.fetch(file, tmp_path)
    assert hub.requests == []
    assert [progress.completed for progress in told] == [len(CONTENT)]


def test_an_empty_file_is_a_file(downloader: Downloader, hub: FakeHub, tmp_path: Path) -> None:
    assert downloader.fetch(served(hub, b""), tmp_path).read_bytes() == b""


def test_a_file_that_goes_on_longer_than_told_is_not_written_beyond(
    downloader: Downloader, hub: FakeHub, tmp_path: Path
) -> None:
    with pytest.raises(PullError, match="longer than the 1000 bytes"):
        downloader.fetch(served(hub, size=1000), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_ends_earlier_than_told_is_a_cut(downloader: Downloader, hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(PullError, match="the connection was closed"):
        downloader.fetch(served(hub, size=len(CONTENT) + 1), tmp_path)


def test_what_a_server_says_beside_an_error_is_not_read(tmp_path: Path) -> None:
    read: list[bytes] = []

    def endless() -> Iterator[bytes]:
        while len(read) < 1000:
            read.append(b"x")
            yield b"x"

    transport = httpx2.MockTransport(lambda _: httpx2.Response(500, content=endless()))
    file = RemoteFile(name=NAME, url="http://127.0.0.1:9/x", size=10, sha256="0" * 64)
    with httpx2.Client(transport=transport) as client, pytest.raises(PullError, match="the server answers 500"):
        Downloader(client, lambda _: None, sleep=lambda _: None).fetch(file, tmp_path)
    assert read == []


def test_what_is_here_of_a_file_is_known(downloader: Downloader, hub: FakeHub, tmp_path: Path) -> None:
    file = served(hub)
    assert here_already(file, tmp_path) == 0
    hub.cuts[NAME] = [1000, *[0] * 9]
    with pytest.raises(PullError, match="1000 of"):
        downloader.fetch(file, tmp_path)
    assert here_already(file, tmp_path) == 1000
    hub.cuts.clear()
    downloader.fetch(file, tmp_path)
    assert here_already(file, tmp_path) == len(CONTENT)
