"""The file by which programs on this machine find a running server: `~/.osaurus/runtime/INSTANCE/configuration.json`.

Its name, its place and its keys are those of the Osaurus app for macOS, so that what looks for one finds either; `pid`,
`version` and `modelsDirectory` are ours.

The difficulty is the server that was killed: its file stays, and its process number may be somebody else's by now. So a
server holds a lock (flock) on its file for as long as it lives, which the kernel lets go of however it ends. The file
gets its name when it is complete and locked, and so does the one that takes its place when the server begins to stop. A
file of ours that nobody has locked is nobody's, and is removed by whoever finds it. Rejected: to look whether the
process exists (numbers are given out again), to compare when it started (every system tells that differently), to ask
the port (another server may have it by now).
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from attrs import define, field, frozen

from . import __version__

FILE = "configuration.json"
MOST_BYTES = 2**16
MOMENT = "%Y-%m-%dT%H:%M:%SZ"
# How a server is, of those words that the app has.
RUNNING, STOPPING = "running", "stopping"


@frozen(kw_only=True)
class Instance:
    """A running server. `url` is None where no TCP port leads to it.

    `pid` and `models_dir` are None where it is the app and not one of ours: whether that still runs is not known.
    """

    url: str | None
    exposed: bool
    pid: int | None
    models_dir: Path | None
    file: Path
    ends_by: datetime | None = None
    """When it will have ended at the latest, if it is stopping."""

    @property
    def port(self) -> int | None:
        """Its TCP port, if one leads to it."""
        try:
            return urlsplit(self.url).port if self.url else None
        except ValueError:
            return None

    def now(self) -> "Instance | None":
        """Return what it tells by now; None if it has ended."""
        content = _read(self.file)
        return None if content is None else _instance(content, self.file)


@define
class Announcement:
    """The file of this process, below `folder`. `exposed` says whether other machines may reach it."""

    folder: Path
    exposed: bool
    models_dir: Path
    _instance: str = field(factory=lambda: str(uuid4()).upper(), init=False)
    _content: dict[str, Any] = field(factory=dict, init=False)
    _held: list[int] = field(factory=list, init=False)

    def publish(self, address: tuple[str, int] | None) -> None:
        """Tell where this process listens, if on a TCP port at all. Once. Raises OSError."""
        place = self.folder / self._instance
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.mkdir(mode=0o700)
        self._content = {
            "instanceId": self._instance,
            "exposeToNetwork": self.exposed,
            "health": RUNNING,
            "modelsDirectory": str(self.models_dir),
            "pid": os.getpid(),
            "version": __version__,
        }
        if address is not None:
            host, port = address
            literal = f"[{host}]" if ":" in host else host
            self._content |= {"address": host, "port": port, "url": f"http://{literal}:{port}"}
        self._write()

    def tell_end(self, seconds: float) -> None:
        """Tell that this process is stopping, and will have ended within so long. Raises OSError."""
        if self._held:
            ends_by = datetime.now(UTC) + timedelta(seconds=seconds)
            self._content |= {"health": STOPPING, "endsBy": ends_by.strftime(MOMENT)}
            self._write()

    def withdraw(self) -> None:
        """Remove the file, if there is one."""
        if self._held:
            _remove(self.folder / self._instance / FILE)
            # Only now: whoever finds it without the lock takes its server for dead.
            while self._held:
                os.close(self._held.pop())

    def _write(self) -> None:
        self._content["updatedAt"] = datetime.now(UTC).strftime(MOMENT)
        place = self.folder / self._instance
        unnamed = place / ".unnamed"
        # The lock on the file that had the name before is kept: somebody may be looking at it.
        self._held.append(os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            fcntl.flock(self._held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(self._held[-1], json.dumps(self._content, indent=2, sort_keys=True).encode())
            unnamed.rename(place / FILE)
        except OSError:
            # Some network disks have no locks; without one it would be taken for a dead server's.
            _remove(unnamed)
            raise


def default_folder() -> Path:
    """Return where the files are."""
    return Path.home() / ".osaurus" / "runtime"


def running(folder: Path) -> list[Instance]:
    """Return the servers that run or are stopping, the latest first; what dead ones left is removed."""
    found = list(_found(folder))
    return [instance for _, instance in sorted(found, key=lambda entry: entry[0], reverse=True)]


def _found(folder: Path) -> Iterator[tuple[tuple[str, int], Instance]]:
    """Yield the running servers, each with when it was told of."""
    for file in folder.glob(f"*/{FILE}"):
        content = _read(file)
        if content is None or content.get("health") not in (RUNNING, STOPPING):
            continue
        with suppress(OSError):
            yield (str(content.get("updatedAt")), file.stat().st_mtime_ns), _instance(content, file)


def _instance(content: dict[str, Any], file: Path) -> Instance:
    url, pid, models_dir = content.get("url"), content.get("pid"), content.get("modelsDirectory")
    ends_by = None
    if content.get("health") == STOPPING:
        with suppress(ValueError):
            ends_by = datetime.strptime(str(content.get("endsBy")), MOMENT).replace(tzinfo=UTC)
    return Instance(
        url=url if isinstance(url, str) else None,
        exposed=content.get("exposeToNetwork") is True,
        pid=pid if type(pid) is int else None,
        models_dir=Path(models_dir) if isinstance(models_dir, str) else None,
        file=file,
        ends_by=ends_by,
    )


def _read(file: Path) -> dict[str, Any] | None:
    """Return what a file says; None if it is not to be trusted, or its server is dead."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            return None
        content = json.loads(os.read(descriptor, MOST_BYTES))
        if not isinstance(content, dict):
            return None
        if type(content.get("pid")) is int and _lock_is_free(descriptor):
            _remove(file)
            return None
        return content
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        os.close(descriptor)


def _lock_is_free(descriptor: int) -> bool:
    try:
        # Shared: another who looks at the same time is no server.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()
        file.parent.rmdir()
