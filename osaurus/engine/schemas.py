"""JSON Schemas from the network, made ready for the grammar compiler.

The difficulty is that they are programs from strangers, and mostly written for something else. Most describe objects
and do not say that there is nothing beside the properties they name; a small model that may go on inventing properties
does so until it is cut off, and leaves JSON that ends in the middle. So such objects are closed: what is written is
valid by the schema as it was, too. Left open are parts of an `allOf` and alternatives beside other properties, whose
neighbours may ask for the properties that they do not name.

What can harm is refused before any native code sees it: by size, by depth, and references to elsewhere. So are the two
things that the compiler was seen to compute for minutes, and with gigabytes, whatever its limits: many patterns for one
string, and numbers that are multiples of much. What cannot be enforced is the compiler's to know.
"""

import json
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, TypeGuard

from attrs import define, field, frozen

from ..chat import InvalidRequest

MOST_CHARACTERS = 128 * 1024
MOST_DEPTH = 64

# A grammar for multiples of this counts as far, in several MiB. Of decimals the digits count: of 0.25 there are 25.
MOST_MULTIPLE = 10_000
# Twelve patterns that one string must match took seconds, sixteen minutes.
MOST_JOINED_PATTERNS = 8
PATTERNS = ("pattern", "format")

# Where schemas stand in a schema: alone, in a list, and by name.
SINGLE = ("items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")
LISTED = ("prefixItems", "items", "anyOf", "oneOf", "allOf")
NAMED = ("properties", "patternProperties", "dependentSchemas")

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

# Beside these a reference or alternatives still say all that there is to say.
ANNOTATIONS = {
    *("$anchor", "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description"),
    *("discriminator", "example", "examples", "id", "nullable", "readOnly", "title", "type", "writeOnly"),
}
JOINED_WITH = ("$ref", "anyOf", "oneOf")

Schema = dict[str, Any]


@frozen(kw_only=True)
class SchemaRule:
    """A grammar's rule for JSON that a schema allows. What is wrong with it is told of the field `asked_by`."""

    schema: dict[str, Any]
    strict: bool
    asked_by: str

    def __attrs_post_init__(self) -> None:
        """Raise InvalidRequest for what the compiler would take and not keep."""
        if self.strict:
            for value in _objects(self.schema) or ():
                _check_names(value, self.asked_by)

    def __str__(self) -> str:
        """Return the rule as llguidance writes it."""
        lenient = {} if self.strict else {"lenient": True, "coerce_one_of": True}
        return "%json " + json.dumps({**self.schema, "x-guidance": {**JSON_STYLE, **lenient}})


def prepared(text: str, asked_by: str) -> Schema:
    """Return a schema, given as JSON text, closed. Raises InvalidRequest, for the field `asked_by`."""
    if len(text) > MOST_CHARACTERS:
        raise _refused(asked_by, f"the schema has {len(text)} characters; there may be {MOST_CHARACTERS}")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refused(asked_by, f"is no JSON that can be read: {error}"[:200]) from error
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise _refused(asked_by, "must be a JSON Schema: an object")
    _check(schema, asked_by)
    # Options of the compiler are not for clients.
    schema.pop("x-guidance", None)
    _Closing().close(schema)
    return schema


def prepared_for_arguments(text: str, asked_by: str) -> Schema:
    """Return the schema of a tool's arguments, which are an object. Raises InvalidRequest."""
    schema = prepared(text, asked_by)
    if schema.setdefault("type", "object") != "object":
        raise _refused(asked_by, f"must describe an object, not {json.dumps(schema['type'])[:64]}")
    return schema


def _refused(asked_by: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{asked_by}: {reason}", param=asked_by)


def _check(schema: Schema, asked_by: str) -> None:
    """Raise InvalidRequest for a schema that is too deep, refers to elsewhere, or takes too much to compile."""
    objects = _objects(schema)
    if objects is None:
        raise _refused(asked_by, f"the schema is nested more than {MOST_DEPTH} levels deep")
    for value in objects:
        reference = value.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise _refused(asked_by, f"a $ref must point into the schema itself (#/…), not to {reference[:64]!r}")
    _check_products(objects, asked_by)


def _check_products(objects: Sequence[Schema], asked_by: str) -> None:
    """Raise InvalidRequest for what multiplies when it is compiled.

    What meets at one place of an answer is not followed through references: where anything is joined, all counts.
    """
    multiples = [_multiple(value["multipleOf"]) for value in objects if "multipleOf" in value]
    joined = any(map(_joins, objects))
    least = min((exponent for _, exponent in multiples), default=0)
    common = math.lcm(*(digits * 10 ** (exponent - least) for digits, exponent in multiples)) if joined else 0
    if max([_without_zeros(common), *(digits for digits, _ in multiples)]) > MOST_MULTIPLE:
        together = " of all multipleOf together" if joined else ""
        raise _refused(asked_by, f"multipleOf is at most {MOST_MULTIPLE} here, or as many digits{together}")
    patterns = {(name, value[name]) for value in objects for name in PATTERNS if isinstance(value.get(name), str)}
    if joined and len(patterns) > MOST_JOINED_PATTERNS:
        raise _refused(
            asked_by,
            f"there may be {MOST_JOINED_PATTERNS} different patterns and formats where schemas are joined by allOf, or "
            f"by a $ref, anyOf or oneOf with something beside it; this has {len(patterns)}",
        )


def _joins(schema: Schema) -> bool:
    """Return whether more than one thing is said about the same value."""
    joins = [name for name in JOINED_WITH if name in schema]
    return "allOf" in schema or len(joins) > 1 or (bool(joins) and bool(set(schema) - ANNOTATIONS - set(joins)))


def _multiple(value: object) -> tuple[int, int]:
    """Return a number's digits without the zeros at their end, and the power of ten that they are multiplied with.

    Of what is no such number, or so large or small that the compiler refuses it, 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-20 < value < 1e20:
        return 1, 0
    _, digits, exponent = Decimal(str(value)).normalize().as_tuple()
    assert isinstance(exponent, int), "it is finite"
    return int("".join(map(str, digits))), exponent


def _without_zeros(number: int) -> int:
    while number and number % 10 == 0:
        number //= 10
    return number


def _check_names(schema: Schema, asked_by: str) -> None:
    """Raise InvalidRequest where names that come twice would count as two."""
    least, required = schema.get("minProperties"), schema.get("required")
    is_open = schema.get("additionalProperties") is not False or "patternProperties" in schema
    if (
        is_open
        and _is_number(least)
        and least > 1 + (len(set(map(str, required))) if isinstance(required, list) else 0)
    ):
        raise _refused(
            asked_by,
            f"minProperties {least} cannot be enforced where properties may have any name; name them in properties, "
            "or in required",
        )


def _objects(schema: Schema) -> list[Schema] | None:
    """Return all objects in a schema, it included; None if they are too deep."""
    level: list[Any] = [schema]
    objects: list[Schema] = []
    for _ in range(MOST_DEPTH):
        objects += [value for value in level if isinstance(value, dict)]
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return objects
    return None


def _inside(value: object) -> list[Any]:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [member for member in members if isinstance(member, (dict, list))]


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
            if alone and "properties" in schema and not OPEN & set(schema):
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
        target = _referred(root, schema.get("$ref"))
        if target is not None:
            beside = _is_shared({name: value for name, value in schema.items() if name != "$ref"})
            yield target, alone and not beside


def _bound(schema: Schema) -> None:
    """Bound numbers to those that every client reads exactly."""
    for keyword, (least, most) in NUMBERS.items():
        bound = schema.get(keyword)
        if _is_number(bound):
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
    if schema.get("type") == "integer" or not _is_number(bound) or bound != int(bound):
        return
    for other in others:
        beyond = schema.get(other)
        if _is_number(beyond) and beyond != bound and int(beyond) == bound:
            nearest = bound + (beyond - bound) / 10**6
            known = schema.get(inclusive, nearest)
            del schema[exclusive]
            schema[inclusive] = max(nearest, known) if inclusive == "minimum" else min(nearest, known)
            return


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_shared(schema: Schema) -> bool:
    return any(name in schema for name in SHARED_WITH)


def _referred(root: Schema, reference: object) -> Any:
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
