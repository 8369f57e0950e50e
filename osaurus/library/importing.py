"""A GGUF file that somebody has → a model in the models folder.

The work is done by a process of its own (`gguf/__main__.py`), in a hidden folder beside the model's place; the folder
is moved there when it is whole. Whatever happens to that process, or here meanwhile, nothing else is left; but where
this process is killed, the next import that comes a day later removes it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from .names import REPOSITORY
from .workspace import is_idle, remove

PART = re.compile(r"-\d{5}-of-\d{5}$")
ORGANISATION = "local"
UNDER_WAY = ".import-"
# In seconds. An import that is under way writes all the time.
KEPT = 86400


class ImportFailed(Exception):
    """The file was not imported; the message is one line and says why. Nothing was left behind."""


@frozen
class ImportProgress:
    """How far an import is: bytes of the file's weights that were converted, and all of them."""

    done: int
    total: int


def import_gguf(path: Path, models: Path, tell: Callable[[ImportProgress], None], *, name: str | None = None) -> str:
    """Convert a GGUF file, or all parts of one, to a model in the folder `models`; return its repository.

    `name` is the repository to be, `organisation/name` or a bare name, which becomes `local/name`; without one it is
    the file's. `tell` is told how far it is, about a hundred times. Blocks until it is done. Raises ImportFailed.
    """
    repository = repository_of(path, name)
    folder = models / repository
    if not path.is_file():
        raise ImportFailed(f"{path} is no file" if path.exists() else f"There is no file {path}")
    if folder.exists():
        raise ImportFailed(f"{repository} exists already, in {folder}; another name can be given")
    try:
        models.mkdir(parents=True, exist_ok=True)
        for left in models.glob(f"{UNDER_WAY}*"):
            # Another import may be removing it as well.
            with suppress(OSError):
                if is_idle(left, KEPT):
                    remove(left)
        with tempfile.TemporaryDirectory(prefix=UNDER_WAY, dir=models, ignore_cleanup_errors=True) as scratch:
            built = Path(scratch) / "model"
            built.mkdir()
            _convert(path, built, tell)
            folder.parent.mkdir(exist_ok=True)
            built.rename(folder)
    except OSError as error:
        raise ImportFailed(f"The model could not be stored in {models}: {error}") from error
    return repository


def repository_of(path: Path, name: str | None) -> str:
    """Return what a file's model is to be called. Raises ImportFailed."""
    wanted = name
    if wanted is None:
        wanted = re.sub(r"[^A-Za-z0-9._-]+", "-", PART.sub("", path.stem)).strip("-._")[:96].rstrip("-.")
    repository = wanted if "/" in wanted else f"{ORGANISATION}/{wanted}"
    if REPOSITORY.fullmatch(repository) is None:
        raise ImportFailed(
            f"{wanted!r} cannot be the name of a model; one such as my-model or organisation/my-model, "
            "of letters, digits, - _ and ., can be given"
        )
    return repository


def _convert(path: Path, folder: Path, tell: Callable[[ImportProgress], None]) -> None:
    """Have the model converted by another process. Raises ImportFailed."""
    # -P: what lies in the current folder is not imported.
    command = [sys.executable, "-P", "-m", "osaurus.library.gguf", str(path.absolute()), str(folder)]
    # Threads that nobody needs would be counted as memory.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    failed = None
    with (
        tempfile.TemporaryFile("w+", errors="replace") as complaints,
        subprocess.Popen(  # noqa: S603 - a fixed command
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=environment,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said = json.loads(line)
                if "failed" in said:
                    failed = said["failed"]
                else:
                    tell(ImportProgress(said["done"], said["total"]))
        except BaseException:
            process.kill()
            raise
        process.wait()
        complaints.seek(0)
        trouble = complaints.read().strip().splitlines()
    if failed is None and process.returncode:
        failed = trouble[-1] if trouble else "its conversion failed"
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            failed = "its conversion took too long" if name == "SIGXCPU" else f"its conversion was ended by {name}"
    if failed is not None:
        raise ImportFailed(" ".join(f"{path.name} was not imported: {failed}".split()))
