"""How models write that a tool is to be called, and what a text in such a form says.

Each family has a form of its own: a call stands between two marks, and between them is JSON, or something like XML or
Python. mlx_lm knows which family has which, and has parsers; where those guess at values, or at what is no call, there
are others here. What they are given is whatever a model wrote, so whatever they raise means that it is no call, and
what they return is looked at: a name that is known, arguments that are an object of JSON's values. Text that is no call
is text; nothing is ever dropped.

Models that know no tools are told of a form here, the one that most models know.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from ..chat import Tool, ToolCall
from . import pythonic_calls
from .argument_values import takes
from .tagged_calls import GLM, LONGCAT, MINICPM5, MINIMAX_M2, QWEN3_CODER, ValueIsOpen

# Longer texts are no calls: some parsers take quadratic time.
MOST_CHARACTERS = 2**17
MOST_CALLS = 16

Parser = Callable[[str, list[dict[str, Any]]], Any]

# By the modules of mlx_lm's parsers, what parses these forms here.
OWN: dict[str, Parser] = {
    "mlx_lm.tool_parsers.qwen3_coder": QWEN3_CODER,
    "mlx_lm.tool_parsers.glm47": GLM,
    "mlx_lm.tool_parsers.longcat": LONGCAT,
    "mlx_lm.tool_parsers.minimax_m2": MINIMAX_M2,
    "mlx_lm.tool_parsers.minicpm5": MINICPM5,
    "mlx_lm.tool_parsers.pythonic": pythonic_calls.parse,
}

# Likewise, what they look for within a call, and some model's tokenizer has as a special token.
CALL_ID = "[CALL_ID]"
INNER_MARKS = {
    "mlx_lm.tool_parsers.mistral": ("[ARGS]", CALL_ID),
    "mlx_lm.tool_parsers.gemma4": ('<|"|>',),
    "mlx_lm.tool_parsers.function_gemma": ("<escape>",),
    "mlx_lm.tool_parsers.kimi_k2": ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
}
# An id stands between a call's name and its arguments.
IDENTIFIED = re.compile(re.escape(CALL_ID) + r"\w+(?=\[ARGS\])")


@frozen
class ToolFormat:
    """The marks around a call; without an `end` it goes on to the end of the answer.

    `parse` makes calls of what is between them. None says that it is JSON, of the kind that a grammar can enforce. With
    `whole` it is given the marks as well. `inner` are further marks that it looks for.
    """

    begin: str
    end: str
    parse: Parser | None = None
    whole: bool = False
    inner: tuple[str, ...] = ()

    @classmethod
    def of_family(cls, begin: str, end: str, parse: Parser) -> "ToolFormat":
        """Return the form of a family, by its marks and mlx_lm's parser for it."""
        family = parse.__module__
        inner = INNER_MARKS.get(family, ())
        parse = OWN.get(family, parse)
        return cls(begin, end, _without_call_ids(parse) if CALL_ID in inner else parse, inner=inner)

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
    """Parse JSON."""
    return json.loads(text)


def _without_call_ids(parse: Parser) -> Parser:
    """Return a parser of calls that may have ids, for one that would take an id for the name."""
    return lambda text, tools: parse(IDENTIFIED.sub("", text), tools)


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
    """Parse JSON, perhaps several values with semicolons between them. Raises if one is no call with its arguments."""
    functions = [definition["function"] for definition in definitions]
    schemas = {function["name"]: function.get("parameters") or {} for function in functions}
    said: list[Any] = []
    rest = text
    while True:
        rest = rest.lstrip()
        value, end = json.JSONDecoder().raw_decode(rest)
        said += value if isinstance(value, list) else [value]
        rest = rest[end:].lstrip()
        if not rest:
            break
        if rest[0] != ";" or len(said) > MOST_CALLS:
            raise ValueError("more than calls")
        rest = rest[1:]
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
