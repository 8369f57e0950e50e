"""What stands before the weights of a GGUF file, read with suspicion.

GGUF begins with counts, and with lengths before every string and array; readers that believe them have crashed, taken
all memory, or given away what was beside the file in memory. So every number is held against the file's real size
before anything is read or made by it, and nothing else opens a file before it was read here. The gguf package's own
reader is not used: it believes the file, and makes an object of every string, which takes minutes and gigabytes for
the vocabularies of today.

Lists of numbers become arrays, and those of text become Python's.
"""

import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import define, field, frozen
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

Array = npt.NDArray[Any]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"

# Of the largest published models: a few thousand tensors, a hundred entries, and some 30 MB of tokens and merges.
MOST_TENSORS = 2**16
MOST_ENTRIES = 2**14
MOST_STRINGS = 2**22
MOST_STRING_BYTES = 2**24
MOST_HEADER_BYTES = 2**28
MOST_NAME_BYTES = 2**10
MOST_DIMENSIONS = 4

# The shortest that each can be: with an empty name, and one byte or no dimensions.
LEAST_ENTRY_BYTES = 8 + 4 + 1
LEAST_TENSOR_BYTES = 8 + 4 + 4 + 8

NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
STRING, ARRAY = 8, 9


class UnsupportedGGUF(Exception):
    """The file is damaged, or of a kind that is not converted; the message is one line and says which."""


@frozen(kw_only=True)
class StoredTensor:
    """A tensor's description: its values are `nbytes` bytes at `start` of `file`, in rows of `shape[-1]` numbers."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    file: Path
    start: int
    nbytes: int

    def rows(self) -> Array:
        """Return the bytes of its rows, in the file: [rows, bytes of a row] of uint8.

        The rows of a vector are its numbers, if it is not of blocks.
        """
        single = len(self.shape) == 1 and GGML_QUANT_SIZES[self.kind][0] == 1
        count = math.prod(self.shape if single else self.shape[:-1])
        mapped = np.memmap(self.file, np.uint8, "r", offset=self.start, shape=(count, self.nbytes // count))
        return mapped.view(np.ndarray)


@frozen(kw_only=True)
class Header:
    """What a file says of itself: its metadata by key, its tensors by name."""

    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_header(file: Path) -> Header:
    """Return the header of a GGUF file, when all of it and of what it describes is there.

    Raises UnsupportedGGUF, OSError.
    """
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if opened.read(len(MAGIC)) != MAGIC:
            raise UnsupportedGGUF(f"{file.name} is no GGUF file: it does not begin with GGUF")
        try:
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(file=file, content=content, size=size).header()
        except UnsupportedGGUF as error:
            raise UnsupportedGGUF(f"{file.name} is damaged or cut: {error}") from error


@define
class _Reader:
    """A place in the file, which moves on as values are read."""

    file: Path
    content: mmap.mmap
    size: int
    place: int = field(default=len(MAGIC), init=False)

    def header(self) -> Header:
        version = self._integer("<u4")
        if version not in VERSIONS:
            raise UnsupportedGGUF(f"its version is {version}, not one of {', '.join(map(str, VERSIONS))}")
        tensors = self._count("tensors", LEAST_TENSOR_BYTES, MOST_TENSORS)
        entries = self._count("entries of metadata", LEAST_ENTRY_BYTES, MOST_ENTRIES)
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string(MOST_NAME_BYTES)
            if key in metadata:
                raise UnsupportedGGUF(f"the key {key!r} is there twice")
            metadata[key] = self._value(key, self._integer("<u4"))
        described = [self._tensor() for _ in range(tensors)]
        return Header(file=self.file, metadata=metadata, tensors=self._placed(described, _alignment(metadata)))

    def _placed(
        self, described: list[tuple[str, GGMLQuantizationType, tuple[int, ...], int, int]], alignment: int
    ) -> dict[str, StoredTensor]:
        """Return the tensors when each has its own bytes in the file."""
        beginning = -(-self.place // alignment) * alignment
        tensors: dict[str, StoredTensor] = {}
        end = 0
        for name, kind, shape, offset, nbytes in sorted(described, key=lambda tensor: tensor[3]):
            if name in tensors:
                raise UnsupportedGGUF(f"the tensor {name!r} is there twice")
            if offset % alignment:
                raise UnsupportedGGUF(f"the tensor {name!r} begins at {offset}, which is no multiple of {alignment}")
            # Else a small file could stand for any number of bytes.
            if offset < end:
                raise UnsupportedGGUF(f"the tensor {name!r} begins within another")
            end = offset + nbytes
            if beginning + end > self.size:
                raise UnsupportedGGUF(f"the tensor {name!r} ends at byte {beginning + end} of {self.size}")
            tensors[name] = StoredTensor(
                name=name, kind=kind, shape=shape, file=self.file, start=beginning + offset, nbytes=nbytes
            )
        return tensors

    def _tensor(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int, int]:
        """Return a tensor's name, kind, shape (rows first), offset and bytes."""
        name = self._string(MOST_NAME_BYTES)
        dimensions = self._integer("<u4")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise UnsupportedGGUF(f"the tensor {name!r} has {dimensions} dimensions, not 1 to {MOST_DIMENSIONS}")
        sizes = [self._integer("<u8") for _ in range(dimensions)]
        number = self._integer("<u4")
        offset = self._integer("<u8")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise UnsupportedGGUF(f"the tensor {name!r} is of the unknown kind {number}") from None
        block, nbytes = GGML_QUANT_SIZES[kind]
        if 0 in sizes or sizes[0] % block:
            raise UnsupportedGGUF(f"the tensor {name!r} cannot have the shape {sizes} in blocks of {block}")
        # Python's numbers do not overflow.
        return name, kind, tuple(reversed(sizes)), offset, math.prod(sizes) // block * nbytes

    def _value(self, key: str, kind: int) -> Any:
        if kind == STRING:
            return self._string(MOST_STRING_BYTES)
        if kind == ARRAY:
            return self._array(key)
        if kind not in NUMBERS:
            raise UnsupportedGGUF(f"the value of {key!r} is of the unknown type {kind}")
        return np.frombuffer(self._take(NUMBERS[kind].itemsize), NUMBERS[kind])[0].item()

    def _array(self, key: str) -> list[str] | Array:
        kind, count = self._integer("<u4"), self._integer("<u8")
        if kind == STRING:
            # Each has its length before it.
            if count > min(MOST_STRINGS, (self.size - self.place) // 8):
                raise UnsupportedGGUF(f"{key!r} cannot hold {count} texts")
            return [self._string(MOST_STRING_BYTES) for _ in range(count)]
        if kind not in NUMBERS:
            raise UnsupportedGGUF(f"{key!r} is a list of the type {kind}, not of texts or numbers")
        return np.frombuffer(self._take(count * NUMBERS[kind].itemsize), NUMBERS[kind])

    def _count(self, what: str, least_bytes: int, most: int) -> int:
        count = self._integer("<u8")
        if count > min(most, (self.size - self.place) // least_bytes):
            raise UnsupportedGGUF(f"it cannot hold {count} {what}")
        return count

    def _string(self, most: int) -> str:
        length = self._integer("<u8")
        if length > most:
            raise UnsupportedGGUF(f"a text of {length} bytes is longer than any in a model")
        try:
            return str(self._take(length), "utf-8")
        except UnicodeDecodeError:
            raise UnsupportedGGUF("a text in it is not in UTF-8") from None

    def _integer(self, dtype: str) -> int:
        return int(np.frombuffer(self._take(np.dtype(dtype).itemsize), dtype)[0])

    def _take(self, count: int) -> bytes:
        if count > min(self.size, MOST_HEADER_BYTES) - self.place:
            raise UnsupportedGGUF(f"{count} bytes are missing at byte {self.place} of {self.size}")
        self.place += count
        return self.content[self.place - count : self.place]


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get(ALIGNMENT_KEY, ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise UnsupportedGGUF(f"{ALIGNMENT_KEY!r} is {alignment!r}, not a power of two")
    return alignment
