"""The weights of a GGUF, on their way to safetensors.

GGUF and MLX hold the same weights in different order, under different names, and mostly in different groups; `blocks`
has what becomes of each kind. Here the tensors are read from the file a piece at a time, changed and written: a model
of any size takes a few hundred megabytes of memory.

Weights that are floats stay so. They get the dtype that activations are to have: bfloat16 where all matrices are
bfloat16, float32 where all are float32, float16 else, as MLX's activations have the widest dtype that they meet. Only
for Gemma, whose activations are too large for float16, vectors stay float32. A tensor too large for its dtype keeps
float32.
"""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf.quants
import numpy as np
import numpy.typing as npt
from attrs import define, field
from gguf import GGMLQuantizationType as Kind

from .blocks import Setting, fits_half, floats, regroup, setting_of
from .header import StoredTensor, UnsupportedGGUF
from .parts import Model
from .settings import Settings
from .shards import ITEM_BYTES, Shards
from .tensors import Place

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]

# Of a tensor, at once.
MOST_NUMBERS = 2**22


@define(kw_only=True)
class Weights:
    """The weights of a model on their way to `folder`."""

    model: Model
    settings: Settings
    folder: Path
    progress: Progress
    most_shard_bytes: int
    _read: int = field(default=0, init=False)
    _matrix_kinds: set[Kind] = field(init=False)

    @_matrix_kinds.default
    def _kinds_of_matrices(self) -> set[Kind]:
        tensors, places = self.model.tensors, self.settings.places
        return {tensors[name].kind for name, place in places.items() if len(place.shape) > 1 and name in tensors}

    def check(self) -> None:
        """See that the tensors are the architecture's, and that there is room. Raises UnsupportedGGUF, OSError."""
        places, tensors = self.settings.places, self.model.tensors
        strange = sorted(set(tensors) - set(places) - self.settings.used)
        if strange:
            architecture = self.model.metadata.architecture
            raise UnsupportedGGUF(f"the tensor {strange[0]!r} is not one that is converted of a {architecture} model")
        for name, place in places.items():
            if name not in tensors:
                raise UnsupportedGGUF(f"the tensor {name!r} is missing")
            shape = tuple(self.settings.sizes[size] for size in place.shape)
            stored = tensors[name].shape
            # A filter is stored with or without a dimension of one.
            if stored != shape and not (place.filter and stored == (shape[0], 1, shape[1])):
                raise UnsupportedGGUF(f"the tensor {name!r} has the shape {list(stored)}, not {list(shape)}")
            _setting(tensors[name], place)
        free, needed = shutil.disk_usage(self.folder).free, self._needed()
        if needed > free:
            raise UnsupportedGGUF(
                f"it needs {needed / 2**30:.1f} GiB in the models folder, {free / 2**30:.1f} are free"
            )

    def _needed(self) -> int:
        total = 0
        for name, place in self.settings.places.items():
            tensor = self.model.tensors[name]
            setting = _setting(tensor, place)
            numbers = math.prod(tensor.shape)
            bits = 8 * ITEM_BYTES[self._dtype(tensor)] if setting is None else setting.bits + 32 / setting.group
            total += int(numbers * bits / 8)
        return total

    def write(self) -> dict[str, Any]:
        """Write all tensors; return how they are quantised, as configurations have it.

        Raises UnsupportedGGUF, OSError.
        """
        places = sorted(self.settings.places.items(), key=lambda item: self._stored(item[0]).start)
        places.sort(key=lambda item: self._stored(item[0]).file)
        stems = [place.name.rpartition(".")[0] for _, place in places]
        names = [place.name for _, place in places]
        names += [f"{stem}.{part}" for stem in stems for part in ("scales", "biases")]
        found: dict[str, Setting] = {}
        sizes: Counter[Setting] = Counter()
        with Shards(folder=self.folder, names=names, most=self.most_shard_bytes) as shards:
            for (theirs, place), stem in zip(places, stems, strict=True):
                tensor = self._stored(theirs)
                setting = _setting(tensor, place)
                if setting is None:
                    self._write_floats(shards, tensor, place)
                else:
                    self._write_groups(shards, tensor, place, setting)
                    found[stem] = setting
                    sizes[setting] += tensor.nbytes
            shards.close()
        if not found:
            return {}
        [(most, _)] = sizes.most_common(1)
        return most.config() | {stem: setting.config() for stem, setting in found.items()}

    def _stored(self, theirs: str) -> StoredTensor:
        return self.model.tensors[theirs]

    def _write_floats(self, shards: Shards, tensor: StoredTensor, place: Place) -> None:
        shape = (tensor.shape[0], tensor.shape[-1], 1) if place.filter else tensor.shape
        read = self._read
        for dtype in (self._dtype(tensor), "F32"):
            self._read = read
            try:
                shards.add(place.name, dtype, shape, self._floats(tensor, place, dtype))
            except _TooLarge:
                continue
            return

    def _dtype(self, tensor: StoredTensor) -> str:
        """Return the dtype of a tensor that is not quantised."""
        if self._matrix_kinds == {Kind.F32}:
            return "F32"
        if self._matrix_kinds in ({Kind.BF16}, {Kind.BF16, Kind.F32}):
            return "BF16"
        return "F32" if self.settings.wide and len(tensor.shape) == 1 else "F16"

    def _floats(self, tensor: StoredTensor, place: Place, dtype: str) -> Iterator[Array]:
        for rows in self._pieces(tensor, place):
            values = floats(rows, tensor.kind) + np.float32(place.shift)
            if not np.isfinite(values).all():
                raise UnsupportedGGUF(f"the tensor {tensor.name!r} has values that are no numbers")
            yield _as(values, dtype)

    def _write_groups(self, shards: Shards, tensor: StoredTensor, place: Place, setting: Setting) -> None:
        """Write a quantised tensor: its numbers as they come, then its scales and offsets, which are kept meanwhile."""
        *outer, columns = tensor.shape
        stem = place.name.rpartition(".")[0]
        scales: list[Array] = []
        biases: list[Array] = []

        def words() -> Iterator[Array]:
            for rows in self._pieces(tensor, place):
                groups = regroup(rows, tensor.kind)
                if not (_finite(groups.scales) and _finite(groups.biases)):
                    raise UnsupportedGGUF(f"the tensor {tensor.name!r} has values that are no numbers")
                scales.append(groups.scales)
                biases.append(groups.biases)
                yield groups.weight

        shards.add(place.name, "U32", (*outer, columns * setting.bits // 32), words())
        shape = (*outer, columns // setting.group)
        if setting.mode != "affine":
            shards.add(f"{stem}.scales", "U8", shape, scales)
            return
        dtype = "F16" if fits_half(scales) and fits_half(biases) else "F32"
        shards.add(f"{stem}.scales", dtype, shape, (_as(values, dtype) for values in scales))
        shards.add(f"{stem}.biases", dtype, shape, (_as(values, dtype) for values in biases))

    def _pieces(self, tensor: StoredTensor, place: Place) -> Iterator[Array]:
        """Yield a tensor's rows as MLX orders them, some at a time, as bytes."""
        rows = tensor.rows()
        order = _order(len(rows), self.settings.sizes[place.heads]) if place.heads else None
        step = max(1, MOST_NUMBERS * len(rows) // math.prod(tensor.shape))
        for begin in range(0, len(rows), step):
            piece = rows[begin : begin + step] if order is None else rows[order[begin : begin + step]]
            yield piece
            self._read += piece.nbytes
            self.progress(self._read, sum(stored.nbytes for stored in self.model.tensors.values()))


class _TooLarge(Exception):
    """A number is too large for the dtype it was to have."""


def _setting(tensor: StoredTensor, place: Place) -> Setting | None:
    """Return how a tensor is quantised in MLX; None where it is floats there. Raises UnsupportedGGUF."""
    try:
        setting = setting_of(tensor.kind)
    except UnsupportedGGUF as error:
        raise UnsupportedGGUF(f"the tensor {tensor.name!r}: {error}") from error
    # Vectors and filters are never quantised in MLX, and hardly ever in GGUF.
    return setting if len(place.shape) > 1 and not place.filter else None


def _order(rows: int, heads: int) -> Array:
    """Return which row goes where, for the halves of each head's rows to be apart again."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)


def _finite(values: Array) -> bool:
    return bool(np.isfinite(values).all())


def _as(values: Array, dtype: str) -> Array:
    """Return float32 values in a dtype of safetensors. Raises _TooLarge."""
    if dtype == "F32":
        return values.astype("<f4", copy=False)
    if dtype == "BF16":
        return np.asarray(gguf.quants.quantize(values, Kind.BF16))
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if not np.isfinite(halves).all():
        raise _TooLarge
    return halves
