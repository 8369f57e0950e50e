"""The hidden folder in which one pull is gathered, `.pulling/ORGANISATION--NAME` in the models folder.

It stays where a pull does not succeed, for the next attempt, unless nothing came of it; only one process has it. What
nobody came back for within a week is thrown away by the next pull of any model.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from .progress import PullError

# In seconds.
KEPT = 7 * 86400

# To have `.pulling`, while other pulls take it away.
ATTEMPTS = 100

# What is made in it of what was fetched, and made again by the next attempt.
MADE = ("model", "converted", "compiled", "pip", "model.gguf")


@contextmanager
def workspace(models: Path, target: str) -> Iterator[Path]:
    """Have the folder for a pull of `target`. Raises PullError if another process has it, OSError."""
    pulling = models / ".pulling"
    folder = pulling / target.lower().replace("/", "--")
    try:
        with _locked(folder, target):
            _clean_up(pulling, folder)
            folder.mkdir(exist_ok=True)
            kept = True
            try:
                yield folder
                kept = False
            finally:
                for made in MADE:
                    remove(folder / made)
                if not kept or not any(folder.iterdir()):
                    remove(folder)
    finally:
        # Unless another pull is under way.
        with suppress(OSError):
            pulling.rmdir()


def is_idle(folder: Path, seconds: float) -> bool:
    """Return whether nothing in a folder was written for so long. Raises OSError, as when something in it moves."""
    latest = max((path.stat().st_mtime for path in folder.rglob("*")), default=folder.stat().st_mtime)
    return time.time() - latest > seconds


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path, target: str) -> Iterator[None]:
    """Be the only process that has a folder; a file beside it is the lock. Raises PullError if another has, OSError."""
    path = folder.with_name(f"{folder.name}.lock")
    with _opened(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have taken the file away after it was opened here.
            ours = path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except BlockingIOError:
            ours = False
        if not ours:
            raise PullError(f"{target} is being pulled by another process; wait for it")
        try:
            yield
        finally:
            path.unlink()


def _opened(path: Path) -> TextIO:
    """Open a lock's file. Until it is there, another pull that ends may take its folder away. Raises OSError."""
    attempts = 0
    while True:
        attempts += 1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("w")
        except (FileNotFoundError, FileExistsError):
            if attempts == ATTEMPTS:
                raise


def _clean_up(pulling: Path, own: Path) -> None:
    """Throw away what was begun and never finished."""
    for folder in pulling.iterdir():
        # In one that is being pulled, files come and go; it is not idle, or it is another process's.
        with suppress(OSError, PullError):
            if folder.is_dir() and folder != own and is_idle(folder, KEPT):
                with _locked(folder, folder.name):
                    remove(folder)
