"""Schemas made ready: what is closed, bounded, taken out and refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from osaurus.chat import InvalidRequest
from osaurus.engine.schema_limits import (
    MOST_CHARACTERS,
    MOST_DEPTH,
    MOST_JOINED_PATTERNS,
    MOST_MULTIPLE,
    Schema,
)
from osaurus.engine.schemas import LEAST_INTEGER, MOST_INTEGER, SchemaRule, prepared, prepared_for_arguments

from .grammar_desk import random_schema

AB = {"type": "object", "properties": {"a": {"type": "string"}}}
CLOSED = {**AB, "additionalProperties": False}


def ready(schema: object) -> Schema:
    return prepared(json.dumps(schema), True, "format")


def refusal(schema: object) -> str:
    with pytest.raises(InvalidRequest) as caught:
        ready(schema)
    assert caught.value.param == "format"
    return str(caught.value)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


# Closing.


def test_an_object_with_properties_is_closed() -> None:
    assert ready(AB) == CLOSED


def test_an_object_that_must_have_more_than_it_names_stays_open() -> None:
    schema = {"properties": {"a": {}}, "required": ["a", "b"]}
    assert "additionalProperties" not in prepared(json.dumps(schema), True, "format")


def test_an_object_without_properties_stays_open() -> None:
    assert ready({"type": "object"}) == {"type": "object"}


@pytest.mark.parametrize(
    "more",
    [
        {"additionalProperties": True},
        {"additionalProperties": {"type": "null"}},
        {"patternProperties": {"^x": {}}},
        {"unevaluatedProperties": False},
        {"if": {"required": ["a"]}},
        {"dependentSchemas": {"a": {"required": ["b"]}}},
    ],
)
def test_an_object_that_says_itself_what_else_there_may_be_stays_as_it_is(more: dict[str, Any]) -> None:
    assert ready({**AB, **more}) == {**AB, **more}


@pytest.mark.parametrize("keyword", ["items", "additionalProperties", "contains", "propertyNames"])
def test_objects_within_are_closed(keyword: str) -> None:
    assert ready({keyword: AB}) == {keyword: CLOSED}


@pytest.mark.parametrize("keyword", ["properties", "patternProperties", "dependentSchemas"])
def test_objects_by_name_are_closed(keyword: str) -> None:
    assert ready({keyword: {"x": AB}})[keyword] == {"x": CLOSED}


def test_objects_in_tuples_are_closed() -> None:
    assert ready({"prefixItems": [AB, AB]}) == {"prefixItems": [CLOSED, CLOSED]}


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf"])
def test_alternatives_that_are_all_that_is_said_are_closed(keyword: str) -> None:
    assert ready({keyword: [AB, {"type": "null"}]}) == {keyword: [CLOSED, {"type": "null"}]}


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf"])
@pytest.mark.parametrize("beside", [{"properties": {"b": {}}}, {"required": ["b"]}, {"$ref": "#/$defs/b"}])
def test_alternatives_beside_other_properties_stay_open(keyword: str, beside: dict[str, Any]) -> None:
    assert ready({keyword: [AB], **beside})[keyword] == [AB]


def test_parts_of_an_all_of_stay_open_but_what_is_in_their_properties_is_closed() -> None:
    assert ready({"allOf": [AB, {"properties": {"b": AB}}]}) == {"allOf": [AB, {"properties": {"b": CLOSED}}]}


@pytest.mark.parametrize("keyword", ["not", "if", "then", "else"])
def test_what_an_object_is_not_and_conditions_stay_open(keyword: str) -> None:
    assert ready({keyword: AB}) == {keyword: AB}


def test_a_definition_is_closed_where_all_that_refers_to_it_stands_alone() -> None:
    assert ready({"$ref": "#/$defs/x", "$defs": {"x": AB}})["$defs"] == {"x": CLOSED}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"x": {"$ref": "#/$defs/x"}, "y": {"allOf": [{"$ref": "#/$defs/x"}]}}},
        {"properties": {"x": {"$ref": "#/$defs/x"}, "y": {"$ref": "#/$defs/x", "required": ["b"]}}},
        {"properties": {"y": {"allOf": [{"$ref": "#/$defs/via"}]}, "x": {"$ref": "#/$defs/x"}}},
    ],
)
def test_a_definition_that_is_a_part_somewhere_stays_open(schema: dict[str, Any]) -> None:
    made = ready({**schema, "$defs": {"x": AB, "via": {"$ref": "#/$defs/x"}}})
    assert made["$defs"]["x"] == AB


def test_a_definition_that_nothing_refers_to_is_left_alone() -> None:
    assert ready({"$defs": {"x": AB}}) == {"$defs": {"x": AB}}


@pytest.mark.parametrize(
    ("reference", "name"), [("#/$defs/a~1b", "a/b"), ("#/$defs/a~0b", "a~b"), ("#/$defs/a~01b", "a~1b")]
)
def test_pointers_are_unescaped(reference: str, name: str) -> None:
    assert ready({"$ref": reference, "$defs": {name: AB}})["$defs"] == {name: CLOSED}


def test_pointers_count_in_lists() -> None:
    assert ready({"$ref": "#/$defs/x/1", "$defs": {"x": [AB, AB]}})["$defs"] == {"x": [AB, CLOSED]}


@pytest.mark.parametrize("reference", ["#/$defs/nothing", "#/$defs/x/9", "#anchor", "#/$defs/x/-1", 5])
def test_references_to_nothing_are_left_to_the_compiler(reference: object) -> None:
    schema = {"$ref": reference, "$defs": {"x": [AB]}}
    assert ready(schema) == schema


def test_references_in_circles_come_to_an_end() -> None:
    tree = {"type": "object", "properties": {"children": {"items": {"$ref": "#"}}}}
    assert ready(tree)["additionalProperties"] is False


def test_names_of_properties_are_no_keywords() -> None:
    schema = {"properties": {"properties": {"type": "string"}, "type": {"enum": ["integer"]}}}
    assert ready(schema) == {**schema, "additionalProperties": False}


def random_schemas() -> st.SearchStrategy[Any]:
    return st.randoms(use_true_random=False).map(random_schema)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-2000, 2000) | st.text(max_size=4) | st.just("red"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "name", "next", "value", "x", "p_a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(random_schemas(), st.lists(VALUES, min_size=10, max_size=10))
def test_whatever_is_valid_when_a_schema_is_ready_was_before(schema: Any, values: list[Any]) -> None:
    before, after = Draft202012Validator(schema), Draft202012Validator(ready(schema))
    for value in values:
        assert before.is_valid(value) or not after.is_valid(value)


# Bounds.


def test_integers_are_those_that_every_client_reads() -> None:
    assert ready({"type": "integer"}) == {"type": "integer", "minimum": LEAST_INTEGER, "maximum": MOST_INTEGER}
    assert ready({"type": ["null", "integer"]})["maximum"] == 2**53 - 1


def test_bounds_beyond_are_moved_there() -> None:
    assert ready({"minimum": -(10**30), "maximum": 10**30}) == {"minimum": LEAST_INTEGER, "maximum": MOST_INTEGER}
    assert ready({"exclusiveMaximum": 1e300}) == {"exclusiveMaximum": MOST_INTEGER}


def test_bounds_that_leave_nothing_within_stay() -> None:
    assert ready({"minimum": 10**30}) == {"minimum": 10**30}


def test_bounds_that_were_given_stay() -> None:
    assert ready({"type": "integer", "minimum": 1, "exclusiveMaximum": 9}) == {
        "type": "integer",
        "minimum": 1,
        "exclusiveMaximum": 9,
    }


@pytest.mark.parametrize("finite", [{"enum": [1, 10**20]}, {"const": 10**20}, {"multipleOf": 5}])
def test_integers_that_are_told_otherwise_have_no_bounds(finite: dict[str, Any]) -> None:
    assert ready({"type": "integer", **finite}) == {"type": "integer", **finite}


def test_an_exclusive_bound_that_the_compiler_would_include_is_moved() -> None:
    made = ready({"type": "number", "exclusiveMinimum": 1, "maximum": 1.5})
    assert "exclusiveMinimum" not in made
    assert 1 < made["minimum"] < 1.00001
    made = ready({"type": "number", "minimum": -1.5, "exclusiveMaximum": -1})
    assert -1.00001 < made["maximum"] < -1


def test_that_items_need_not_be_unique_is_not_said() -> None:
    assert ready({"uniqueItems": False}) == {}
    assert ready({"uniqueItems": True}) == {"uniqueItems": True}


# Options.


def test_options_of_the_compiler_are_not_for_clients() -> None:
    rule = SchemaRule(schema=ready({"x-guidance": {"lenient": True}, "type": "null"}), strict=True, asked_by="format")
    assert "lenient" not in str(rule)


def test_only_what_need_not_be_enforced_in_full_is_lenient() -> None:
    assert '"lenient": true' in str(SchemaRule(schema={}, strict=False, asked_by="format"))


def test_a_schema_that_allows_everything_may_be_true() -> None:
    assert prepared("true", True, "format") == {}


# Refusals.


@pytest.mark.parametrize("text", ["false", "null", "7", '"object"', "[]"])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="an object"):
        prepared(text, True, "format")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"minimum": 1' + "0" * 5000 + "}"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no JSON that can be read"):
        prepared(text, True, "format")


def test_a_schema_has_so_many_characters_at_most() -> None:
    frame = len('{"const": ""}')
    assert ready({"const": "x" * (MOST_CHARACTERS - frame)})
    assert "there may be" in refusal({"const": "x" * (MOST_CHARACTERS - frame + 1)})


def test_a_schema_is_so_deep_at_most() -> None:
    assert ready(nested(MOST_DEPTH))
    assert "levels deep" in refusal(nested(MOST_DEPTH + 1))


@pytest.mark.parametrize("reference", ["http://169.254.169.254/latest", "file:///etc/passwd", "other.json#/x", ""])
def test_references_to_elsewhere_are_refused(reference: str) -> None:
    assert "must point into the schema itself" in refusal({"properties": {"a": {"items": {"$ref": reference}}}})


def test_multiples_are_of_little() -> None:
    assert ready({"multipleOf": MOST_MULTIPLE * 100})
    assert ready({"multipleOf": 0.001})
    assert "multipleOf is at most" in refusal({"multipleOf": MOST_MULTIPLE + 1})
    assert "multipleOf is at most" in refusal({"items": {"multipleOf": 1.00001}})


def test_multiples_that_are_joined_multiply() -> None:
    parts = [{"multipleOf": 101}, {"multipleOf": 103}]
    assert ready({"prefixItems": parts})
    assert "together" in refusal({"allOf": parts})


@pytest.mark.parametrize("value", [0, -3, "2", True, 1e300])
def test_multiples_that_are_no_such_number_are_left_to_the_compiler(value: object) -> None:
    assert ready({"multipleOf": value}) == {"multipleOf": value}


@pytest.mark.parametrize(
    "joins",
    [{"allOf": []}, {"$ref": "#/x", "minLength": 1}, {"anyOf": [], "pattern": "a"}, {"oneOf": [], "anyOf": []}],
)
def test_few_patterns_are_joined(joins: dict[str, Any]) -> None:
    patterns = [{"pattern": f"a{number}"} for number in range(MOST_JOINED_PATTERNS + 1)]
    assert ready({"prefixItems": patterns})
    assert "different patterns" in refusal({"prefixItems": patterns, "items": joins})


def test_a_reference_with_words_about_it_joins_nothing() -> None:
    patterns = [{"pattern": f"a{number}"} for number in range(MOST_JOINED_PATTERNS + 1)]
    assert ready({"$defs": {"x": {}}, "prefixItems": patterns, "items": {"$ref": "#/$defs/x", "description": "…"}})


@pytest.mark.parametrize(
    "schema",
    [{"minProperties": 2}, {"patternProperties": {"^x": {}}, "additionalProperties": False, "minProperties": 2}],
)
def test_names_that_may_come_twice_are_not_counted(schema: Schema) -> None:
    """A grammar does not remember names that no schema names: two of the same are one property."""
    with pytest.raises(InvalidRequest, match="minProperties"):
        SchemaRule(schema=schema, strict=True, asked_by="format")
    SchemaRule(schema=schema, strict=False, asked_by="format")


@pytest.mark.parametrize("more", [{"required": ["a"]}, {"properties": {}, "additionalProperties": False}])
def test_names_that_are_known_are_counted(more: dict[str, Any]) -> None:
    SchemaRule(schema=ready({"minProperties": 2, **more}), strict=True, asked_by="format")


# Arguments.


def test_arguments_are_an_object() -> None:
    assert prepared_for_arguments("{}", True, "tools[0]") == {"type": "object"}
    with pytest.raises(InvalidRequest, match="must describe an object"):
        prepared_for_arguments('{"type": "array"}', False, "tools[0]")
