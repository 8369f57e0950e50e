"""Rows held to grammars: what may come, what must, and an end in time."""

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher
from tokenizers import Tokenizer

from osaurus.engine import constraint as module
from osaurus.engine.closing import Closers
from osaurus.engine.constraint import CLOSING_WINDOW, Constraint, ConstraintFailed
from osaurus.engine.grammars import Grammar, Grammars
from osaurus.engine.schemas import SchemaRule, prepared

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "age": {"type": "integer"},
    },
    "required": ["name", "age"],
}
END = 2


@pytest.fixture(scope="module")
def compiled(tiny_tokenizer: Tokenizer) -> Callable[[dict[str, Any]], Grammar]:
    grammars = Grammars.of(tiny_tokenizer.to_str(), tiny_tokenizer.get_vocab_size(), [END], {})

    def compile_(schema: dict[str, Any]) -> Grammar:
        rule = SchemaRule(schema=prepared(json.dumps(schema), True, "format"), strict=True, asked_by="format")
        return grammars.compile(["start: schema_0"], [rule])

    return compile_


def tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def write(held: Constraint, room: int, choose: Callable[[list[int]], int]) -> tuple[list[int], bool]:
    """Let a row write whatever `choose` takes of what is allowed; return it, and whether it ended by the grammar."""
    written: list[int] = []
    while room > 0:
        token = choose([int(token) for token in np.flatnonzero(held.allowed())])
        if token == END:
            return written, True
        taken = held.take(token, room)
        written += taken
        room -= len(taken)
        if held.over:
            return written, True
    return written, held.complete


def test_only_what_the_schema_allows_may_come(
    compiled: Callable[[dict[str, Any]], Grammar], tiny_tokenizer: Tokenizer
) -> None:
    held = Constraint.of(compiled({"enum": ["yes", "no"]}), forces=True)
    spelled = {tiny_tokenizer.decode([int(token)]) for token in np.flatnonzero(held.allowed())}
    assert spelled
    assert all('"yes"'.startswith(text) or '"no"'.startswith(text) for text in spelled)


def test_what_has_no_alternative_is_written_unasked(
    compiled: Callable[[dict[str, Any]], Grammar], tiny_tokenizer: Tokenizer
) -> None:
    held = Constraint.of(compiled(PERSON), forces=True)
    taken = held.take(int(np.flatnonzero(held.allowed())[0]), 10_000)
    assert tiny_tokenizer.decode(taken).startswith('{"name":')
    assert len(taken) > 1


def test_where_tokens_are_scored_they_are_the_same_one_by_one(compiled: Callable[[dict[str, Any]], Grammar]) -> None:
    grammar = compiled(PERSON)
    # No others may come, though they may spell the same.
    held = Constraint.of(grammar, forces=True)
    [first] = np.flatnonzero(held.allowed())
    at_once = held.take(int(first), 10_000)
    held, one_by_one = Constraint.of(grammar, forces=False), list[int]()
    for _ in at_once:
        [token] = np.flatnonzero(held.allowed())
        one_by_one += held.take(int(token), 10_000)
    assert one_by_one == at_once
    assert held.allowed().sum() > 1


def test_a_text_is_over_when_nothing_can_follow(
    compiled: Callable[[dict[str, Any]], Grammar], tiny_tokenizer: Tokenizer
) -> None:
    held = Constraint.of(compiled({"const": "x"}), forces=True)
    assert not held.over
    held.take(tokens(tiny_tokenizer, '"')[0], 10_000)
    assert (held.over, held.complete) == (True, True)


@pytest.mark.parametrize("seed", range(30))
def test_an_answer_ends_in_time_or_was_cut(
    seed: int, compiled: Callable[[dict[str, Any]], Grammar], tiny_tokenizer: Tokenizer
) -> None:
    draw = random.Random(seed)
    room = draw.choice([1, 5, 20, 40, 60, 100, 200, 300])
    written, ended = write(Constraint.of(compiled(PERSON), forces=True), room, draw.choice)
    assert len(written) <= room
    if ended:
        jsonschema.validate(json.loads(tiny_tokenizer.decode(written)), PERSON)
    else:
        # In less than this nothing can be said by the schema.
        assert room <= 40


def test_the_end_begins_as_late_as_it_can(
    compiled: Callable[[dict[str, Any]], Grammar], tiny_tokenizer: Tokenizer
) -> None:
    [letter] = tokens(tiny_tokenizer, "q")
    held = Constraint.of(compiled({"type": "string"}), forces=True)
    held.take(tokens(tiny_tokenizer, '"')[0], CLOSING_WINDOW + 1)
    written, ended = write(held, 10, lambda allowed: letter)
    assert (tiny_tokenizer.decode(written), ended) == ('qqqqqqqqq"', True)


@pytest.mark.parametrize("room", [1150, 1400, 2500])
def test_an_end_that_takes_long_is_begun_in_time(
    room: int, compiled: Callable[[dict[str, Any]], Grammar], tiny_tokenizer: Tokenizer
) -> None:
    names = [f"field_of_the_long_report_{number}" for number in range(40)]
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    grammar = compiled(schema)
    assert CLOSING_WINDOW < grammar.shortest < room
    [letter] = tokens(tiny_tokenizer, "q")
    written, ended = write(
        Constraint.of(grammar, forces=True), room, lambda allowed: letter if letter in allowed else allowed[0]
    )
    assert ended
    jsonschema.validate(json.loads(tiny_tokenizer.decode(written)), schema)


def test_an_answer_that_cannot_end_in_time_is_cut_where_it_is(
    compiled: Callable[[dict[str, Any]], Grammar], tiny_tokenizer: Tokenizer
) -> None:
    assert write(Constraint.of(compiled(PERSON), forces=True), 3, min)[1] is False


def test_it_can_go_on_from_what_was_written_already(
    compiled: Callable[[dict[str, Any]], Grammar], tiny_tokenizer: Tokenizer
) -> None:
    held = Constraint.of(compiled({"enum": ["yes", "no"]}), forces=True)
    assert not held.begin_with(tokens(tiny_tokenizer, '"m'))
    assert held.begin_with(tokens(tiny_tokenizer, '"y'))
    held.take(tokens(tiny_tokenizer, "e")[0], 10_000)
    assert held.over


def test_a_token_that_is_not_allowed_is_an_error(compiled: Callable[[dict[str, Any]], Grammar]) -> None:
    for room in (10, 10_000):
        held = Constraint.of(compiled(PERSON), forces=True)
        wrong = int(np.flatnonzero(~held.allowed()[:300])[5])
        # Where there is no choice nothing is asked, so the beginning is passed first.
        held.take(int(np.flatnonzero(held.allowed())[0]), 10_000)
        wrong = int(np.flatnonzero(~held.allowed()[:400])[5])
        with pytest.raises(ConstraintFailed):
            held.take(wrong, room)


def test_a_grammar_that_allows_nothing_is_an_error(
    compiled: Callable[[dict[str, Any]], Grammar], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "allowed", lambda matcher: np.zeros(416, np.bool_))
    with pytest.raises(ConstraintFailed, match="nothing"):
        Constraint.of(compiled(PERSON), forces=True).allowed()


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"type": "string", "minLength": 2000, "maxLength": 2000}, id="a string of so many characters"),
        pytest.param(
            {
                "type": "object",
                "properties": {f"p{n}": {"type": "string", "maxLength": 9} for n in range(60)},
                "required": [f"p{n}" for n in range(60)],
            },
            id="strings that the model begins and ends",
        ),
    ],
)
def test_a_long_end_that_is_known_is_not_sought_anew(
    compiled: Callable[[dict[str, Any]], Grammar], monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any]
) -> None:
    grammar = compiled(schema)
    sought = 0
    close = Closers.close

    def counted(closers: Closers, matcher: LLMatcher, most: int) -> list[int] | None:
        nonlocal sought
        sought += 1
        return close(closers, matcher, most)

    monkeypatch.setattr(Closers, "close", counted)
    held = Constraint.of(grammar, forces=True)
    drawn = random.Random(1)
    room = 2 * grammar.shortest - 1
    for _ in range(100):
        taken = held.take(drawn.choice([int(token) for token in np.flatnonzero(held.allowed())]), room)
        room -= len(taken)
    assert sought <= 10
