"""Calls that are written as Python's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osaurus.engine.argument_values import ValueIsOpen
from osaurus.engine.pythonic_calls import parse, written


def test_calls_are_a_list() -> None:
    assert parse("[a(x=1, y='two'), b.c()]", []) == [
        {"name": "a", "arguments": {"x": 1, "y": "two"}},
        {"name": "b.c", "arguments": {}},
    ]


def test_values_are_written_as_python_or_as_json() -> None:
    assert parse('[a(x=True, y=null, z={"b": [true, false]})]', []) == [
        {"name": "a", "arguments": {"x": True, "y": None, "z": {"b": [True, False]}}}
    ]


@pytest.mark.parametrize("quote", ['"', "'", '"""'])
def test_lines_in_strings_are_lines(quote: str) -> None:
    assert parse(f"[a(x={quote}one\n  two\r\nthree{quote}), b(y=2)]", []) == [
        {"name": "a", "arguments": {"x": "one\n  two\r\nthree"}},
        {"name": "b", "arguments": {"y": 2}},
    ]


def test_a_backslash_that_escapes_nothing_is_one() -> None:
    assert parse(r'[a(x="\d+\.\n\"q\"")]', []) == [{"name": "a", "arguments": {"x": '\\d+\\.\n"q"'}}]


def test_each_call_may_have_a_line_of_its_own() -> None:
    assert parse('a(x="one\n two")\nb(y=true)\n', []) == [
        {"name": "a", "arguments": {"x": "one\n two"}},
        {"name": "b", "arguments": {"y": True}},
    ]


@given(text=st.text(), number=st.integers())
def test_what_is_written_comes_back(text: str, number: int) -> None:
    arguments = {"x": text, "y": [number, None, {"z": True}]}
    assert parse(written([("a", arguments), ("b.c", {})]), []) == [
        {"name": "a", "arguments": arguments},
        {"name": "b.c", "arguments": {}},
    ]


@given(text=st.text(), number=st.integers())
def test_strings_that_are_escaped_come_back(text: str, number: int) -> None:
    assert parse(f"[a(x={text!r}, y={number})]", []) == [{"name": "a", "arguments": {"x": text, "y": number}}]


@pytest.mark.parametrize(
    "said",
    [
        "a",
        "a(x=1); import b",
        "a(x=1) or b(y=2)",
        "[a(1)]",
        "[a(**{})]",
        "[a(x=1, x=2)]",
        "[a(x=b)]",
        "[a(x='it's fine')]",
        '[a(x="1")] and [b(y=2)]',
        "[a(x=1)]  # a comment",
        "[a(ª=1)]",
        "[ﬁ(x=1)]",
        "[a(x={1: 2})]",
        "[a(x={'b': {None: 3}})]",
        "[a(x={'b': 1, 'b': 2})]",
        "[a(x={**b})]",
    ],
)
def test_anything_else_is_no_call(said: str) -> None:
    with pytest.raises((ValueError, SyntaxError)):
        parse(said, [])


@pytest.mark.parametrize(
    "begun", ["[a(x='", "[a(x=\"it's ", "[a(1 2, x='", "a(x=1)\nb(y='\\'", '[unknown(x="\\', "# It's a comment"]
)
def test_within_a_string_nobody_knows_yet(begun: str) -> None:
    with pytest.raises(ValueIsOpen):
        parse(begun, [])


@pytest.mark.parametrize("quotes", ['\\"', '"', "'", "\"'"])
def test_many_quotes_take_no_time(quotes: str) -> None:
    # Quadratic work on these would take minutes.
    with pytest.raises((ValueError, SyntaxError)):
        parse('[a(x="' + quotes * 60_000 + "b", [])
