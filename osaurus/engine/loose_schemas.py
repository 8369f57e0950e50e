"""What clients write into schemas that is no JSON Schema, and what they mean by it.

An agent sends the schemas of all its tools with each request; refusing one of them would refuse all it says. So null
means absent here as everywhere, and in schemas that are not strict more is understood: types as other APIs spell them,
types that are none, dialects of JSON Schema that nobody knows, patterns that no grammar can hold. What is left out is
not enforced, as with every keyword that a schema without `strict` has and the compiler does not.
"""

from collections.abc import Collection, Iterator
from typing import Any

from .schema_limits import Schema

# Where schemas stand in a schema: alone, in a list, and by name.
SINGLE = ("items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")
LISTED = ("prefixItems", "items", "anyOf", "oneOf", "allOf")
NAMED = ("properties", "patternProperties", "dependentSchemas")
DEFINITIONS = ("$defs", "definitions")

# Whose null is a value.
VALUES = {"const", "default", "example"}
TYPES = {"string", "number", "integer", "boolean", "object", "array", "null"}


def without_nulls(root: Schema) -> None:
    """Take out, in place, what is said to be null where that is no value."""
    for schema in _schemas_in(root):
        for keyword in [name for name, value in schema.items() if value is None and name not in VALUES]:
            del schema[keyword]
        for keyword in (*NAMED, *DEFINITIONS):
            members = schema.get(keyword)
            if isinstance(members, dict):
                schema[keyword] = {name: member for name, member in members.items() if member is not None}


def as_meant(root: Schema) -> None:
    """Make a schema that is not strict, in place, what it is likely to mean."""
    for schema in _schemas_in(root):
        schema.pop("$schema", None)
        kind = schema.get("type")
        if not isinstance(kind, (str, list)):
            continue
        kinds = ["null" if one is None else one for one in (kind if isinstance(kind, list) else [kind])]
        known = list(dict.fromkeys(one.lower() for one in kinds if isinstance(one, str) and one.lower() in TYPES))
        if known and all(isinstance(one, str) and one.lower() in TYPES for one in kinds):
            schema["type"] = known[0] if len(known) == 1 else known
        else:
            # One that is unknown may be anything.
            del schema["type"]


def patterns_in(root: Schema) -> set[str]:
    """Return the patterns that strings must match."""
    return {schema["pattern"] for schema in _schemas_in(root) if isinstance(schema.get("pattern"), str)}


def without_patterns(root: Schema, patterns: Collection[str]) -> None:
    """Take these patterns out, in place."""
    for schema in _schemas_in(root):
        if schema.get("pattern") in patterns:
            del schema["pattern"]


def _schemas_in(root: Schema) -> Iterator[Schema]:
    """Yield a schema and all those in it, each before those that it holds."""
    waiting: list[Any] = [root]
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        yield schema
        waiting += [schema.get(keyword) for keyword in SINGLE]
        for keyword in LISTED:
            members = schema.get(keyword)
            waiting += members if isinstance(members, list) else ()
        for keyword in (*NAMED, *DEFINITIONS):
            members = schema.get(keyword)
            waiting += members.values() if isinstance(members, dict) else ()
