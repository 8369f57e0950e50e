"""Durations as people write them."""

import math

import pytest

from osaurus.durations import seconds, text


@pytest.mark.parametrize(
    ("said", "expected"), [("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("300", 300), ("1.5", 1.5), ("-1s", math.inf)]
)
def test_a_duration_is_read(said: str, expected: float) -> None:
    assert seconds(said) == expected


@pytest.mark.parametrize(
    "said", ["", "m", "5 minutes", "5m5", "nan", "inf", "1e9", "9" * 65, "\u0661s", "99999999999999h"]
)
def test_anything_else_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        seconds(said)


def test_beyond_a_century_is_without_end() -> None:
    assert seconds("100000000h") == seconds("9999999999999") == math.inf


@pytest.mark.parametrize("number", [0, 0.5, 1.5, 30, 300, 5400, 86400, math.inf])
def test_a_duration_is_written_as_it_can_be_read(number: float) -> None:
    assert seconds(text(number)) == number
