"""Ends of texts: found for what schemas ask, short, and valid."""

import json
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from jsonschema import Draft202012Validator
from llguidance import LLMatcher
from tokenizers import Tokenizer

from osaurus.chat import InvalidRequest
from osaurus.engine import closing
from osaurus.engine.closing import allowed

from .grammar_desk import FORMATS, PATTERNS, GrammarDesk, random_schema

LEAF = {"type": "object", "properties": {"leaf": {"type": "integer"}}, "required": ["leaf"]}
SCHEMAS: list[dict[str, Any]] = [
    {},
    {"type": "string", "minLength": 40},
    {"type": ["string", "null"]},
    {"type": "number", "minimum": 0.001, "maximum": 0.002},
    {"type": "integer", "minimum": 192, "multipleOf": 25},
    {"type": "integer", "exclusiveMaximum": -1234567},
    *(
        {"type": "object", "properties": {"a": number, "b": {"type": "string"}}, "required": ["a", "b"]}
        for number in (
            {"type": "integer", "minimum": 1, "multipleOf": 25},
            {"type": "number", "exclusiveMinimum": 0, "multipleOf": 25},
        )
    ),
    {"enum": ["a long value", ["another", 1], {"x": None}]},
    {"const": {"deep": [[[{"er": "in"}]]]}},
    {"type": "array", "items": {"type": "string", "minLength": 2}, "minItems": 5},
    {"type": "array", "items": {"type": "array", "items": {"type": "string", "format": "uuid"}, "minItems": 2}},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}], "minItems": 2, "items": False},
    {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"const": 1}}, "required": ["b"]}}},
    {"type": "object", "required": ["unknown", "names"]},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1},
    {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "null"}}, "minProperties": 1},
    {
        "type": "object",
        "properties": {"value": {}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["value", "next"],
    },
    {
        "type": "object",
        "properties": {"children": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["children"],
    },
    {"anyOf": [{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, LEAF, {"type": "integer"}]},
    {"allOf": [{"properties": {"a": {"type": "string"}}, "required": ["a"]}, LEAF]},
    *({"type": "string", "pattern": pattern} for pattern in PATTERNS),
    *({"type": "string", "format": name} for name in (*FORMATS, "hostname", "uri")),
]
MOST = 200


@pytest.fixture(scope="module")
def desk(tiny_tokenizer: Tokenizer) -> GrammarDesk:
    return GrammarDesk(tiny_tokenizer)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_there_is_an_end_from_the_beginning(desk: GrammarDesk, schema: dict[str, Any]) -> None:
    _check(desk, schema, [])


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
@pytest.mark.parametrize("seed", range(3))
def test_there_is_an_end_from_anywhere(desk: GrammarDesk, schema: dict[str, Any], seed: int) -> None:
    """Behind up to thirty tokens that were drawn from all that were allowed."""
    rng = Random(seed)
    matcher = desk.compile(schema).begin()
    begun: list[int] = []
    for _ in range(rng.randrange(1, 30)):
        may = [int(token) for token in allowed(matcher).nonzero()[0] if token != desk.end]
        if matcher.is_stopped() or not may:
            break
        begun.append(rng.choice(may))
        matcher.consume_token(begun[-1])
    _check(desk, schema, begun)


def test_there_are_ends_for_nearly_all_random_schemas(desk: GrammarDesk) -> None:
    rng, found, schemas = Random(7), 0, 0
    while schemas < 150:
        schema = random_schema(rng)
        try:
            grammar = desk.compile(schema)
        except InvalidRequest:
            continue
        schemas += 1
        found += grammar.closers.close(grammar.begin(), 256) is not None
    assert found >= 148


def test_no_end_is_longer_than_it_may_be(desk: GrammarDesk) -> None:
    grammar = desk.compile({"type": "array", "items": {"type": "string", "minLength": 2}, "minItems": 5})
    shortest = grammar.closers.close(grammar.begin(), MOST)
    assert shortest is not None
    assert grammar.closers.close(grammar.begin(), len(shortest)) == shortest
    assert grammar.closers.close(grammar.begin(), len(shortest) - 1) is None


def test_a_text_that_may_end_needs_nothing_more(desk: GrammarDesk) -> None:
    grammar = desk.compile({"type": "null"})
    matcher = grammar.begin()
    assert matcher.consume_tokens(desk.tokens("null"))
    assert grammar.closers.close(matcher, 0) == []


def test_what_has_no_end_is_given_up(desk: GrammarDesk) -> None:
    grammar = desk.compile({"type": "string", "minLength": 10**9})
    assert grammar.closers.close(grammar.begin(), 256) is None


def test_the_matcher_is_left_where_it_was(desk: GrammarDesk) -> None:
    grammar = desk.compile({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})
    matcher = grammar.begin()
    before = allowed(matcher).tolist()
    assert grammar.closers.close(matcher, MOST)
    assert allowed(matcher).tolist() == before


def _check(desk: GrammarDesk, schema: dict[str, Any], begun: list[int]) -> None:
    grammar = desk.compile(schema)
    matcher = grammar.begin()
    assert matcher.consume_tokens(begun)
    closing = grammar.closers.close(matcher, MOST)
    text = desk.tokenizer.decode([*begun, *(closing or ())])
    assert closing is not None, text
    assert len(closing) <= MOST
    assert matcher.consume_tokens(closing)
    assert matcher.is_accepting()
    if "\ufffd" not in text:
        checker = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        assert not [error.message for error in checker.iter_errors(json.loads(text))], text


def test_a_long_end_is_found_without_asking_for_each_of_its_tokens(
    desk: GrammarDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def counted(matcher: LLMatcher) -> npt.NDArray[np.bool_]:
        nonlocal asked
        asked += 1
        return allowed(matcher)

    monkeypatch.setattr(closing, "allowed", counted)
    grammar = desk.compile({"type": "string", "minLength": 2000, "maxLength": 2000})
    found = grammar.closers.close(grammar.begin(), 4000)
    assert found is not None
    assert len(json.loads(desk.tokenizer.decode(found))) == 2000
    assert asked < len(found) / 8
