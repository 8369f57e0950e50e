"""SHA-256 of files, each read once: what was computed is kept from one start of the server to the next.

A file is the same as long as its inode, size and time of change are. The device is no part of that: those of network
and removable disks have another number each time.
"""

import hashlib
import json
import re
import secrets
from pathlib import Path
from threading import Lock

from attrs import define, field
from twisted.logger import Logger

log = Logger()

READ_AT_ONCE = 2**20
# In bytes. Smaller files are read again.
WORTH_KEEPING = 2**20
# Entries; those that were computed first go first.
MOST_KEPT = 4096
MOST_BYTES = 2**23
SHA256 = re.compile(r"[0-9a-f]{64}")

# Inode, size in bytes, time of change in nanoseconds.
Identity = tuple[int, int, int]


@define
class FileDigests:
    """Tells files' digests, from any thread. `kept` is where they are kept, nowhere if it is None."""

    kept: Path | None = None
    _known: dict[str, tuple[Identity, str]] | None = field(default=None, init=False)
    _lock: Lock = field(factory=Lock, init=False)
    _stopping: bool = field(default=False, init=False)

    def of(self, path: Path) -> str:
        """Return a file's digest in hexadecimal. Raises OSError, also when the server stops meanwhile."""
        status = path.stat()
        identity = (status.st_ino, status.st_size, status.st_mtime_ns)
        with self._lock:
            known = self._entries().get(str(path))
        if known is not None and known[0] == identity:
            return known[1]
        digest = self._compute(path)
        with self._lock:
            entries = self._entries()
            # The latest come last.
            entries.pop(str(path), None)
            entries[str(path)] = (identity, digest)
            while len(entries) > MOST_KEPT:
                del entries[next(iter(entries))]
            if status.st_size >= WORTH_KEEPING:
                self._write(entries)
        return digest

    def stop(self) -> None:
        """End what takes long."""
        self._stopping = True

    def _compute(self, path: Path) -> str:
        content = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(READ_AT_ONCE):
                if self._stopping:
                    raise OSError("the server is stopping")
                content.update(chunk)
        return content.hexdigest()

    def _entries(self) -> dict[str, tuple[Identity, str]]:
        if self._known is None:
            self._known = {} if self.kept is None else _read(self.kept)
        return self._known

    def _write(self, entries: dict[str, tuple[Identity, str]]) -> None:
        """Put what is worth it where it is kept. Should that fail, the next start reads files again."""
        if self.kept is None:
            return
        unfinished = self.kept.with_name(f".{self.kept.name}-{secrets.token_hex(8)}")
        worth = {path: entry for path, entry in entries.items() if entry[0][1] >= WORTH_KEEPING}
        try:
            self.kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                unfinished.write_text(json.dumps(worth), "ascii")
                unfinished.replace(self.kept)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            log.info("Files' digests are not kept in {path}: {error}", path=str(self.kept), error=error)


def _read(kept: Path) -> dict[str, tuple[Identity, str]]:
    """Return what is kept; nothing if it is damaged."""
    try:
        with kept.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        entries = json.loads(content) if len(content) <= MOST_BYTES else {}
        return {path: _entry(*entry) for path, entry in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _entry(identity: list[object], digest: str) -> tuple[Identity, str]:
    inode, size, changed = identity
    if type(inode) is not int or type(size) is not int or type(changed) is not int or not SHA256.fullmatch(digest):
        raise TypeError
    return (inode, size, changed), digest
