"""Schemas compiled for the tiny tokenizer, texts held against them, and texts that draw from random logits write."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from attrs import define, field
from tokenizers import Tokenizer

from osaurus.chat import ApiError, FinishReason, Sampling
from osaurus.engine.answer import Answer
from osaurus.engine.grammars import Grammar, Grammars
from osaurus.engine.output import StopScanner, TextAssembler
from osaurus.engine.schemas import SchemaRule, prepared
from osaurus.engine.shape import Shape

Schema = dict[str, Any] | bool


@define
class GrammarDesk:
    """Grammars of one vocabulary."""

    tokenizer: Tokenizer
    end: int = field(init=False)
    grammars: Grammars = field(init=False)

    def __attrs_post_init__(self) -> None:
        end = self.tokenizer.token_to_id("<|im_end|>")
        assert end is not None
        self.end = end
        self.grammars = Grammars.of(self.tokenizer.to_str(), self.tokenizer.get_vocab_size(), [end], {})

    def compile(self, schema: Schema, *, strict: bool = True) -> Grammar:
        rule = SchemaRule(schema=prepared(json.dumps(schema), strict, "format"), strict=strict, asked_by="format")
        return self.grammars.compile(["start: schema_0"], [rule])

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def accepts(self, grammar: Grammar, value: object) -> bool:
        """Whether a value, written as Python writes JSON, may be an answer, token by token."""
        matcher = grammar.begin()
        taken = matcher.consume_tokens(self.tokens(json.dumps(value, ensure_ascii=False)))
        assert isinstance(taken, bool)
        return taken and matcher.is_accepting()

    def answer(self, grammar: Grammar, *, forces: bool = True) -> Answer:
        text = TextAssembler(self.tokenizer, {self.end}, StopScanner(()))
        return Answer(text, {self.end}, Shape(grammar=grammar), self.tokens, forces)


@define
class Writer:
    """A row that writes to a grammar, with room for so many tokens."""

    answer: Answer
    sampling: Sampling
    room: int
    text: str = field(default="", init=False)
    end: FinishReason | ApiError | None = field(default=None, init=False)

    def take(self, token: int) -> None:
        written = self.answer.take(token, None, self.room)
        self.room -= len(written.tokens)
        assert self.room >= 0
        self.text += written.piece.text
        self.end = written.end


def write(rows: list[Writer], width: int, seed: int, together: int = 48) -> None:
    """Have rows write to their ends, so many at a time; MLX must have been prepared."""
    import mlx.core as mx
    import numpy as np

    from osaurus.engine.sampling import RowSampler, sample

    generator = np.random.default_rng(seed)
    waiting = [(row, RowSampler.after([], row.sampling)) for row in reversed(rows)]
    writing: list[tuple[Writer, RowSampler]] = []
    while waiting or writing:
        while waiting and len(writing) < together:
            writing.append(waiting.pop())
        logits = mx.array(generator.normal(size=(len(writing), width), scale=3).astype(np.float32))
        masks = [row.answer.allowed() for row, _ in writing]
        drawn = sample(logits, [sampler for _, sampler in writing], masks)
        for (row, _), token in zip(writing, drawn, strict=True):
            row.take(token)
        writing = [each for each in writing if each[0].end is None]


NAMES = ("a", "name", "x-y", "größe", 'q"t', "")
PATTERNS = ("^[a-z]{2,5}$", "^(ab|cd)+$", "[0-9]{3}", "^[A-Z][a-z]*( [A-Z][a-z]*)?$", "^\\w+@\\w+\\.com$")
FORMATS = ("date", "date-time", "time", "duration", "email", "ipv4", "ipv6", "uuid")


def random_schema(rng: Random, depth: int = 3) -> Schema:
    """A schema of enforced keywords that something is valid by."""
    kinds: list[Callable[[Random, int], Schema]] = [_string, _number, _integer, _choice, _constant, _nullable]
    if depth:
        kinds += [_object, _object, _object, _array, _array, _alternatives, _joined, _referring]
    return rng.choice(kinds)(rng, depth)


def _string(rng: Random, _: int) -> Schema:
    kind = rng.randrange(4)
    if kind == 0:
        return {"type": "string"}
    if kind == 1:
        least = rng.randrange(12)
        return {"type": "string", "minLength": least, "maxLength": least + rng.randrange(20)}
    if kind == 2:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    return {"type": "string", "format": rng.choice(FORMATS)}


def _number(rng: Random, _: int) -> Schema:
    schema: dict[str, Any] = {"type": "number"}
    least = rng.choice([-1000, -1.5, 0, 0.25, 7])
    if rng.random() < 0.6:
        schema[rng.choice(["minimum", "exclusiveMinimum"])] = least
    if rng.random() < 0.6:
        schema[rng.choice(["maximum", "exclusiveMaximum"])] = least + rng.choice([0.5, 1, 10**6])
    return schema


def _integer(rng: Random, _: int) -> Schema:
    schema: dict[str, Any] = {"type": "integer"}
    least = rng.randrange(-200, 200)
    if rng.random() < 0.6:
        schema["minimum"] = least
    if rng.random() < 0.6:
        schema["maximum"] = least + rng.randrange(50, 10**6)
    if rng.random() < 0.3:
        schema["multipleOf"] = rng.choice([2, 5, 7, 25])
    return schema


def _choice(rng: Random, _: int) -> Schema:
    members = ["red", "green", "rot und grün", 1, 2.5, None, True, [1, "a"], {"a": {"b": []}}]
    return {"enum": rng.sample(members, rng.randrange(1, 5))}


def _constant(rng: Random, _: int) -> Schema:
    return {"const": rng.choice(["fixed", 7, None, False, ["x", 1], {"k": "v"}])}


def _nullable(rng: Random, _: int) -> Schema:
    return {"type": rng.choice([["string", "null"], ["integer", "boolean"], "boolean", "null"])}


def _object(rng: Random, depth: int) -> Schema:
    names = rng.sample(NAMES, rng.randrange(len(NAMES)))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
    }
    if rng.random() < 0.2:
        schema["additionalProperties"] = random_schema(rng, 0)
    if rng.random() < 0.1:
        schema["patternProperties"] = {"^p_[a-z]{1,3}$": random_schema(rng, 0)}
    return schema


def _array(rng: Random, depth: int) -> Schema:
    schema: dict[str, Any] = {"type": "array", "items": random_schema(rng, depth - 1)}
    if rng.random() < 0.5:
        schema["minItems"] = rng.randrange(4)
        schema["maxItems"] = schema["minItems"] + rng.randrange(4)
    if rng.random() < 0.2:
        schema["prefixItems"] = [random_schema(rng, depth - 1), random_schema(rng, 0)]
    return schema


def _alternatives(rng: Random, depth: int) -> Schema:
    return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]}


def _joined(rng: Random, depth: int) -> Schema:
    first, second = rng.sample(NAMES, 2)
    return {
        "allOf": [
            {"type": "object", "properties": {first: random_schema(rng, depth - 1)}, "required": [first]},
            {"type": "object", "properties": {second: random_schema(rng, depth - 1)}},
        ]
    }


def _referring(rng: Random, depth: int) -> Schema:
    """A list whose links are of one definition; only the root of a schema has definitions, so it has a name in it."""
    return {
        "type": "object",
        "properties": {"value": random_schema(rng, depth - 1), "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["value", "next"],
    }
