"""Blocks and checkpoints of the prefix cache on disk, so that the first request after a restart is warm.

Each is a file. A block is named by a chain of hashes over the model and all tokens up to the block's end: what a prompt
needs is found by computing names, and conversations that branch share files as they share blocks. A checkpoint is named
by the model and the tokens that it holds. A file begins with the SHA-256 of the rest, and gets its name only when it is
complete, so that whatever a crash or a bad disk leaves behind is noticed and removed. The files hold what people wrote:
the folder is readable by this user only.

Writing happens elsewhere (`run_elsewhere`), behind a backlog that is bounded: where the disk is too slow, files are
simply not written. Nor are they for a while after one could not be: the disk is full, or read-only by now. A processor
writes some hundred megabytes in the time in which a long prompt is read, and the engine wants it as well: while that
has steps to do, each file is followed by a rest. When the budget is exceeded, the file that was used least recently
goes.
"""

import os
import re
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from threading import Event, Lock
from time import monotonic
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from attrs import define, field
from safetensors import SafetensorError
from safetensors.numpy import load, save
from twisted.logger import Logger

log = Logger()

T = TypeVar("T")

# Part of every name: a change of the format makes strangers of all files.
VERSION = "1"
NAME = re.compile("[0-9a-f]{64}")
UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.[0-9]+")
MOST_BACKLOG = 2**28
DIGEST_SIZE = 32
# While the engine has steps to do, writing rests so many times as long as a file took, and so long at most, in seconds.
RESTS = 20
LONGEST_REST = 1.0
# When one could not be written, none is for so many seconds.
PAUSE = 60.0


def root(model: str) -> bytes:
    """Return the name that a model's chains begin with."""
    return sha256(f"osaurus prefix {VERSION} {model}".encode()).digest()


def link(before: bytes, tokens: Sequence[int]) -> bytes:
    """Return the name of the block of these tokens behind another."""
    return sha256(before + array("Q", tokens).tobytes()).digest()


@define(eq=False)
class PrefixFiles:
    """A folder of files within a budget in bytes. `write` is called on the engine thread, `read` as well."""

    _folder: Path
    _budget: int
    _run_elsewhere: Callable[[Callable[[], object]], object]
    quiet: Event = field(init=False)
    """Set while the engine has nothing to do."""
    _sizes: OrderedDict[str, int] = field(init=False)
    nbytes: int = field(init=False)
    """The disk space that they take."""
    _backlog: int = field(default=0, init=False)
    _lock: Lock = field(factory=Lock, init=False)
    _paused_until: float = field(default=0.0, init=False)

    @quiet.default
    def _begin_quiet(self) -> Event:
        quiet = Event()
        quiet.set()
        return quiet

    @_sizes.default
    def _find_sizes(self) -> OrderedDict[str, int]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        found = []
        for entry in os.scandir(self._folder):
            if UNFINISHED.fullmatch(entry.name):
                Path(entry.path).unlink(missing_ok=True)
            elif NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                # Another server may remove it just now.
                with suppress(FileNotFoundError):
                    found.append((entry.stat().st_mtime, entry.name, entry.stat().st_size))
            else:
                log.warn("{path} is no file of the prefix cache and is left alone", path=entry.path)
        return OrderedDict((name, size) for _, name, size in sorted(found))

    @nbytes.default
    def _add_sizes(self) -> int:
        return sum(self._sizes.values())

    @property
    def _paused(self) -> bool:
        return self._paused_until > 0 and monotonic() < self._paused_until

    @property
    def backlog(self) -> int:
        """The memory that what is on its way takes."""
        return self._backlog

    def read(self, name: bytes, build: Callable[[dict[str, mx.array]], T]) -> T | None:
        """Return what `build` makes of the arrays of a file; None if there is no such file, or it is damaged.

        `build` raises ValueError or KeyError if the arrays are not what they should be.
        """
        with self._lock:
            if name.hex() not in self._sizes:
                return None
            self._sizes.move_to_end(name.hex())
        path = self._folder / name.hex()
        try:
            content = path.read_bytes()
            if sha256(content[DIGEST_SIZE:]).digest() != content[:DIGEST_SIZE]:
                raise ValueError("its checksum is wrong")
            built = build(dict(_unpacked(*item) for item in load(content[DIGEST_SIZE:]).items()))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            log.warn("{path} of the prefix cache is of no use: {error}", path=str(path), error=error)
            self._remove(name.hex())
            return None
        # For the server to come. Where that cannot be written, the file is as good.
        with suppress(OSError):
            os.utime(path)
        return built

    def write(self, name: bytes, arrays: dict[str, mx.array]) -> None:
        """Keep arrays by their names, some time soon."""
        if self._paused:
            return
        nbytes = sum(values.nbytes for values in arrays.values())
        with self._lock:
            if name.hex() in self._sizes or self._backlog + nbytes > MOST_BACKLOG or nbytes > self._budget:
                return
            self._backlog += nbytes
        # They are evaluated here. What is written is their very memory, which nobody changes while it is referred to.
        packed = dict(_packed(*item) for item in arrays.items())
        self._run_elsewhere(lambda: self._write_and_rest(name.hex(), packed, nbytes))

    def _write_and_rest(self, name: str, arrays: dict[str, np.ndarray[Any, Any]], nbytes: int) -> None:
        began = monotonic()
        self._write(name, arrays, nbytes)
        # A backlog that overflows leaves holes, and what is behind one is never found.
        if self._backlog <= MOST_BACKLOG // 2:
            self.quiet.wait(min(RESTS * (monotonic() - began), LONGEST_REST))

    def _write(self, name: str, arrays: dict[str, np.ndarray[Any, Any]], nbytes: int) -> None:
        temporary = self._folder / f".{name}.{os.getpid()}"
        try:
            if self._paused:
                return
            content = save(arrays)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(sha256(content).digest())
                file.write(content)
            temporary.replace(self._folder / name)
        except OSError as error:
            log.warn("Nothing is written to the prefix cache for a minute: {error}", error=error)
            self._paused_until = monotonic() + PAUSE
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        finally:
            with self._lock:
                self._backlog -= nbytes
        size = DIGEST_SIZE + len(content)
        with self._lock:
            # The same file may have been on its way twice.
            self.nbytes += size - self._sizes.get(name, 0)
            self._sizes[name] = size
        while self.nbytes > self._budget:
            with self._lock:
                oldest = next(iter(self._sizes))
            self._remove(oldest)

    def _remove(self, name: str) -> None:
        with self._lock:
            self.nbytes -= self._sizes.pop(name, 0)
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            log.warn("A file of the prefix cache cannot be removed: {error}", error=error)


def _packed(name: str, values: mx.array) -> tuple[str, np.ndarray[Any, Any]]:
    """Return an array for NumPy, which has no bfloat16; the name says what it is."""
    if values.dtype == mx.bfloat16:
        return f"{name} bfloat16", np.ascontiguousarray(values.view(mx.uint16))
    return name, np.ascontiguousarray(values)


def _unpacked(name: str, values: np.ndarray[Any, Any]) -> tuple[str, mx.array]:
    kind = name.partition(" ")
    return kind[0], mx.array(values).view(mx.bfloat16) if kind[2] else mx.array(values)
