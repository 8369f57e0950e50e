"""Writing tensors as safetensors, one after the other, in files of bounded size.

The safetensors package writes a file from tensors that are all in memory. Here they come in pieces and go to the disk
as they come: a model of any size takes no more memory than a piece. Because a file begins with the list of its
tensors, room is left for it and filled in at the end; the format allows blanks after the list.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
from attrs import define, field

Array = npt.NDArray[Any]

MOST_SHARD_BYTES = 4 * 2**30
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}
# The longest entry beside its name: its dtype, four dimensions and two places of up to 20 digits.
MOST_ENTRY_BYTES = 256
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@define(kw_only=True)
class Shards:
    """The weights of a model in `folder`, as they are written; `names` are all that there will be.

    Whoever enters it has to `close` it before leaving, unless something went wrong.
    """

    folder: Path
    names: list[str]
    most: int = MOST_SHARD_BYTES
    # The bytes left for the list of tensors in each file; a multiple of eight, so that the first tensor is aligned.
    _room: int = field(init=False)
    _file: BinaryIO | None = field(default=None, init=False)
    _entries: dict[str, dict[str, Any]] = field(factory=dict, init=False)
    _finished: list[dict[str, dict[str, Any]]] = field(factory=list, init=False)

    def add(self, name: str, dtype: str, shape: tuple[int, ...], pieces: Iterable[Array]) -> None:
        """Write a tensor. If the pieces raise, it is as if it had not begun. Raises OSError."""
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
        if self._file is not None and self._end() + nbytes > self.most and self._entries:
            self._finish()
        if self._file is None:
            self._file = (self.folder / _unfinished(len(self._finished))).open("w+b")
        begin = self._end()
        self._file.seek(8 + self._room + begin)
        written = 0
        for piece in pieces:
            written += self._file.write(np.ascontiguousarray(piece).data)
        assert written == nbytes, f"{name}: {written} bytes of {nbytes}"
        self._entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + nbytes]}

    @_room.default
    def _room_for_all(self) -> int:
        return -(-sum(len(json.dumps(name)) + MOST_ENTRY_BYTES for name in ["__metadata__", *self.names]) // 8) * 8

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._file is not None:
            self._file.close()

    def close(self) -> None:
        """End the last file and give all their names. Raises OSError."""
        self._finish()
        count = len(self._finished)
        if count == 1:
            (self.folder / _unfinished(0)).rename(self.folder / SINGLE)
            return
        weight_map: dict[str, str] = {}
        for number, entries in enumerate(self._finished):
            name = f"model-{number + 1:05}-of-{count:05}.safetensors"
            (self.folder / _unfinished(number)).rename(self.folder / name)
            weight_map |= dict.fromkeys(entries, name)
        total = sum(_end(entries) for entries in self._finished)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")

    def _finish(self) -> None:
        assert self._file is not None
        header = json.dumps({"__metadata__": {"format": "mlx"}, **self._entries}, ensure_ascii=False).encode()
        room = self._room
        assert len(header) <= room
        with self._file as file:
            file.truncate(8 + room + self._end())
            file.seek(0)
            file.write(room.to_bytes(8, "little") + header.ljust(room))
        self._file = None
        self._finished.append(self._entries)
        self._entries = {}

    def _end(self) -> int:
        return _end(self._entries)


def _end(entries: dict[str, dict[str, Any]]) -> int:
    return max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)


def _unfinished(number: int) -> str:
    return f".weights-{number}"
