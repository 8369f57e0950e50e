"""JSON Schemas from the network, made ready for the grammar compiler.

The difficulty is that they are programs from strangers, and mostly written for something else. Most describe objects
and do not say that there is nothing beside the properties they name; a small model that may go on inventing properties
does so until it is cut off, and leaves JSON that ends in the middle. So such objects are closed: what is written is
valid by the schema as it was, too. Left open are parts of an `allOf` and alternatives beside other properties, whose
neighbours may ask for the properties that they do not name.

What can harm is refused before any native code sees it (`schema_limits`). What cannot be enforced is the compiler's to
know.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import define, field, frozen

from .loose_schemas import LISTED, NAMED, SINGLE, as_meant, without_nulls
from .schema_limits import MOST_CHARACTERS, Schema, check, check_names, is_number, objects_in, refused

# With these beside it, an alternative is not the whole of what is said about an object.
SHARED_WITH = ("properties", "patternProperties", "required", "additionalProperties", "allOf", "$ref")

# With one of these an object says itself what else there may be, or others do.
OPEN = {
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "allOf",
    "anyOf",
    "oneOf",
    "$ref",
    "if",
    "dependentSchemas",
}

# How JSON is written: as Python's json writes it, which is what models were trained with.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

# Numbers without end are a small model's favourite. These are the integers that every client reads exactly (RFC 8259,
# section 6), and bounds that the compiler takes: a bound beyond is moved here, unless nothing were left.
LEAST_INTEGER, MOST_INTEGER = -(2**53) + 1, 2**53 - 1
NUMBERS = {
    "minimum": (LEAST_INTEGER, math.inf),
    "exclusiveMinimum": (LEAST_INTEGER, math.inf),
    "maximum": (-math.inf, MOST_INTEGER),
    "exclusiveMaximum": (-math.inf, MOST_INTEGER),
}
EXCLUSIVE = (
    ("exclusiveMinimum", "minimum", ("maximum", "exclusiveMaximum")),
    ("exclusiveMaximum", "maximum", ("minimum", "exclusiveMinimum")),
)
FINITE = {"enum", "const", "multipleOf"}


@frozen(kw_only=True)
class SchemaRule:
    """A grammar's rule for JSON that a schema allows. What is wrong with it is told of the field `asked_by`."""

    schema: dict[str, Any]
    strict: bool
    asked_by: str

    def __attrs_post_init__(self) -> None:
        """Raise InvalidRequest for what the compiler would take and not keep."""
        if self.strict:
            for value in objects_in(self.schema) or ():
                check_names(value, self.asked_by)

    def __str__(self) -> str:
        """Return the rule as llguidance writes it."""
        lenient = {} if self.strict else {"lenient": True, "coerce_one_of": True}
        return "%json " + json.dumps({**self.schema, "x-guidance": {**JSON_STYLE, **lenient}})


def prepared(text: str, strict: bool, asked_by: str) -> Schema:
    """Return a schema, given as JSON text, closed. Raises InvalidRequest, for the field `asked_by`."""
    if len(text) > MOST_CHARACTERS:
        raise refused(asked_by, f"the schema has {len(text)} characters; there may be {MOST_CHARACTERS}")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refused(asked_by, f"is no JSON that can be read: {error}"[:200]) from error
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise refused(asked_by, "must be a JSON Schema: an object")
    check(schema, asked_by)
    without_nulls(schema)
    if not strict:
        as_meant(schema)
    # Options of the compiler are not for clients.
    schema.pop("x-guidance", None)
    _Closing().close(schema)
    return schema


def prepared_for_arguments(text: str, strict: bool, asked_by: str) -> Schema:
    """Return the schema of a tool's arguments, which are an object. Raises InvalidRequest."""
    schema = prepared(text, strict, asked_by)
    if schema.setdefault("type", "object") != "object":
        raise refused(asked_by, f"must describe an object, not {json.dumps(schema['type'])[:64]}")
    return schema


@define
class _Closing:
    """Closes the objects of one schema.

    A definition may be referred to from several places; it is closed if it stands alone at all of them.
    """

    _seen: dict[int, tuple[Schema, bool]] = field(factory=dict)
    """Each schema by its identity, and whether it stands alone everywhere."""

    def close(self, root: Schema) -> None:
        """Close what can be, in place."""
        waiting: list[tuple[Any, bool]] = [(root, True)]
        while waiting:
            schema, alone = waiting.pop()
            if not isinstance(schema, dict):
                continue
            known = self._seen.get(id(schema))
            if known is not None and (alone or not known[1]):
                continue
            self._seen[id(schema)] = (schema, alone)
            waiting += self._parts(root, schema, alone)
        for schema, alone in self._seen.values():
            if alone and _is_complete(schema):
                schema["additionalProperties"] = False
            _bound(schema)
            if schema.get("uniqueItems") is False:
                # It says nothing, and the compiler does not know it.
                del schema["uniqueItems"]

    def _parts(self, root: Schema, schema: Schema, alone: bool) -> Iterator[tuple[Any, bool]]:
        """Yield the schemas that this one is made of, each with whether it stands alone there."""
        for keyword in SINGLE:
            yield schema.get(keyword), keyword not in ("not", "if", "then", "else")
        for keyword in LISTED:
            members = schema.get(keyword)
            if isinstance(members, list):
                together = keyword == "allOf" or (keyword in ("anyOf", "oneOf") and _is_shared(schema))
                for member in members:
                    yield member, not together and (alone or keyword in ("prefixItems", "items"))
        for keyword in NAMED:
            members = schema.get(keyword)
            if isinstance(members, dict):
                for member in members.values():
                    yield member, True
        target = referred(root, schema.get("$ref"))
        if target is not None:
            beside = _is_shared({name: value for name, value in schema.items() if name != "$ref"})
            yield target, alone and not beside


def _bound(schema: Schema) -> None:
    """Bound numbers to those that every client reads exactly."""
    for keyword, (least, most) in NUMBERS.items():
        bound = schema.get(keyword)
        if is_number(bound):
            schema[keyword] = min(max(bound, least), most)
    for exclusive, inclusive, others in EXCLUSIVE:
        _keep_apart(schema, exclusive, inclusive, others)
    kind = schema.get("type")
    if (kind == "integer" or (isinstance(kind, list) and "integer" in kind)) and not FINITE & set(schema):
        if "exclusiveMinimum" not in schema:
            schema.setdefault("minimum", LEAST_INTEGER)
        if "exclusiveMaximum" not in schema:
            schema.setdefault("maximum", MOST_INTEGER)


def _keep_apart(schema: Schema, exclusive: str, inclusive: str, others: Sequence[str]) -> None:
    """Move an exclusive bound by a millionth of what is allowed, where the compiler would include it.

    It does with a whole number, if the other bound is the same but for its fraction: 1 would be more than 1 and at
    most 1.5.
    """
    bound = schema.get(exclusive)
    if schema.get("type") == "integer" or not is_number(bound) or bound != int(bound):
        return
    for other in others:
        beyond = schema.get(other)
        if is_number(beyond) and beyond != bound and int(beyond) == bound:
            nearest = bound + (beyond - bound) / 10**6
            known = schema.get(inclusive, nearest)
            del schema[exclusive]
            schema[inclusive] = max(nearest, known) if inclusive == "minimum" else min(nearest, known)
            return


def _is_complete(schema: Schema) -> bool:
    """Whether the properties that an object names are all that it is to have, as far as it says."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or OPEN & set(schema):
        return False
    return not isinstance(required, list) or all(isinstance(name, str) and name in properties for name in required)


def _is_shared(schema: Schema) -> bool:
    return any(name in schema for name in SHARED_WITH)


def referred(root: Schema, reference: object) -> Any:
    """Return what a reference such as `#/$defs/name` points to; None where it is another kind, or points nowhere."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    place: Any = root
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, dict):
            place = place.get(step)
        elif isinstance(place, list) and step.isdecimal() and int(step) < len(place):
            place = place[int(step)]
        else:
            return None
    return place
