"""How models write that a tool is to be called, and what a text in such a form says.

Each family has a form of its own (`tool_families`): a call stands between two marks, and between them is JSON, or
something like XML or Python. What parsers are given is whatever a model wrote, so whatever they raise means that it is
no call, and what they return is looked at: a name that is known, arguments that are an object of JSON's values. Text
that is no call is text; nothing is ever dropped.

Models that know no tools are told of a form here, the one that most models know.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from ..chat import Tool, ToolCall
from .argument_values import ValueIsOpen, json_at, no_call, takes
from .tagged_calls import QWEN3_CODER

# Longer texts are no calls: some parsers take quadratic time.
MOST_CHARACTERS = 2**17
MOST_CALLS = 16

Parser = Callable[[str, list[dict[str, Any]]], Any]
# Given are the names and arguments of calls.
Writer = Callable[[Sequence[tuple[str, dict[str, Any]]]], str]


@frozen
class ToolFormat:
    """The marks around a call; without an `end` it goes on to the end of the answer.

    `parse` makes calls of what is between them. None says that it is JSON, of the kind that a grammar can enforce. With
    `whole` it is given the marks as well. `inner` are further marks that it looks for. Where a call could go on at any
    place, as one that is a row of arguments, it `needs_end`: only the mark behind it says that it is whole. `write`
    makes a text of calls, for a template that renders none.
    """

    begin: str
    end: str
    parse: Parser | None = None
    whole: bool = False
    inner: tuple[str, ...] = ()
    needs_end: bool = False
    write: Writer | None = None

    @property
    def unmarked(self) -> "ToolFormat | None":
        """The form in which a model writes a call if it leaves out the mark that begins it; None if none does."""
        if self.parse is not QWEN3_CODER:
            return None
        return ToolFormat("<function=", QWEN3_CODER.call_end, self.parse, whole=True)

    def calls_in(self, inside: str, tools: Sequence[Tool]) -> list[ToolCall] | None:
        """Return the calls that a text between the marks says, none if it is something else.

        None if the text ends within a value, so that the mark behind it may be part of that.
        """
        if self.parse is None:
            return []
        try:
            return _read(self.begin + inside + self.end if self.whole else inside, self.parse, tools)
        except ValueIsOpen:
            return None


def from_json(text: str, _: list[dict[str, Any]]) -> Any:
    """Parse JSON: a value, or several behind each other, with semicolons between them or not; of a list its members."""
    said: list[Any] = []
    rest = text.lstrip()
    for _value in range(MOST_CALLS):
        value, end = json_at(rest, 0)
        said += value if isinstance(value, list) else [value]
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
        if not rest:
            return said
    raise no_call(text, "more than calls")


def to_json(calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Return a list of calls as JSON."""
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls], ensure_ascii=False)


def from_json_by_name(text: str, definitions: list[dict[str, Any]]) -> Any:
    """Parse JSON whose calls are objects with one member each: under the tool's name its arguments."""
    calls = []
    for said in from_json(text, definitions):
        [(name, arguments)] = said.items()
        calls.append({"name": name, "arguments": arguments})
    return calls


GENERIC = ToolFormat("<tool_call>", "</tool_call>")


def calls_in(text: str, parse: Parser, tools: Sequence[Tool]) -> list[ToolCall]:
    """Return the calls that a text says, none if it is something else."""
    try:
        return _read(text, parse, tools)
    except ValueIsOpen:
        return []


def _read(text: str, parse: Parser, tools: Sequence[Tool]) -> list[ToolCall]:
    """Return the calls that a text says, none if it is something else. Raises ValueIsOpen."""
    if len(text) > MOST_CHARACTERS:
        return []
    try:
        said = parse(text, [json.loads(tool.definition) for tool in tools])
    except ValueIsOpen:
        raise
    except Exception:  # noqa: BLE001 - parsers of others, on texts of a model: whatever they raise, it is no call
        return []
    said = said if isinstance(said, list) else [said]
    names = {tool.name for tool in tools}
    calls = [_call(one, names) for one in said]
    if len(calls) > MOST_CALLS or None in calls:
        return []
    return [call for call in calls if call is not None]


def bare_calls_in(text: str, tools: Sequence[Tool]) -> list[ToolCall]:
    """Return the calls that an answer is, where it has no marks, only JSON, perhaps in a fence.

    An answer may be JSON for other reasons, so the arguments must be there, and be those of the tool.
    """
    bare = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    return calls_in(bare, _from_bare_json, tools)


def _from_bare_json(text: str, definitions: list[dict[str, Any]]) -> Any:
    """Parse JSON. Raises if something in it is no call with its arguments."""
    functions = [definition["function"] for definition in definitions]
    schemas = {function["name"]: function.get("parameters") or {} for function in functions}
    said = from_json(text, definitions)
    for one in said:
        name, arguments = _said(one, None)
        if not all(takes(schemas[name], argument) for argument in arguments):
            raise ValueError("no arguments of this tool")
    return said


def _said(one: dict[str, Any], without: object) -> tuple[Any, Any]:
    """Return the name and the arguments that are said. Raises ValueError where they are a text that is no JSON."""
    inner = one.get("function")
    call = inner if isinstance(inner, dict) else one
    arguments = call.get("arguments", call.get("parameters", without))
    return call.get("name", call.get("tool_name")), json.loads(arguments) if isinstance(arguments, str) else arguments


def _call(said: object, names: set[str]) -> ToolCall | None:
    """Return a call as it was said, None if it is none."""
    if not isinstance(said, dict):
        return None
    try:
        name, arguments = _said(said, {})
        if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
            return None
        return ToolCall(name, json.dumps(arguments, allow_nan=False, ensure_ascii=False))
    except (ValueError, TypeError, RecursionError):
        return None
