"""Which types a schema lets an argument have, and which value a text is, if the schema is asked.

Forms that are not JSON write an argument as a text: `5` may be a number or a string, and only the schema tells. A text
that is no value of the types it may have stays a text. Then it breaks the schema, and whoever runs the tool can tell
the model so; a value that was guessed breaks nothing, and is wrong.
"""

import ast
import json
import re
from math import isfinite
from typing import Any

from .schema_limits import Schema
from .schemas import referred

ANY = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
CONTAINERS = frozenset({"object", "array"})

# Of schemas that are joined, or not seen whole, nobody can say here which properties they have.
JOINED = ("$ref", "allOf", "anyOf", "oneOf", "patternProperties")

# How templates write what Jinja makes a text of.
PYTHONS = {"True": True, "False": False, "None": None}

# Strings of JSON; the last may have no end.
STRING = re.compile(r'"(?:[^"\\]|\\.)*+("|\\?\Z)', re.DOTALL)


class ValueIsOpen(ValueError):
    """A text ends within the value of an argument."""


def no_call(text: str, reason: str) -> ValueError:
    """Return why a text is no call: where it ends within a string, nobody can tell yet, whatever came before."""
    if any(string[1] != '"' for string in STRING.finditer(text)):
        return ValueIsOpen("a string does not end")
    return ValueError(reason)


def json_at(text: str, place: int) -> tuple[Any, int]:
    """Return the JSON value that begins in a place of a text, and where it ends; strings may hold lines as they are.

    Raises ValueError if there is none or a name is given twice, ValueIsOpen if the text ends within a string.
    """
    try:
        return json.JSONDecoder(strict=False, object_pairs_hook=named_once).raw_decode(text, place)
    except ValueError as error:
        raise no_call(text, str(error)) from error


def named_once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members of an object. Raises ValueError if there are two of one name."""
    named = dict(members)
    if len(named) < len(members):
        raise ValueError("a name is given twice")
    return named


def takes(parameters: Schema, name: str) -> bool:
    """Return whether a schema has an argument of this name; one with properties has no others, unless it says so."""
    properties = parameters.get("properties")
    if not isinstance(properties, dict) or name in properties or any(keyword in parameters for keyword in JOINED):
        return True
    return parameters.get("additionalProperties", False) is not False


def argument_types(parameters: Schema, name: str) -> frozenset[str]:
    """Return the types that an argument may have, all if nothing is said of it; a number may be an integer."""
    top = parameters
    for _ in range(8):
        if "properties" in top or not isinstance(target := referred(parameters, top.get("$ref")), dict):
            break
        top = target
    properties = top.get("properties")
    schema = properties.get(name) if isinstance(properties, dict) else None
    return _types(parameters, top.get("additionalProperties") if schema is None else schema, {})


def value_of(text: str, types: frozenset[str]) -> Any:
    """Return the value that a text is, itself if it may be a string or is of none of these types.

    Beside strings, null is null, and JSON of an object or array is that, where they are allowed as well.
    """
    bare = text.strip()
    if bare == "null" and "null" in types:
        return None
    if "string" in types:
        types &= CONTAINERS
    if not types:
        return text
    for kind, value in ((_type(value), value) for value in _values(bare)):
        if kind in types:
            return value
        if kind == "number" and "integer" in types and value.is_integer():
            return int(value)
    return text


def _values(text: str) -> list[Any]:
    """Return what a text is as JSON, or else as Python."""
    if text in PYTHONS:
        return [PYTHONS[text]]
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        if not text.startswith(("{", "[")):
            return []
        try:
            return [ast.literal_eval(text)]
        except (ValueError, SyntaxError):
            return []
    return [] if isinstance(value, float) and not isfinite(value) else [value]


def _type(value: object) -> str:
    """Return the name that JSON Schema has for the type of a value, "" if none."""
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return "null" if value is None else names.get(type(value), "")


def _types(root: Schema, schema: object, known: dict[int, frozenset[str]]) -> frozenset[str]:
    """Return the types that a schema allows. `known` are those of schemas that were looked at, by their ids."""
    if not isinstance(schema, dict):
        return ANY
    if id(schema) in known:
        return known[id(schema)]
    # One that refers to itself says nothing by that.
    known[id(schema)] = ANY
    types = ANY & _named(schema.get("type"))
    if "$ref" in schema:
        types &= _types(root, referred(root, schema["$ref"]), known)
    for values in (schema.get("enum"), [schema["const"]] if "const" in schema else None):
        if isinstance(values, list):
            types &= _with_integers({_type(value) for value in values})
    for keyword in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(keyword), list) and branches:
            types &= frozenset().union(*(_types(root, branch, known) for branch in branches))
    for part in branches if isinstance(branches := schema.get("allOf"), list) else ():
        types &= _types(root, part, known)
    known[id(schema)] = types
    return types


def _named(kind: object) -> frozenset[str]:
    """Return the types that the keyword `type` names, however they are spelled; one that is unknown may be anything."""
    names = {str(name).lower() if name is not None else "null" for name in (kind if isinstance(kind, list) else [kind])}
    return _with_integers(names) if kind is not None and names <= ANY else ANY


def _with_integers(types: set[str]) -> frozenset[str]:
    return frozenset(types | {"integer"} if "number" in types else types)
