"""A model in one GGUF file, or in several: `name-00001-of-00003.gguf` and so on.

The first part has the metadata; each says which it is, of how many, and how many tensors there are in all.
"""

import re
from pathlib import Path

from attrs import frozen

from .header import Header, StoredTensor, UnsupportedGGUF, read_header
from .metadata import Metadata

PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
NUMBER_KEY, COUNT_KEY, TENSORS_KEY = "split.no", "split.count", "split.tensors.count"
MOST_PARTS = 1000


@frozen(kw_only=True)
class Model:
    """A model's metadata and its tensors by name, wherever they are."""

    metadata: Metadata
    tensors: dict[str, StoredTensor]


def open_model(file: Path) -> Model:
    """Return the model in a file, or in all the parts that one of them belongs to. Raises UnsupportedGGUF, OSError."""
    header = read_header(file)
    count = Metadata(header.metadata).integer(COUNT_KEY, 0)
    if count <= 1:
        return Model(metadata=Metadata(header.metadata), tensors=header.tensors)
    if count > MOST_PARTS:
        raise UnsupportedGGUF(f"{file.name} cannot be one of {count} parts")
    match = PART.fullmatch(file.name)
    if match is None or int(match["count"]) != count:
        raise UnsupportedGGUF(f"{file.name} is one of {count} parts, but not named so: model-00001-of-{count:05}.gguf")
    parts = [file.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise UnsupportedGGUF(f"{file.name} is one of {count} parts, and {missing[0]} is missing")
    headers = [read_header(part) for part in parts]
    tensors: dict[str, StoredTensor] = {}
    for number, header in enumerate(headers):
        _check(header, number, count)
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise UnsupportedGGUF(f"the tensor {name!r} is in {tensors[name].file.name} and in {header.file.name}")
            tensors[name] = tensor
    metadata = Metadata(headers[0].metadata)
    if metadata.integer(TENSORS_KEY, len(tensors)) != len(tensors):
        raise UnsupportedGGUF(f"the parts hold {len(tensors)} tensors, not {metadata.integer(TENSORS_KEY)}")
    return Model(metadata=metadata, tensors=tensors)


def _check(header: Header, number: int, count: int) -> None:
    metadata = Metadata(header.metadata)
    if (metadata.integer(NUMBER_KEY), metadata.integer(COUNT_KEY)) != (number, count):
        raise UnsupportedGGUF(f"{header.file.name} is not part {number + 1} of {count} by its metadata")


def stem_of(file: Path) -> str:
    """Return a file's name without its ending and its number among parts."""
    match = PART.fullmatch(file.name)
    return match["stem"] if match else file.stem
