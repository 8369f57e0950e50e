"""Which values texts are, by the schema of an argument."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osaurus.engine.argument_values import ANY, argument_types, takes, value_of

NULL = {"type": "null"}
STRING = {"type": "string"}
INTEGER = {"type": "integer"}
NUMBERS = frozenset({"number", "integer"})


def types(schema: Any, **root: Any) -> frozenset[str]:
    return argument_types({"type": "object", "properties": {"x": schema}, **root}, "x")


def value(text: str, schema: Any) -> Any:
    return value_of(text, types(schema))


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        (STRING, {"string"}),
        ({"type": "number"}, NUMBERS),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"type": ["string", None]}, {"string", "null"}),
        ({"type": "STRING"}, {"string"}),
        ({"type": "any"}, ANY),
        ({}, ANY),
        (True, ANY),
        ({"anyOf": [INTEGER, NULL]}, {"integer", "null"}),
        ({"oneOf": [{"type": "boolean"}, STRING]}, {"boolean", "string"}),
        ({"allOf": [{"type": ["string", "integer"]}, {"type": ["integer", "null"]}]}, {"integer"}),
        ({"type": "number", "allOf": [INTEGER]}, {"integer"}),
        ({"enum": [1, 2, None]}, {"integer", "null"}),
        ({"enum": ["a", "b"], "type": "string"}, {"string"}),
        ({"const": True}, {"boolean"}),
        ({"const": None}, {"null"}),
    ],
)
def test_a_schema_says_which_types_there_may_be(schema: Any, found: frozenset[str]) -> None:
    assert types(schema) == found


def test_references_are_followed() -> None:
    definitions = {"N": {"anyOf": [{"$ref": "#/$defs/I"}, NULL]}, "I": INTEGER}
    assert types({"$ref": "#/$defs/N"}, **{"$defs": definitions}) == {"integer", "null"}
    whole = {"$ref": "#/definitions/F", "definitions": {"F": {"type": "object", "properties": {"x": INTEGER}}}}
    assert argument_types(whole, "x") == {"integer"}


def test_a_reference_to_itself_or_to_nowhere_says_nothing() -> None:
    assert types({"$ref": "#/properties/x"}) == ANY
    assert types({"$ref": "#/nowhere"}) == ANY
    assert argument_types({"$ref": "#"}, "x") == ANY


def test_schemas_that_branch_at_each_of_many_references_take_no_time() -> None:
    # Followed one by one these are 2 to the power of 60.
    definitions: dict[str, Any] = {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(60)}
    assert types({"$ref": "#/$defs/0"}, **{"$defs": {**definitions, "60": INTEGER}}) == {"integer"}


def test_an_argument_that_is_no_property_is_of_the_types_of_the_others() -> None:
    assert argument_types({"properties": {}, "additionalProperties": INTEGER}, "x") == {"integer"}
    assert argument_types({"type": "object"}, "x") == ANY


@pytest.mark.parametrize(
    ("text", "schema", "found"),
    [
        ("1234567890123456789", INTEGER, 1234567890123456789),
        ("5.0", INTEGER, 5),
        (" 5\n", INTEGER, 5),
        ("5", {"anyOf": [INTEGER, NULL]}, 5),
        ("2", {"enum": [1, 2]}, 2),
        ("2.5", {"type": "number"}, 2.5),
        ("true", {"type": ["boolean", "null"]}, True),
        ("False", {"type": "boolean"}, False),
        ("null", {"type": ["boolean", "null"]}, None),
        ("None", {"type": ["integer", "null"]}, None),
        ("[1, 2]", {"type": "array"}, [1, 2]),
        ("['a', 'b']", {"type": "array"}, ["a", "b"]),
        ('{"a": "one\ntwo"}', {"type": "object"}, {"a": "one\ntwo"}),
        ('["a"]', {"anyOf": [STRING, {"type": "array", "items": STRING}]}, ["a"]),
        ('{"a": 1}', {}, {"a": 1}),
        ("null", {"type": ["string", "null"]}, None),
    ],
)
def test_a_text_is_a_value_of_a_type_that_there_may_be(text: str, schema: Any, found: Any) -> None:
    taken = value(text, schema)
    assert (type(taken), taken) == (type(found), found)


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("12345", {"type": ["string", "null"]}),
        ("[1, 2]", {"type": ["string", "null"]}),
        ("true", {"anyOf": [STRING, NULL]}),
        ("null", STRING),
        (" Null ", {"type": ["string", "null"]}),
        ("5", {}),
        ("  a\n", STRING),
        # These fit no type that there may be.
        ("1", {"type": "boolean"}),
        ("yes", {"type": "boolean"}),
        ("2.5", INTEGER),
        ("1_000", INTEGER),
        ("1e999", {"type": "number"}),
        ("NaN", {"type": "number"}),
        ("[1, 2", {"type": "array"}),
        ("null", INTEGER),
        ("9" * 5000, INTEGER),
    ],
)
def test_other_texts_stay_as_they_are(text: str, schema: Any) -> None:
    assert value(text, schema) == text


@given(number=st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_exact(number: float) -> None:
    taken = value(json.dumps(number), {"type": "number"})
    assert (type(taken), taken) == (type(number), number)


def test_a_tool_takes_the_arguments_that_its_schema_has() -> None:
    closed = {"type": "object", "properties": {"x": INTEGER}}
    assert takes(closed, "x")
    assert not takes(closed, "y")
    assert takes({"type": "object"}, "y")
    assert takes({**closed, "additionalProperties": {}}, "y")
    assert takes({**closed, "allOf": [{"properties": {"y": {}}}]}, "y")
