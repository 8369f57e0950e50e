"""Calls written as a list of Python's calls, as LFM2 does: `[weather(city="Paris", days=2)]`."""

import ast
import re
from typing import Any

# What templates write of JSON, and Python has other names for.
LITERALS = {"true": True, "false": False, "null": None}

QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"|' + r"'(?:[^'\\]|\\.)*+'", re.DOTALL)
# An escape that Python knows, or else what it would not have in a string.
SPECIAL = re.compile(r"""\\[\\'"abfnrtvxuUN0-7]|[\\\n\r]""")
ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}


def parse(text: str, _: list[dict[str, Any]]) -> Any:
    """Return the calls that a text is. Raises ValueError or SyntaxError if it is anything else.

    Models write lines into strings as they are, which Python does not know.
    """
    written = QUOTED.sub(lambda quoted: SPECIAL.sub(_escaped, quoted[0]), text.strip())
    listed = ast.parse(written, mode="eval").body
    if not isinstance(listed, ast.List):
        raise ValueError("no list of calls")
    return [_call(one) for one in listed.elts]


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
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(LITERALS[node.id]) if node.id in LITERALS else node
