"""What of a schema is refused before any native code sees it.

Anything that is too large or too deep, and references to elsewhere. So are the two things that the compiler was seen to
compute for minutes, and with gigabytes, whatever its limits: many patterns for one string, and numbers that are
multiples of much. It runs on a thread that nothing can stop.
"""

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, TypeGuard

from ..chat import InvalidRequest

Schema = dict[str, Any]

MOST_CHARACTERS = 128 * 1024
MOST_DEPTH = 64

# A grammar for multiples of this counts as far, in several MiB. Of decimals the digits count: of 0.25 there are 25.
MOST_MULTIPLE = 10_000
# Not a multiple of 10 so often that it would be less than that without its zeros.
TOO_MUCH = 10**100
# Twelve patterns that one string must match took seconds, sixteen minutes.
MOST_JOINED_PATTERNS = 8
PATTERNS = ("pattern", "format")

# Beside these a reference or alternatives still say all that there is to say.
ANNOTATIONS = {
    *("$anchor", "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description"),
    *("discriminator", "example", "examples", "id", "nullable", "readOnly", "title", "type", "writeOnly"),
}
JOINED_WITH = ("$ref", "anyOf", "oneOf")


def refused(asked_by: str, reason: str) -> InvalidRequest:
    """Return the error for a schema that a field gave."""
    return InvalidRequest(f"{asked_by}: {reason}", param=asked_by)


def check(schema: Schema, asked_by: str) -> None:
    """Raise InvalidRequest for a schema that is too deep, refers to elsewhere, or takes too much to compile."""
    found = objects_in(schema)
    if found is None:
        raise refused(asked_by, f"the schema is nested more than {MOST_DEPTH} levels deep")
    for value in found:
        reference = value.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise refused(asked_by, f"a $ref must point into the schema itself (#/…), not to {reference[:64]!r}")
    _check_products(found, asked_by)


def _check_products(objects: Sequence[Schema], asked_by: str) -> None:
    """Raise InvalidRequest for what multiplies when it is compiled.

    What meets at one place of an answer is not followed through references: where anything is joined, all counts.
    """
    multiples = [_multiple(value["multipleOf"]) for value in objects if "multipleOf" in value]
    joined = any(map(_joins, objects))
    least = min((exponent for _, exponent in multiples), default=0)
    common = 1
    for digits, exponent in multiples if joined else ():
        common = math.lcm(common, digits * 10 ** (exponent - least))
        if common > TOO_MUCH:
            break
    if max([_without_zeros(common), *(digits for digits, _ in multiples)]) > MOST_MULTIPLE:
        together = " of all multipleOf together" if joined else ""
        raise refused(asked_by, f"multipleOf is at most {MOST_MULTIPLE} here, or as many digits{together}")
    patterns = {(name, value[name]) for value in objects for name in PATTERNS if isinstance(value.get(name), str)}
    if joined and len(patterns) > MOST_JOINED_PATTERNS:
        raise refused(
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


def check_names(schema: Schema, asked_by: str) -> None:
    """Raise InvalidRequest where names that come twice would count as two."""
    least, required = schema.get("minProperties"), schema.get("required")
    is_open = schema.get("additionalProperties") is not False or "patternProperties" in schema
    if is_open and is_number(least) and least > 1 + (len(set(map(str, required))) if isinstance(required, list) else 0):
        raise refused(
            asked_by,
            f"minProperties {least} cannot be enforced where properties may have any name; name them in properties, "
            "or in required",
        )


def objects_in(schema: Schema) -> list[Schema] | None:
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


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a JSON value is a number that can be compared."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
