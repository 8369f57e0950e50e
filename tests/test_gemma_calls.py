"""Calls of Gemma's models come back as their templates render them; what is not wholly calls is none."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osaurus.engine.gemma_calls import FUNCTION_GEMMA, GEMMA_4, GemmaForm


def written(value: Any, quote: str) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "null"
        case str():
            return f"{quote}{value}{quote}"
        case dict():
            return "{" + ",".join(f"{name}:{written(member, quote)}" for name, member in value.items()) + "}"
        case list():
            return "[" + ",".join(written(member, quote) for member in value) + "]"
    return str(value)


TEXTS = st.text(max_size=8) | st.sampled_from(["{a:1}", ',b:"', "}", "call:f{", "\\", "it's", "\x001\x00"])
NAMES = st.sampled_from(["city", "max-days", "größe", "$x", "a.b"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
)


@given(
    form=st.sampled_from([GEMMA_4, FUNCTION_GEMMA]),
    several=st.lists(st.dictionaries(NAMES, JSON, max_size=3), min_size=1, max_size=2),
)
def test_calls_come_back_as_they_were(form: GemmaForm, several: list[dict[str, Any]]) -> None:
    said = "".join(f"call:get-weather{written(arguments, form.quote)}" for arguments in several)
    assert form(said, []) == [{"name": "get-weather", "arguments": arguments} for arguments in several]


@pytest.mark.parametrize(
    "said",
    [
        "call:f{x:1} as I said",
        "I call:f{x:1}",
        "call:f{x:1",
        "call:f{x:Paris}",
        'call:f{x:"Paris"}',
        "call:f{x:<escape>Paris}",
        "call:f{x:{y:1,z:2}",
        "f{x:1}",
    ],
)
def test_what_is_not_wholly_calls_is_none(said: str) -> None:
    with pytest.raises(ValueError, match=r"call|Expecting|text"):
        FUNCTION_GEMMA(said, [])


@pytest.mark.parametrize("filling", [" ", "{", ",", "call:f{}", "a:", "<escape>"])
def test_long_texts_take_no_time(filling: str) -> None:
    # Quadratic work on these would take minutes.
    with pytest.raises((ValueError, RecursionError)):
        FUNCTION_GEMMA("call:f{x:" + filling * (120_000 // len(filling)) + "!", [])
