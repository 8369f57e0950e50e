"""How much JSON there may be in a text, told before it is parsed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osaurus.dialects import json_size
from osaurus.dialects.json_size import MOST_BARE, MOST_VALUES, check_size


def entries(value: bytes, count: int) -> bytes:
    return b'{"x":[' + b",".join([value] * count) + b"]}"


@pytest.mark.parametrize(
    ("value", "marks"),
    [(b"{}", 2), (b"[]", 2), (b"0", 1), (b'""', 1), (b'",:[{"', 1), (b'{"a":0}', 3)],
)
def test_there_may_be_so_many_values(value: bytes, marks: int) -> None:
    most = (MOST_VALUES - 2) // marks
    check_size(entries(value, most))
    with pytest.raises(ValueError, match="more than 500,000 values"):
        check_size(entries(value, most + 2))


def test_keys_are_counted_as_well() -> None:
    def keys(count: int) -> bytes:
        return json.dumps({str(number): 0 for number in range(count)}, separators=(",", ":")).encode()

    check_size(keys(MOST_VALUES // 2))
    with pytest.raises(ValueError, match="values"):
        check_size(keys(MOST_VALUES // 2 + 1))


@pytest.mark.parametrize(
    "text",
    ["a, b: [c] {d} ", '{"code": ["of", "all", "kinds"], "\\n": {}}', "\\", '"', '\\",', '\\\\\\",', "é,\u2028,"],
)
def test_a_text_may_be_long_and_hold_what_it_likes(text: str) -> None:
    long = text * (10 * 2**20 // len(text))
    check_size(json.dumps({"messages": [{"role": "user", "content": long}]}).encode())
    check_size(json.dumps([long, 0], ensure_ascii=False).encode())


def test_a_text_hides_nothing_that_comes_behind_it() -> None:
    for text in ("\\", '"', '\\"', "\\\\"):
        with pytest.raises(ValueError, match="values"):
            check_size(json.dumps([text, [0] * (MOST_VALUES + 1)]).encode())


def test_many_short_texts_are_many_values() -> None:
    with pytest.raises(ValueError, match="values"):
        check_size(b'"' * (2 * MOST_VALUES + 4) + b" " * MOST_BARE)


@pytest.mark.parametrize("filler", [b"9" * 4000, b" " * 4000])
def test_outside_of_texts_there_may_be_so_many_bytes(filler: bytes) -> None:
    most = MOST_BARE // (len(filler) + 2)
    check_size(entries(b"0" + filler, most - 1))
    with pytest.raises(ValueError, match="more than 8 MiB of numbers"):
        check_size(entries(b"0" + filler, most + 1))


texts = st.text(st.sampled_from('",:[{\\a é'), max_size=6)
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
)


def marks(value: Any) -> int:
    """How many commas, colons and opening brackets a value has."""
    match value:
        case dict():
            return 1 + max(0, len(value) - 1) + len(value) + sum(map(marks, value.values()))
        case list():
            return 1 + max(0, len(value) - 1) + sum(map(marks, value))
        case _:
            return 0


@given(value=values, ascii_only=st.booleans())
def test_what_is_within_texts_is_never_counted(value: Any, ascii_only: bool) -> None:
    bare = json_size._without_strings(json.dumps(value, ensure_ascii=ascii_only).encode())
    assert bare is not None
    assert json_size._marks(bare) == marks(value)
