"""What makes a folder a model that can be served: configuration, tokenizer, and weights that are all there.

A folder is judged by what is in it, never by its name, and nothing in it is trusted: headers are checked against the
sizes of their files, names against the folder, and code that comes with a model is never run. Weights are safetensors;
pickles (`.bin`, `.pt`), which run code when they are read, are not looked at.
"""

import json
import math
import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..chat import InstalledModel
from ..model_config import context_length
from .architectures import QUANTIZATION_METHODS, known
from .names import model_id

# A safetensors header lists the tensors; that of the largest published models stays below this.
MOST_HEADER_BYTES = 100 * 2**20
MOST_JSON_BYTES = 256 * 2**20

# What mlx-lm reads.
WEIGHTS = "model*.safetensors"
INDEX = "model.safetensors.index.json"

DTYPE_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}

# Of several files' names, which say how many there are.
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")

# Of names of tensors that belong to what sees or hears, and to what brings that to the text part.
SENSES = re.compile(
    r"(?:^|\.)(vision\w*|visual|image_newline|multi_modal_projector|mm_projector|embed_vision|audio_tower|embed_audio)\."
)


class UnusableFolder(Exception):
    """Why a folder is no usable model."""


def describe(folder: Path, repository: str) -> InstalledModel:
    """Return what is in a model's folder. Raises UnusableFolder, OSError."""
    for path in sorted(folder.iterdir()):
        # To open a pipe is to wait for whoever writes into it.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UnusableFolder(f"{path.name} is neither a file nor a folder")
    config = json_object(folder / "config.json")
    family = architecture(config)
    check_quantization(config)
    if not (folder / "tokenizer.json").is_file():
        raise UnusableFolder("tokenizer.json is missing")
    weights = _weight_files(folder)
    headers = [safetensors_header(path)[0] for path in weights]
    check_senses(name for header in headers for name in header)
    quantization = config.get("quantization")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    files = model_files(folder)
    if not files:
        raise UnusableFolder("it was taken away")
    return InstalledModel(
        id=model_id(repository),
        repository=repository,
        folder=folder,
        size=sum(path.stat().st_size for path in files),
        modified=max(path.stat().st_mtime for path in files),
        family=family,
        parameters=sum(_parameters(header, quantization) for header in headers),
        quantization=f"Q{bits}" if type(bits) is int else _dtype(headers),
        context_length=context_length(config),
    )


def architecture(config: dict[str, Any]) -> str:
    """Return the architecture that a configuration names, for which there is code. Raises UnusableFolder.

    `auto_map`, which names classes in files of the model's own, is not looked at.
    """
    family = config.get("model_type")
    if not isinstance(family, str):
        raise UnusableFolder("config.json names no model_type")
    if config.get("model_file") is not None:
        raise UnusableFolder("it wants to run code of its own (`model_file` in config.json), which is never done")
    if not known(family):
        raise UnusableFolder(f"its architecture, {family!r:.100}, is not one that mlx-lm can run as a language model")
    return family


def check_quantization(config: dict[str, Any]) -> None:
    """Raise UnusableFolder if a configuration says that weights are quantised in a way that mlx-lm does not read."""
    text = config.get("text_config")
    inner = text.get("quantization_config") if isinstance(text, dict) else None
    others = config.get("quantization_config", inner)
    # MLX's own are told in `quantization`, and then in the other place as well.
    if config.get("quantization") is None and others:
        method = others.get("quant_method") if isinstance(others, dict) else None
        if method not in QUANTIZATION_METHODS:
            raise UnusableFolder(f"its weights are quantised in a way ({method!s:.100}) that mlx-lm does not read")


def check_senses(tensors: Iterable[str]) -> None:
    """Raise UnusableFolder if there are weights, by their names, for images or sound."""
    found = next((name for name in tensors if SENSES.search(name)), None)
    if found is not None:
        raise UnusableFolder(
            f"it is a model for images or sound as well ({found[:100]}), which are not served; "
            "there may be a version of it for text alone"
        )


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model, by name. Raises OSError."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def json_object(path: Path) -> dict[str, Any]:
    """Return what a file holds. Raises UnusableFolder, OSError."""
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise UnusableFolder(f"{path.name} is larger than {MOST_JSON_BYTES // 2**20} MiB")
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnusableFolder(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UnusableFolder(f"{path.name} is not a JSON object")
    return value


def shards(index: dict[str, Any]) -> list[str]:
    """Return the names of the files that the index of a model's weights says there are. Raises UnusableFolder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnusableFolder(f"{INDEX} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    if any(Path(name).name != name for name in names):
        raise UnusableFolder(f"{INDEX} names files outside the folder")
    if not all(fnmatchcase(name, WEIGHTS) for name in names):
        raise UnusableFolder(f"{INDEX} names files other than {WEIGHTS}, which are not read")
    return names


def missing_shard(names: Collection[str]) -> str | None:
    """Return the first file that there should be beside these, by their names, and is not; for where no index tells."""
    for start, count in sorted({match.groups() for match in map(SHARD.fullmatch, names) if match}):
        for number in range(1, int(count) + 1):
            name = f"{start}-{number:05}-of-{count}.safetensors"
            if name not in names:
                return name
    return None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.exists():
        names = shards(json_object(index))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UnusableFolder(f"of its weights {len(missing)} files are missing, {missing[0]} first")
        return [folder / name for name in names]
    single = sorted(folder.glob(WEIGHTS))
    if not single:
        raise UnusableFolder("it has no weights in safetensors files")
    absent = missing_shard({path.name for path in single})
    if absent is not None:
        raise UnusableFolder(f"of its weights {absent} is missing")
    return single


def safetensors_header(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the tensors of a safetensors file by name, each with dtype, shape and data_offsets; and what it says.

    Raises UnusableFolder, OSError.
    """
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
        said = dict(header.get("__metadata__") or {})
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise UnusableFolder(f"{path.name} is damaged: its header cannot be read ({error})") from error
    if 8 + length + end != size:
        raise UnusableFolder(f"{path.name} is incomplete: {size} bytes of {8 + length + end}")
    return tensors, said


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
