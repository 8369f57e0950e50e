"""What texts in the forms of model families say, and that nothing a model writes can do harm."""

import json
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osaurus.chat import ToolCall
from osaurus.engine.backend import Backend
from osaurus.engine.tool_families import known_form
from osaurus.engine.tool_formats import MOST_CALLS, MOST_CHARACTERS, bare_calls_in, calls_in, from_json

from .doubles import tool

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = [tool("weather", PARAMETERS)]

# What each family writes between its marks, by mlx_lm's parser for it.
FAMILIES = {
    "json_tools": '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}',
    "qwen3_coder": (
        "<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>"
    ),
    "glm47": (
        "weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>days</arg_key><arg_value>2</arg_value>"
    ),
    "pythonic": '[weather(city="Paris", days=2)]',
    "mistral": 'weather[ARGS]{"city": "Paris", "days": 2}',
    "longcat": '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}',
    "kimi_k2": (
        "<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "Paris", "days": 2}<|tool_call_end|>'
    ),
    "minimax_m2": (
        '<invoke name="weather"><parameter name="city">Paris</parameter><parameter name="days">2</parameter></invoke>'
    ),
    "minicpm5": '"weather"><param name="city">Paris</param><param name="days">2</param>',
    "function_gemma": "call:weather{city:<escape>Paris<escape>,days:2}",
    "gemma4": 'call:weather{city:<|"|>Paris<|"|>,days:2}',
}


def parser(family: str) -> Any:
    form = known_form("", "", import_module(f"mlx_lm.tool_parsers.{family}").parse_tool_call)
    return form.parse or from_json


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_of_every_family_is_understood(family: str, backend: Backend) -> None:
    [call] = calls_in(FAMILIES[family], parser(family), TOOLS)
    assert call.name == "weather"
    assert json.loads(call.arguments) == {"city": "Paris", "days": 2}


@pytest.mark.parametrize("family", ["qwen3_coder", "glm47", "longcat", "minimax_m2", "minicpm5", "pythonic"])
def test_texts_are_what_the_model_wrote(family: str, backend: Backend) -> None:
    tags = "<longcat_arg_key>city</longcat_arg_key><longcat_arg_value>Paris</longcat_arg_value>"
    written = f"weather{tags}" if family == "longcat" else FAMILIES[family]
    for text in ("  Paris\n\n", "null", "75001"):
        [call] = calls_in(written.replace("Paris", text), parser(family), TOOLS)
        assert json.loads(call.arguments)["city"] == text


# Each has taken down a server, or been seen to raise what it should not.
NASTY = [
    "",
    "[" * 20_000,
    "(" * 20_000,
    '{"name": "weather", "arguments": {"days": 1e999}}',
    '{"name": "weather", "arguments": {"days": NaN}}',
    '{"name": "weather", "arguments": ["Paris"]}',
    '{"name": ["weather"], "arguments": {}}',
    '["weather"]',
    "weather(*[1])",
    "weather(city=" + "9" * 5000 + ")",
    "weather(__import__('os').system('true'))",
    '{"name": "weather", "arguments": "{"}',
    "\x00",
    "x" * (MOST_CHARACTERS + 1),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_nothing_a_model_writes_raises_or_leaves_json(family: str, text: str, backend: Backend) -> None:
    for call in calls_in(text, parser(family), TOOLS):
        assert call.name == "weather"
        assert isinstance(json.loads(call.arguments, parse_constant=pytest.fail), dict)


@settings(max_examples=50)
@given(text=st.text(max_size=60))
def test_no_text_raises(text: str) -> None:
    for family in FAMILIES:
        calls_in(text, parser(family), TOOLS)
    bare_calls_in(text, TOOLS)


def test_there_is_a_limit_of_calls() -> None:
    many = json.dumps([{"name": "weather", "arguments": {}}] * (MOST_CALLS + 1))
    assert calls_in(many, from_json, TOOLS) == []


def test_one_bad_call_among_several_makes_it_text() -> None:
    said = json.dumps([{"name": "weather", "arguments": {}}, {"name": "other", "arguments": {}}])
    assert calls_in(said, from_json, TOOLS) == []


def test_lines_may_stand_in_strings_of_json_as_they_are() -> None:
    said = '{"name": "weather", "arguments": {"city": "New\nYork"}}'
    assert calls_in(said, from_json, TOOLS) == [ToolCall("weather", json.dumps({"city": "New\nYork"}))]


def test_arguments_may_be_a_text_of_json() -> None:
    said = json.dumps({"name": "weather", "arguments": '{"city": "Zürich"}'})
    assert calls_in(said, from_json, TOOLS) == [ToolCall("weather", '{"city": "Zürich"}')]


def test_a_name_may_be_said_to_be_that_of_a_tool() -> None:
    said = [{"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Rome"}}]
    assert calls_in(json.dumps(said), from_json, TOOLS) == [ToolCall("weather", '{"city": "Rome"}')]
    assert bare_calls_in(json.dumps(said), TOOLS) == [ToolCall("weather", '{"city": "Rome"}')]


def test_several_bare_calls_may_stand_between_semicolons() -> None:
    one = '{"name": "weather", "parameters": {"city": "Rome"}}'
    assert bare_calls_in(f"{one}; {one};\n{one}", TOOLS) == [ToolCall("weather", '{"city": "Rome"}')] * 3
    assert bare_calls_in(f"{one}, {one}", TOOLS) == []
    assert bare_calls_in(";".join([one] * (MOST_CALLS + 1)), TOOLS) == []


@pytest.mark.parametrize(
    "said",
    [
        {"name": "weather", "description": "Tells the weather."},
        {"name": "weather", "arguments": None},
        {"name": "weather", "arguments": {"town": "Rome"}},
        {"name": "weather", "parameters": PARAMETERS},
        [json.loads(TOOLS[0].definition)],
        {"weather": "fine", "name": "Rome"},
        [],
    ],
)
def test_bare_json_without_arguments_of_the_tool_is_no_call(said: object) -> None:
    assert bare_calls_in(json.dumps(said), TOOLS) == []
