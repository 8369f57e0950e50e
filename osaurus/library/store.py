"""The models on this machine's disk: folders `organisation/repository` with a configuration, a tokenizer and weights.

Everything here blocks on the disk: on the reactor it is run on the second thread pool. A folder that is no usable
model is passed over and logged once with the reason; nothing in it can harm the others.
"""

import hashlib
import json
import math
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import define, evolve, field
from twisted.logger import Logger

from ..chat import Forbidden, InstalledModel, InvalidRequest, ModelNotFound
from ..model_config import context_length
from .names import SHORT_NAMES

log = Logger()

# A safetensors header lists the tensors; that of the largest published models stays below this.
MOST_HEADER_BYTES = 100 * 2**20

HASHED_AT_ONCE = 2**20

# Of a copy, as the hub has them; neither part may begin with a dot.
DESTINATION = re.compile(r"(?:([A-Za-z0-9][A-Za-z0-9._-]{0,95})/)?([A-Za-z0-9][A-Za-z0-9._-]{0,95})")

DTYPE_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}


class UnusableFolder(Exception):
    """Why a folder is no usable model."""


@define
class ModelStore:
    """The models below one folder."""

    folder: Path
    _described: dict[Path, tuple[object, InstalledModel | UnusableFolder]] = field(factory=dict, init=False)
    _digests: dict[Path, tuple[object, str]] = field(factory=dict, init=False)
    _stopping: bool = field(default=False, init=False)

    def models(self) -> list[InstalledModel]:
        """Return every usable model, by repository name."""
        models: list[InstalledModel] = []
        for folder in self._folders():
            model = self._describe(folder)
            if model is not None:
                # The first keeps the short name, so that adding a model renames another only if it sorts before it.
                taken = any(other.id == model.id for other in models)
                models.append(evolve(model, id=model.repository.lower()) if taken else model)
        return models

    def find(self, name: str) -> InstalledModel:
        """Return the model of that name: its id, its repository, or a short name; in any case, `:latest` or not.

        Raises ModelNotFound.
        """
        wanted = name.lower().removesuffix(":latest")
        wanted = SHORT_NAMES.get(wanted, wanted).lower()
        models = self.models()
        for model in models:
            if wanted in (model.id, model.repository.lower()):
                return model
        hint = "" if models else f". No model is installed: `osaurus pull {next(iter(SHORT_NAMES))}` gets one."
        raise ModelNotFound(f"Model not found: {name}{hint}", param="model")

    def digest(self, model: InstalledModel) -> str:
        """Return the SHA-256 of a model: of its files' names and digests, sorted by name.

        The first call reads every file; later ones only those whose identity has changed.
        """
        whole = hashlib.sha256()
        for path in _model_files(model.folder):
            whole.update(os.fsencode(path.name) + f"\0{self._file_digest(path)}\n".encode())
        return f"sha256:{whole.hexdigest()}"

    def _file_digest(self, path: Path) -> str:
        identity = _identity(path)
        known = self._digests.get(path)
        if known is not None and known[0] == identity:
            return known[1]
        content = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(HASHED_AT_ONCE):
                if self._stopping:
                    raise OSError("the server is stopping")
                content.update(chunk)
        self._digests[path] = (identity, content.hexdigest())
        return content.hexdigest()

    def copy(self, model: InstalledModel, destination: str) -> None:
        """Have a model under another name as well, `organisation/repository` or a bare name, which becomes `local/…`.

        The copy shares the files' content where the disk can. Raises InvalidRequest, Forbidden, OSError.
        """
        match = DESTINATION.fullmatch(destination.removesuffix(":latest"))
        if match is None:
            raise InvalidRequest(
                "destination: must be a name such as my-model or organisation/my-model, of letters, digits, - _ and .",
                param="destination",
            )
        target = self.folder / (match[1] or "local") / match[2]
        # A bare name is for one model only.
        for name in (match[2], f"{target.parent.name}/{target.name}"):
            with suppress(ModelNotFound):
                known = self.find(name)
                raise InvalidRequest(f"destination: {known.repository} has this name already", param="destination")
        self._check_own(target.parent)
        target.parent.mkdir(exist_ok=True)
        unfinished = target.with_name(f".copying-{secrets.token_hex(8)}")
        unfinished.mkdir()
        try:
            for path in _model_files(model.folder):
                try:
                    (unfinished / path.name).hardlink_to(path.resolve())
                except OSError:
                    shutil.copy2(path, unfinished / path.name)
            unfinished.rename(target)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def take_away(self, model: InstalledModel) -> Path:
        """Have nobody find a model any more; return where its files are, to be removed.

        Raises Forbidden if its folder is not one of ours, OSError.
        """
        self._check_own(model.folder.parent)
        self._check_own(model.folder)
        doomed = model.folder.with_name(f".deleting-{secrets.token_hex(8)}")
        model.folder.rename(doomed)
        return doomed

    def remove(self, doomed: Path) -> None:
        """Remove what was taken away, and what an earlier attempt left of others. Raises OSError."""
        for leftover in doomed.parent.glob(".deleting-*"):
            shutil.rmtree(leftover, ignore_errors=leftover != doomed)
        with suppress(OSError):
            doomed.parent.rmdir()

    def _check_own(self, folder: Path) -> None:
        if folder.is_symlink():
            raise Forbidden(f"{folder.relative_to(self.folder)} is a link out of the models folder; it is left alone")

    def stop(self) -> None:
        """End what takes long; from any thread."""
        self._stopping = True

    def _folders(self) -> list[Path]:
        # Names that begin with a dot are downloads under way.
        return sorted(
            (
                folder
                for folder in self.folder.glob("[!.]*/[!.]*")
                if folder.is_dir() and _exists(folder / "config.json")
            ),
            key=lambda folder: (folder.name.lower(), folder.parent.name.lower(), folder),
        )

    def _describe(self, folder: Path) -> InstalledModel | None:
        try:
            identity = [_identity(path) for path in _model_files(folder)]
        except OSError as error:
            identity = [(str(error),)]
        known = self._described.get(folder)
        if known is None or known[0] != identity:
            try:
                description: InstalledModel | UnusableFolder = _look_into(folder)
            except (UnusableFolder, OSError) as error:
                description = UnusableFolder(str(error))
                log.warn("{folder} is no usable model: {error}", folder=str(folder), error=error)
            known = self._described[folder] = (identity, description)
        return None if isinstance(known[1], UnusableFolder) else known[1]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # Somebody's folder that we may not read: looking into it says so, once.
        return True


def _model_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _identity(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return (path.name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _look_into(folder: Path) -> InstalledModel:
    config = json_object(folder / "config.json")
    family = config.get("model_type")
    if not isinstance(family, str):
        raise UnusableFolder("config.json names no model_type")
    if not (folder / "tokenizer.json").is_file():
        raise UnusableFolder("tokenizer.json is missing")
    weights = _weight_files(folder)
    headers = [_safetensors_header(path) for path in weights]
    quantization = config.get("quantization")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    files = _model_files(folder)
    repository = f"{folder.parent.name}/{folder.name}"
    return InstalledModel(
        id=folder.name.lower(),
        repository=repository,
        folder=folder,
        size=sum(path.stat().st_size for path in files),
        modified=max(path.stat().st_mtime for path in files),
        family=family,
        parameters=sum(_parameters(header, quantization) for header in headers),
        quantization=f"Q{bits}" if type(bits) is int else _dtype(headers),
        context_length=context_length(config),
    )


def json_object(path: Path) -> dict[str, Any]:
    """Return what a file holds. Raises UnusableFolder, OSError."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnusableFolder(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UnusableFolder(f"{path.name} is not a JSON object")
    return value


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UnusableFolder(f"{index.name} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        if any(Path(name).name != name for name in names):
            raise UnusableFolder(f"{index.name} names files outside the folder")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UnusableFolder(f"of its weights {len(missing)} files are missing, {missing[0]} first")
        return [folder / name for name in names]
    single = sorted(folder.glob("model*.safetensors"))
    if not single:
        raise UnusableFolder("it has no weights in safetensors files")
    return single


def _safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return the tensors of a safetensors file by name; each with dtype, shape and data_offsets."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= min(MOST_HEADER_BYTES, size - 8):
            raise UnusableFolder(f"{path.name} is damaged: its header cannot be {length} bytes long")
        text = file.read(length)
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        for entry in tensors.values():
            shape, offsets = entry["shape"], entry["data_offsets"]
            if not isinstance(entry["dtype"], str) or not isinstance(shape, list) or not isinstance(offsets, list):
                raise ValueError("a tensor lacks its type, shape or place")
            if not all(type(number) is int and number >= 0 for number in [*shape, *offsets]):
                raise ValueError("a shape or a place is not of whole numbers")
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise UnusableFolder(f"{path.name} is damaged: its header cannot be read ({error})") from error
    if 8 + length + end != size:
        raise UnusableFolder(f"{path.name} is incomplete: {size} bytes of {8 + length + end}")
    return tensors


def _parameters(header: dict[str, dict[str, Any]], quantization: object) -> int:
    """Return how many parameters the tensors stand for; quantised ones are packed into 32-bit words."""
    settings = quantization if isinstance(quantization, dict) else {}
    total = 0
    for name, entry in header.items():
        if name.endswith((".scales", ".biases")):
            continue
        count = math.prod(entry["shape"])
        if entry["dtype"] == "U32":
            own = settings.get(name.removesuffix(".weight"))
            bits = own.get("bits") if isinstance(own, dict) else settings.get("bits")
            count = count * 32 // bits if type(bits) is int and bits > 0 else count
        total += count
    return total


def _dtype(headers: list[dict[str, dict[str, Any]]]) -> str:
    """Return the dtype that most bytes have."""
    sizes: dict[str, int] = {}
    for header in headers:
        for entry in header.values():
            dtype = str(entry["dtype"])
            sizes[dtype] = sizes.get(dtype, 0) + math.prod(entry["shape"]) * DTYPE_BITS.get(dtype, 8)
    return max(sizes, key=lambda dtype: sizes[dtype], default="unknown")
