"""Marks in text that comes bit by bit."""

import pytest

from osaurus.engine.marks import doubtful


@pytest.mark.parametrize(
    ("text", "marks", "length"),
    [
        ("", ["<end>"], 0),
        ("text", ["<end>"], 0),
        ("text<", ["<end>"], 1),
        ("text<en", ["<end>"], 3),
        ("<<", ["<<<"], 2),
        ("a<b", ["<end>"], 0),
        ("wor", ["world", "order"], 3),
        ("wor", ["order"], 2),
        ("text", [], 0),
    ],
)
def test_the_longest_beginning_of_a_mark_counts(text: str, marks: list[str], length: int) -> None:
    assert doubtful(text, marks) == length
