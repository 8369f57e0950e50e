"""Each keyword of JSON Schema: what is enforced is, to the letter, and what is not is refused.

In the manner of the public JSON Schema Test Suite (draft 2020-12), which no registry package ships: a schema, what is
valid by it and what is not, each checked by `jsonschema` as well.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer

from osaurus.chat import InvalidRequest

from .grammar_desk import GrammarDesk, Schema

Case = tuple[Schema, list[Any], list[Any]]

AB = {"a": {"type": "integer"}, "b": {"type": "string"}}
NODE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["value"],
    "additionalProperties": False,
}

ENFORCED: dict[str, list[Case]] = {
    "type": [
        ({"type": "integer"}, [0, -12, 12345], [1.5, "1", True, None, [], {}]),
        ({"type": "number"}, [0, 1.5, -0.25, 1e300], ["1", True, None]),
        ({"type": "string"}, ["", "größe", 'a "b" \\ \n', "🦕"], [1, None, ["a"]]),
        ({"type": "object"}, [{}, {"x": [1, {"y": None}]}], [[], "{}", None]),
        ({"type": "array"}, [[], [1, "a", None]], [{}, "[]"]),
        ({"type": "boolean"}, [True, False], [0, "true", None]),
        ({"type": "null"}, [None], [0, "", False, "null"]),
        ({"type": ["string", "null"]}, ["a", None], [1, [None]]),
        ({}, [1, "a", None, [1], {"a": {}}, True], []),
    ],
    "enum": [({"enum": ["red", 6, None, [1], {"a": 1}]}, ["red", 6, None, [1], {"a": 1}], ["re", 7, [], {"a": 2}])],
    "const": [
        ({"const": {"a": [1, "b"]}}, [{"a": [1, "b"]}], [{"a": [1]}, {}, "a"]),
        ({"const": "é"}, ["é"], ["e"]),
        ({"const": False}, [False], [0, None]),
    ],
    "properties": [
        (
            {"type": "object", "properties": AB, "additionalProperties": False},
            [{}, {"a": 1}, {"a": 1, "b": "x"}],
            [{"a": "x"}, {"a": 1, "b": 2}, {"c": 1}],
        ),
        ({"type": "object", "properties": {'q"t': {"const": 1}}}, [{'q"t': 1}], [{'q"t': 2}]),
    ],
    "required": [
        ({"type": "object", "properties": AB, "required": ["b"]}, [{"b": ""}, {"a": 1, "b": ""}], [{}, {"a": 1}]),
        ({"type": "object", "required": ["x"]}, [{"x": None}], [{}, {"y": 1}]),
    ],
    "additionalProperties": [
        ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"x": 1, "y": 2}], [{"x": "1"}]),
        (
            {"type": "object", "properties": AB, "additionalProperties": {"type": "null"}},
            [{"a": 1, "z": None}],
            [{"a": None}, {"z": 1}],
        ),
    ],
    "patternProperties": [
        (
            {"type": "object", "patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False},
            [{"n_a": 1}, {"n_": 1, "n_b": 2}, {}],
            [{"n_a": "1"}, {"x": 1}],
        )
    ],
    "minProperties": [
        ({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1}, [{"a": 1}], [{}])
    ],
    "maxProperties": [
        (
            {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 1},
            [{}, {"a": 1}],
            [{"a": 1, "b": 2}],
        )
    ],
    "items": [
        ({"type": "array", "items": {"type": "integer"}}, [[], [1, 2, 3]], [["a"], [1, None]]),
        ({"type": "array", "prefixItems": [{"const": 1}], "items": False}, [[1], []], [[1, 2], [2]]),
    ],
    "prefixItems": [
        (
            {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
            [[1, "a"], [1], [1, "a", None]],
            [["a"], [1, 2]],
        )
    ],
    "minItems": [({"type": "array", "items": {"const": 1}, "minItems": 2}, [[1, 1], [1, 1, 1]], [[], [1]])],
    "maxItems": [({"type": "array", "items": {"const": 1}, "maxItems": 2}, [[], [1, 1]], [[1, 1, 1]])],
    "minLength": [({"type": "string", "minLength": 2}, ["ab", "éé", "🦕🦕"], ["", "a", "🦕"])],
    "maxLength": [({"type": "string", "maxLength": 2}, ["", "ab", "🦕🦕"], ["abc"])],
    "pattern": [
        ({"type": "string", "pattern": "^a+$"}, ["a", "aaa"], ["", "b", "ab"]),
        ({"type": "string", "pattern": "a+"}, ["a", "xaax"], ["", "xyz"]),
        ({"type": "string", "pattern": "^(x|yy)[0-9]{2}\\.$"}, ["x12.", "yy00."], ["x1.", "y12.", "x12a"]),
    ],
    "format": [
        ({"type": "string", "format": "date"}, ["2026-02-28", "2024-02-29"], ["2026-02-30", "2026-2-3", "today"]),
        ({"type": "string", "format": "ipv4"}, ["127.0.0.1"], ["256.0.0.1", "1.2.3", "a.b.c.d"]),
        ({"type": "string", "format": "uuid"}, ["2eb8aa08-aa98-11ea-b4aa-73b441d16380"], ["2eb8aa08", "x" * 36]),
        ({"type": "string", "format": "email"}, ["joe@example.com"], ["joe", "example.com"]),
    ],
    "minimum": [
        ({"type": "integer", "minimum": 5}, [5, 6, 1000], [4, 0, -5]),
        ({"type": "number", "minimum": -1.5}, [-1.5, -1.25, 0, 3.5], [-1.51, -2, -10]),
    ],
    "maximum": [
        ({"type": "integer", "maximum": 5}, [5, 0, -1000], [6, 50]),
        ({"type": "number", "maximum": 0.5}, [0.5, 0.25, -3], [0.51, 1, 5]),
    ],
    "exclusiveMinimum": [
        ({"type": "integer", "exclusiveMinimum": 5}, [6, 100], [5, 4]),
        ({"type": "number", "exclusiveMinimum": 1, "maximum": 1.5}, [1.25, 1.5], [1, 1.51]),
    ],
    "exclusiveMaximum": [
        ({"type": "integer", "exclusiveMaximum": 5}, [4, -7], [5, 6]),
        ({"type": "number", "exclusiveMaximum": 0, "minimum": -0.5}, [-0.5, -0.25], [0, -0.75]),
    ],
    "multipleOf": [
        ({"type": "integer", "multipleOf": 7}, [0, 7, -14, 700], [1, 8]),
        ({"type": "number", "multipleOf": 0.25}, [0.25, 1.75], [0.3, 1.1]),
    ],
    "anyOf": [({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]}, [1, "a"], ["ab", None])],
    "oneOf": [({"oneOf": [{"type": "integer"}, {"type": "string"}]}, [1, "a"], [None, 1.5])],
    "allOf": [
        ({"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 4}]}, [2, 4], [1, 5, 3.5]),
        (
            {"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"type": "object", "required": ["b"]}]},
            [{"a": 1, "b": 2}],
            [{"a": 1}, {"a": 2, "b": 2}],
        ),
    ],
    "$ref": [
        (
            NODE,
            [{"value": 1}, {"value": 1, "children": [{"value": 2, "children": []}]}],
            [{"value": 1, "children": [1]}],
        ),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"enum": [1, 2]}}}, [1, 2], [3]),
        ({"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"type": "null"}}}, [None], [0]),
        ({"$ref": "#x", "$defs": {"y": {"$anchor": "x", "const": 1}}}, [1], [2]),
    ],
}

# What a strict schema may not say, each with a schema that says it.
REFUSED: dict[str, Schema] = {
    "not": {"not": {"type": "null"}},
    "if": {"if": {"type": "integer"}, "then": {"minimum": 2}},
    "contains": {"type": "array", "contains": {"const": 1}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "propertyNames": {"type": "object", "propertyNames": {"maxLength": 2}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "unevaluatedItems": {"type": "array", "unevaluatedItems": False},
    "$dynamicRef": {"$dynamicRef": "#x"},
    "$dynamicAnchor": {"$dynamicAnchor": "x"},
    "$recursiveRef": {"$recursiveRef": "#"},
    "then": {"then": {"minimum": 2}},
    "else": {"else": {"minimum": 2}},
    "minContains": {"type": "array", "minContains": 1},
    "maxContains": {"type": "array", "maxContains": 1},
    "dependencies": {"type": "object", "dependencies": {"a": ["b"]}},
}

# Valid by a schema as it was written, and not written: closing narrows.
NARROWED: list[tuple[Schema, Any]] = [
    # Objects with properties have no others.
    ({"type": "object", "properties": AB}, {"c": 1}),
    # Integers are those that every client reads, and have no fraction.
    ({"type": "integer"}, 2**53),
    ({"type": "integer"}, 1.0),
    # Multiples have as many decimals as what they are multiples of: 1.50.
    ({"type": "number", "multipleOf": 0.25}, 1.5),
    # Properties come in the order of the schema.
    ({"type": "object", "properties": AB}, {"b": "x", "a": 1}),
]

NAMING = {"$defs", "definitions", "$anchor", "$id", "additionalItems"}

IGNORED: dict[str, Any] = {
    **dict.fromkeys(("title", "description", "$comment", "contentEncoding", "contentMediaType"), "words"),
    **dict.fromkeys(("deprecated", "readOnly", "writeOnly", "nullable"), False),
    "default": None,
    "examples": [None],
    "contentSchema": {},
    "discriminator": {"propertyName": "kind"},
}

# A text of each.
FORMATS = {
    "date-time": "2026-11-23T23:15:00Z",
    "date": "2026-11-23",
    "time": "23:15:00Z",
    "duration": "P1DT2H",
    "email": "joe@example.com",
    "hostname": "www.example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.com/a?b=c#d",
    "uuid": "2eb8aa08-aa98-11ea-b4aa-73b441d16380",
}
UNKNOWN_FORMATS = [
    *("idn-email", "idn-hostname", "uri-reference", "uri-template", "iri", "iri-reference"),
    *("json-pointer", "relative-json-pointer", "regex"),
]

PAGE = Path(__file__).parent.parent / "docs" / "function-calling.md"


@pytest.fixture(scope="module")
def desk(tiny_tokenizer: Tokenizer) -> GrammarDesk:
    return GrammarDesk(tiny_tokenizer)


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"), [pytest.param(*case, id=name) for name, cases in ENFORCED.items() for case in cases]
)
def test_what_is_valid_may_be_written_and_nothing_else(
    desk: GrammarDesk, schema: Schema, valid: list[Any], invalid: list[Any]
) -> None:
    grammar = desk.compile(schema)
    checker = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    for value in valid:
        assert checker.is_valid(value), value
        assert desk.accepts(grammar, value), value
    for value in invalid:
        assert not checker.is_valid(value), value
        assert not desk.accepts(grammar, value), value


@pytest.mark.parametrize(("schema", "value"), NARROWED)
def test_what_closing_leaves_out_is_valid_and_not_written(desk: GrammarDesk, schema: Schema, value: Any) -> None:
    assert Draft202012Validator(schema).is_valid(value)
    assert not desk.accepts(desk.compile(schema), value)


@pytest.mark.parametrize("keyword", REFUSED)
def test_what_cannot_be_enforced_is_refused_if_strict(desk: GrammarDesk, keyword: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(keyword)):
        desk.compile(REFUSED[keyword])
    desk.compile(REFUSED[keyword], strict=False)


def test_alternatives_of_which_one_must_be_are_refused_unless_they_exclude_each_other(desk: GrammarDesk) -> None:
    schema = {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 3}]}
    with pytest.raises(InvalidRequest, match="oneOf"):
        desk.compile(schema)
    assert desk.accepts(desk.compile(schema, strict=False), 2)


@pytest.mark.parametrize("keyword", IGNORED)
def test_words_about_a_schema_change_nothing(desk: GrammarDesk, keyword: str) -> None:
    assert desk.accepts(desk.compile({"type": "null", keyword: IGNORED[keyword]}), None)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_that_are_known_are_enforced(desk: GrammarDesk, name: str) -> None:
    grammar = desk.compile({"type": "string", "format": name})
    assert desk.accepts(grammar, FORMATS[name])
    assert not desk.accepts(grammar, "\u00df ")


@pytest.mark.parametrize("name", UNKNOWN_FORMATS)
def test_formats_that_are_not_known_are_refused_if_strict(desk: GrammarDesk, name: str) -> None:
    with pytest.raises(InvalidRequest, match="format"):
        desk.compile({"type": "string", "format": name})
    assert desk.accepts(desk.compile({"type": "string", "format": name}, strict=False), "anything")


def test_the_page_says_of_each_keyword_what_is_so() -> None:
    said = _table("| keyword |")
    # A oneOf is both; what a definition is called has no effect of its own.
    assert {name for name, what in said.items() if what == "enforced"} == (ENFORCED.keys() | NAMING) - {
        "oneOf",
        "format",
    }
    assert {name for name, what in said.items() if what == "refused if strict"} == REFUSED.keys()
    assert {name for name, what in said.items() if what == "ignored"} == IGNORED.keys()
    assert said["oneOf"].startswith("enforced, or refused if strict")


def test_the_page_says_of_each_format_what_is_so() -> None:
    said = _table("| `format` |")
    assert {name for name, what in said.items() if what == "enforced"} == FORMATS.keys()
    assert {name for name, what in said.items() if what == "refused if strict"} == set(UNKNOWN_FORMATS)


def _table(head: str) -> dict[str, str]:
    """What the page's table with this head says of each name in its first column."""
    rows = PAGE.read_text("utf-8").partition(f"\n{head}")[2].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return {name: what.strip(" |") for names, what in cells for name in re.findall(r"`([^`]+)`", names)}
