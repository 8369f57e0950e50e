"""The header of a GGUF file: everything in it is held against what the file has, before anything is made by it.

The files here are written byte by byte: the gguf package would not write most of them. What took other readers down
(docs/security.md) has its test here.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from osaurus.library.gguf import UnsupportedGGUF
from osaurus.library.gguf.header import read_header

from .test_gguf import write_gguf

U8, U32, STRING, ARRAY, U64 = 0, 4, 8, 9, 10
F32, Q4_0 = 0, 2
HUGE = 2**63 + 1


def text(value: str | bytes, length: int | None = None) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content) if length is None else length) + content


def number(key: str, value: int, kind: int = U32) -> bytes:
    return text(key) + struct.pack("<I", kind) + struct.pack({U8: "<B", U32: "<I", U64: "<Q"}[kind], value)


def array(key: str, kind: int, count: int, content: bytes = b"") -> bytes:
    return text(key) + struct.pack("<IIQ", ARRAY, kind, count) + content


def tensor(name: str, shape: Sequence[int] = (32,), kind: int = F32, offset: int = 0, dimensions: int = -1) -> bytes:
    count = len(shape) if dimensions < 0 else dimensions
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


def gguf(
    entries: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: int = 4096,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """Return a file, with as many bytes of data; `counts` of tensors and entries in place of the true ones."""
    many = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, *many) + b"".join([*entries, *tensors])
    return head + bytes(-len(head) % 32) + bytes(data)


def refusal(content: bytes, tmp_path: Path) -> str:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(UnsupportedGGUF) as caught:
        read_header(path)
    message = str(caught.value)
    assert "model.gguf" in message
    assert "\n" not in message
    return message


def test_what_is_in_order_is_read(tmp_path: Path) -> None:
    entries = [
        number("a.number", 7),
        text("a.text") + struct.pack("<I", STRING) + text("Süß"),
        array("some.texts", STRING, 2, text("one") + text("")),
        array("some.numbers", U32, 3, struct.pack("<3I", 1, 2, 3)),
        array("no.numbers", U32, 0),
    ]
    tensors = [tensor("first", (64, 2), Q4_0), tensor("second", (3,), offset=96), tensor("third", (1,), offset=128)]
    path = tmp_path / "model.gguf"
    content = gguf(entries, tensors, data=132)
    path.write_bytes(content)
    header = read_header(path)
    metadata = {key: list(value) if isinstance(value, np.ndarray) else value for key, value in header.metadata.items()}
    assert metadata == {
        "a.number": 7,
        "a.text": "Süß",
        "some.texts": ["one", ""],
        "some.numbers": [1, 2, 3],
        "no.numbers": [],
    }
    found = {stored.name: (stored.shape, stored.start, stored.nbytes) for stored in header.tensors.values()}
    begin = len(content) - 132
    assert found == {"first": ((2, 64), begin, 72), "second": ((3,), begin + 96, 12), "third": ((1,), begin + 128, 4)}


@pytest.mark.parametrize("content", [b"", b"GG", b"GGUF", b"GGUF\x03", b"PK\x03\x04" + bytes(64), b"{}"])
def test_a_file_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    assert refusal(content, tmp_path)


@pytest.mark.parametrize("version", [0, 1, 4, 3 << 24])
def test_another_version_or_byte_order_is_refused(version: int, tmp_path: Path) -> None:
    assert str(version) in refusal(gguf(version=version), tmp_path)


@pytest.mark.parametrize("counts", [(HUGE, 0), (0, HUGE), (2**40, 2**40), (2**16, 0), (0, 400)])
def test_counts_that_the_file_cannot_hold_are_refused(counts: tuple[int, int], tmp_path: Path) -> None:
    assert "cannot hold" in refusal(gguf(counts=counts), tmp_path)


@pytest.mark.parametrize("counts", [(1, 0), (0, 2)])
def test_entries_that_are_not_there_are_refused(counts: tuple[int, int], tmp_path: Path) -> None:
    assert refusal(gguf(counts=counts, data=12), tmp_path)


@pytest.mark.parametrize("length", [HUGE, 2**40, 2**20, 5000])
def test_texts_that_end_beyond_the_file_are_refused(length: int, tmp_path: Path) -> None:
    assert "bytes" in refusal(gguf([text("key", length)]), tmp_path)
    assert "bytes" in refusal(gguf([text("key") + struct.pack("<I", STRING) + text("value", length)]), tmp_path)
    assert "bytes" in refusal(gguf([array("key", STRING, 1, text("value", length))]), tmp_path)
    assert "bytes" in refusal(gguf(tensors=[text("name", length)]), tmp_path)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    assert "UTF-8" in refusal(gguf([text(b"\xff\xfe")]), tmp_path)


@pytest.mark.parametrize("count", [HUGE, 2**61, 2**40, 5000])
@pytest.mark.parametrize("kind", [U8, U32, U64, STRING])
def test_lists_that_end_beyond_the_file_are_refused(kind: int, count: int, tmp_path: Path) -> None:
    assert refusal(gguf([array("key", kind, count)]), tmp_path)


def test_lists_of_lists_are_refused_at_any_depth(tmp_path: Path) -> None:
    deep = b"".join(struct.pack("<IQ", ARRAY, 1) for _ in range(100_000))
    assert "'key' is a list of the type 9" in refusal(gguf([array("key", ARRAY, 1, deep)]), tmp_path)


@pytest.mark.parametrize("kind", [13, 99, 2**32 - 1])
def test_values_of_an_unknown_type_are_refused(kind: int, tmp_path: Path) -> None:
    assert str(kind) in refusal(gguf([text("key") + struct.pack("<I", kind) + bytes(8)]), tmp_path)
    assert str(kind) in refusal(gguf([array("key", kind, 1)]), tmp_path)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert "'key' is there twice" in refusal(gguf([number("key", 1), number("key", 2)]), tmp_path)


@pytest.mark.parametrize("alignment", [0, 3, 48, 2**32 - 1])
def test_an_alignment_that_is_no_power_of_two_is_refused(alignment: int, tmp_path: Path) -> None:
    assert "'general.alignment'" in refusal(gguf([number("general.alignment", alignment)]), tmp_path)


def test_an_alignment_that_is_no_number_is_refused(tmp_path: Path) -> None:
    entry = text("general.alignment") + struct.pack("<I", STRING) + text("32")
    assert "'general.alignment'" in refusal(gguf([entry], [tensor("name")]), tmp_path)


def test_an_alignment_beyond_the_file_is_refused_when_there_is_a_tensor(tmp_path: Path) -> None:
    assert "'name' ends at" in refusal(gguf([number("general.alignment", 2**31)], [tensor("name")]), tmp_path)


@pytest.mark.parametrize("offset", [4096, 2**40, 2**63, 2**64 - 32])
def test_tensors_that_end_beyond_the_file_are_refused(offset: int, tmp_path: Path) -> None:
    assert "'name' ends at byte" in refusal(gguf(tensors=[tensor("name", offset=offset)]), tmp_path)


def test_tensors_between_the_steps_of_the_alignment_are_refused(tmp_path: Path) -> None:
    assert "multiple of 32" in refusal(gguf(tensors=[tensor("name", offset=8)]), tmp_path)


@pytest.mark.parametrize(
    "shape",
    [
        (2**32, 2**32),  # whose product is 0 in 64 bits
        (2**63, 2),
        (2**62 + 8, 4),  # whose product is 32 in 64 bits
        (2**16, 2**16, 2**16, 2**16),
        (2**40,),
        (0,),
        (32, 0),
    ],
)
def test_shapes_that_the_file_cannot_hold_are_refused(shape: Sequence[int], tmp_path: Path) -> None:
    assert "'name'" in refusal(gguf(tensors=[tensor("name", shape)]), tmp_path)


@pytest.mark.parametrize("dimensions", [0, 5, 2**31, 2**32 - 1])
def test_dimensions_that_no_tensor_has_are_refused(dimensions: int, tmp_path: Path) -> None:
    assert f"{dimensions} dimensions" in refusal(gguf(tensors=[tensor("name", dimensions=dimensions)]), tmp_path)


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    assert "in blocks of 32" in refusal(gguf(tensors=[tensor("name", (33, 2), Q4_0)]), tmp_path)


@pytest.mark.parametrize("kind", [4, 5, 31, 99, 2**32 - 1])
def test_tensors_of_an_unknown_kind_are_refused(kind: int, tmp_path: Path) -> None:
    assert f"kind {kind}" in refusal(gguf(tensors=[tensor("name", kind=kind)]), tmp_path)


def test_a_tensor_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert "'name' is there twice" in refusal(gguf(tensors=[tensor("name"), tensor("name", offset=128)]), tmp_path)


@pytest.mark.parametrize("offset", [0, 32, 96])
def test_tensors_that_share_bytes_are_refused(offset: int, tmp_path: Path) -> None:
    assert "within another" in refusal(gguf(tensors=[tensor("one"), tensor("two", offset=offset)]), tmp_path)


def test_a_file_that_was_cut_is_refused_wherever(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "whole.gguf", tiny_tokenizer)
    content = (tmp_path / "whole.gguf").read_bytes()
    read_header(tmp_path / "whole.gguf")
    for length in [*range(0, 400, 7), *range(400, len(content), 997), len(content) - 1]:
        refusal(content[:length], tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2**16), change=st.binary(min_size=1, max_size=12))
def test_a_file_with_other_bytes_is_read_or_refused_and_nothing_else(
    place: int, change: bytes, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    whole = tmp_path / "whole.gguf"
    if not whole.exists():
        write_gguf(whole, tiny_tokenizer)
    content = bytearray(whole.read_bytes())
    place %= 12000
    content[place : place + len(change)] = change
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    try:
        header = read_header(path)
    except UnsupportedGGUF:
        return
    assert all(stored.start + stored.nbytes <= len(content) for stored in header.tensors.values())
