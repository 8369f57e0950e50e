"""What clients write into schemas that is none, and what is understood by it."""

import json
from typing import Any

import pytest
from tokenizers import Tokenizer

from osaurus.chat import InvalidRequest
from osaurus.engine.loose_schemas import as_meant, patterns_in, without_nulls, without_patterns
from osaurus.engine.schemas import prepared, prepared_for_arguments

from .grammar_desk import GrammarDesk

# Zod's, of an address.
LOOKING_AHEAD = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"


def meant(schema: dict[str, Any]) -> dict[str, Any]:
    as_meant(schema)
    return schema


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("schema", "left"),
    [
        # As Ollama's own types are written by Go.
        ({"type": "object", "properties": None, "required": None}, {"type": "object"}),
        ({"items": {"enum": None, "type": "string"}}, {"items": {"type": "string"}}),
        ({"$defs": {"a": {"pattern": None}, "b": None}}, {"$defs": {"a": {}}}),
        ({"anyOf": [{"minLength": None}, {"type": "null"}]}, {"anyOf": [{}, {"type": "null"}]}),
    ],
)
def test_null_means_absent(schema: dict[str, Any], left: dict[str, Any], strict: bool) -> None:
    assert prepared(json.dumps(schema), strict, "format") == left


@pytest.mark.parametrize("schema", [{"const": None}, {"enum": [None, 1]}, {"default": None, "type": "null"}])
def test_null_is_a_value_where_values_stand(schema: dict[str, Any]) -> None:
    before = json.dumps(schema)
    without_nulls(schema)
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    ("kind", "understood"),
    [
        ("string", "string"),
        ("STRING", "string"),
        (["object"], "object"),
        (["String", "null"], ["string", "null"]),
        ("any", None),
        ("", None),
        (["string", "any"], None),
        (["string", None], ["string", "null"]),
        (["STRING", "string"], "string"),
        (["string", 7], None),
        ([], None),
        (7, 7),
    ],
)
def test_types_are_understood(kind: object, understood: object) -> None:
    assert meant({"properties": {"a": {"type": kind}}})["properties"]["a"].get("type") == understood


def test_which_json_schema_it_is_makes_no_difference() -> None:
    assert meant({"$schema": "http://127.0.0.1:1/mine", "type": "object"}) == {"type": "object"}


@pytest.mark.parametrize("kind", ["", "any", "OBJECT", ["object"], None])
def test_arguments_are_an_object_whatever_is_said(kind: object) -> None:
    assert prepared_for_arguments(json.dumps({"type": kind, "properties": None}), False, "x")["type"] == "object"


@pytest.mark.parametrize("kind", ["", "any", "OBJECT"])
def test_what_is_strict_is_taken_at_its_word(kind: str) -> None:
    with pytest.raises(InvalidRequest, match="must describe an object"):
        prepared_for_arguments(json.dumps({"type": kind}), True, "x")


def test_patterns_are_found_where_strings_are_described() -> None:
    schema = {
        "pattern": "a",
        "properties": {"pattern": {"pattern": "b"}, "x": {"anyOf": [{"items": {"pattern": "c"}}]}},
        "const": {"pattern": "d"},
    }
    assert patterns_in(schema) == {"a", "b", "c"}
    without_patterns(schema, {"b", "c", "d"})
    assert patterns_in(schema) == {"a"}
    assert schema["const"] == {"pattern": "d"}


def test_a_pattern_that_no_grammar_can_hold_is_left_out_and_the_rest_is_kept(tiny_tokenizer: Tokenizer) -> None:
    desk = GrammarDesk(tiny_tokenizer)
    address = {"type": "string", "format": "email", "pattern": LOOKING_AHEAD}
    schema = {"type": "object", "properties": {"to": address, "id": {"type": "string", "pattern": "^[a-c]+$"}}}
    with pytest.raises(InvalidRequest, match="look-around"):
        desk.compile(schema)
    for _ in range(2):
        grammar = desk.compile(schema, strict=False)
        assert desk.accepts(grammar, {"to": "me@home.org", "id": "abc"})
        assert not desk.accepts(grammar, {"to": "nobody", "id": "abc"})
        assert not desk.accepts(grammar, {"to": "me@home.org", "id": "xyz"})
