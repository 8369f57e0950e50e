"""Calls written as Python's: a list of them, `[weather(city="Paris", days=2)]`, or a line each, as OLMo 3 does."""

import ast
import re
from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

from .argument_values import ValueIsOpen

# What templates write of JSON, and Python has other names for.
LITERALS = {"true": True, "false": False, "null": None}

# Strings; the last may have no end.
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+(?P<end>"|\\?\Z)|' + r"'(?:[^'\\]|\\.)*+(?P<other_end>'|\\?\Z)", re.DOTALL)
# An escape that Python knows, or else what it would not have in a string.
SPECIAL = re.compile(r"""\\[\\'"abfnrtvxuUN0-7]|[\\\n\r]""")
ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}


def parse(text: str, _: list[dict[str, Any]]) -> Any:
    """Return the calls that a text is. Raises ValueError or SyntaxError if it is none, ValueIsOpen if it goes on.

    Models write lines into strings as they are, which Python does not know.
    """
    text = text.strip()
    if any((quoted["end"] or quoted["other_end"]) not in ('"', "'") for quoted in QUOTED.finditer(text)):
        raise ValueIsOpen("a string does not end")
    beside = QUOTED.sub("", text)
    if "#" in beside or normalize("NFKC", beside) != beside:
        raise ValueError("a comment, or a name that Python reads as another")
    calls: list[dict[str, Any]] = []
    for line in ast.parse(QUOTED.sub(lambda quoted: SPECIAL.sub(_escaped, quoted[0]), text)).body:
        if not isinstance(line, ast.Expr):
            raise ValueError("no calls")
        calls += map(_call, line.value.elts if isinstance(line.value, ast.List) else [line.value])
    return calls


def written(calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Return a list of calls, given by their names and arguments."""
    each = (f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})" for name, arguments in calls)
    return f"[{', '.join(each)}]"


def _escaped(special: re.Match[str]) -> str:
    return ESCAPES.get(special[0], special[0])


def _call(node: ast.expr) -> dict[str, Any]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with names for its arguments")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError("an argument without a name, or given twice")
        arguments[keyword.arg] = ast.literal_eval(_Literals().visit(keyword.value))
    return {"name": ast.unparse(node.func), "arguments": arguments}


class _Literals(ast.NodeTransformer):
    def visit_Dict(self, node: ast.Dict) -> ast.expr:
        names = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise ValueError("a member without a name, or given twice")
        self.generic_visit(node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(LITERALS[node.id]) if node.id in LITERALS else node
