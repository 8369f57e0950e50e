"""One file over HTTP: begun again where it was cut, and checked before anybody reads it.

What arrives is kept beside the file's place under the name of a part, so that a pull that was cancelled, or killed,
goes on there. The digest is computed as bytes arrive; a part from before is read for it once.

huggingface_hub's own download is not used: it throws away what it has when it ends early, since 2.0 on purpose.
"""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
from attrs import define, field, frozen
from huggingface_hub import hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError

from .progress import Progress, PullError

CHUNK = 2**18
# In seconds, between two reports of a file.
PACE = 0.2
# In seconds, for a connection, and for anything at all to come.
TIMEOUT = httpx2.Timeout(30, connect=10)
# Statuses of a server that may be better in a while.
PASSING = (408, 429, 500, 502, 503, 504)
# Times in a row without a byte.
MOST_ATTEMPTS = 5

Tell = Callable[[Progress], None]
Sleep = Callable[[float], None]


@frozen(kw_only=True)
class RemoteFile:
    """A file to be had: its size in bytes, and its digest, in hexadecimal: a SHA-256, or the SHA-1 of Git's blob."""

    name: str
    url: str
    size: int
    sha256: str = ""
    git_sha1: str = ""

    @property
    def digest(self) -> str:
        """What tells its content, as Ollama writes it."""
        return f"sha256:{self.sha256}" if self.sha256 else f"sha1:{self.git_sha1}"

    @property
    def hexdigest(self) -> str:
        """The same without its kind."""
        return self.sha256 or self.git_sha1


def check_status(response: httpx2.Response) -> None:
    """Raise HfHubHTTPError if a server refuses what it was asked for, of an answer that was not read yet."""
    if response.is_error:
        # huggingface_hub would read all that it says beside, which may be anything, without end: a proxy's own page.
        response.close()
    hf_raise_for_status(response)


def here_already(file: RemoteFile, folder: Path) -> int:
    """Return how many bytes of a file were fetched into a folder."""
    for path in (folder / file.hexdigest, _part(file, folder)):
        with suppress(OSError):
            return path.stat().st_size
    return 0


def _part(file: RemoteFile, folder: Path) -> Path:
    return folder / f"{file.hexdigest}.part"


@define(eq=False)
class Downloader:
    """Fetches files with an HTTP client; `headers` go with every request. `sleep` waits for so many seconds."""

    _client: httpx2.Client
    _tell: Tell
    _headers: dict[str, str] = field(factory=dict)
    _sleep: Sleep = time.sleep

    def fetch(self, file: RemoteFile, folder: Path) -> Path:
        """Have a file in a folder, whole, under its digest; return its path. One that is there was checked before.

        Raises PullError if it is not what it should be or no connection lasts, HfHubHTTPError if the server refuses,
        OSError.
        """
        target = folder / file.hexdigest
        status = f"pulling {file.hexdigest[:12]}"
        report = _Report(self._tell, Progress(status, file.digest, file.size))
        if target.exists():
            report(file.size)
            return target
        part = _Part(_part(file, folder), file)
        attempts = 0
        while part.size < file.size:
            before = part.size
            try:
                self._fetch_more(file, part, report)
                cut = "the connection was closed"
            except httpx2.TransportError as error:
                cut = str(error) or type(error).__name__
            except HfHubHTTPError as error:
                if error.response.status_code not in PASSING:
                    raise
                cut = f"the server answers {error.response.status_code}"
            if part.size < file.size:
                attempts = 1 if part.size > before else attempts + 1
                if attempts > MOST_ATTEMPTS:
                    raise PullError(
                        f"{file.name} cannot be fetched, {part.size} of {file.size} bytes are here: {cut}. "
                        "Try again: it goes on from there."
                    )
                self._sleep(min(2**attempts, 30) / 2)
        report(file.size)
        part.finish(target)
        return target

    def _fetch_more(self, file: RemoteFile, part: "_Part", report: "_Report") -> None:
        # A file that is compressed on its way has other bytes, and cannot be gone on with.
        headers = {**self._headers, "Accept-Encoding": "identity"}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
        with self._client.stream("GET", file.url, headers=headers, timeout=TIMEOUT) as response:
            check_status(response)
            beginning = f"bytes {part.size}-"
            if part.size and not (
                response.status_code == httpx2.codes.PARTIAL_CONTENT
                and response.headers.get("Content-Range", "").startswith(beginning)
            ):
                part.forget()
            report(part.size)
            with part.path.open("ab") as output:
                # In pieces as they come: what would be gathered first is lost with the connection.
                for chunk in response.iter_bytes():
                    part.add(output, chunk)
                    report(part.size)


@define
class _Report:
    """Tells how far a file is, at a bearable pace: its beginning, its end, and now and then between."""

    _tell: Tell
    _told: Progress
    _last: float = field(default=float("-inf"), init=False)

    def __call__(self, completed: int) -> None:
        now = time.monotonic()
        if completed == self._told.total or now - self._last >= PACE:
            self._last = now
            told = self._told
            self._tell(Progress(told.status, told.digest, told.total, completed))


@define
class _Part:
    """What is here of a file."""

    path: Path
    _file: RemoteFile
    size: int = field(default=0, init=False)
    _hash: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._reset()
        if self.path.exists() and self.path.stat().st_size <= self._file.size:
            with self.path.open("rb") as content:
                while chunk := content.read(CHUNK):
                    self._count(chunk)
        else:
            self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.path.unlink(missing_ok=True)
        self._reset()

    def add(self, output: Any, chunk: bytes) -> None:
        """Write what arrived. Raises PullError if it is more than the file has."""
        if self.size + len(chunk) > self._file.size:
            self.forget()
            raise PullError(f"{self._file.name} is longer than the {self._file.size} bytes it should have; try again")
        output.write(chunk)
        # What is counted as here must be there when the process is killed: the system has it, if not the disk.
        output.flush()
        self._count(chunk)

    def finish(self, target: Path) -> None:
        """Check the whole, and give it its name. Raises PullError if it is not what it should be; it is gone then."""
        found, expected = self._hash.hexdigest(), self._file.hexdigest
        if found != expected:
            self.forget()
            raise PullError(
                f"{self._file.name} is not the expected file and was thrown away: its digest is {found}, "
                f"not {expected}. Try again."
            )
        # An empty file is never written to.
        with self.path.open("ab") as content:
            os.fsync(content.fileno())
        self.path.rename(target)

    def _reset(self) -> None:
        self.size = 0
        if self._file.sha256:
            self._hash = hashlib.sha256()
        else:
            # Git's way to name contents; nothing secret depends on it, TLS has brought the digest.
            self._hash = hashlib.sha1(f"blob {self._file.size}\0".encode(), usedforsecurity=False)

    def _count(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self.size += len(chunk)
