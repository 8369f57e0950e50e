"""Schemas compiled: errors for what is wrong, and an error or a grammar, never death, for what is dangerous."""

import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer

from osaurus.chat import InvalidRequest, ServiceUnavailable
from osaurus.engine import grammars as module
from osaurus.engine.constraint import Constraint, ConstraintFailed
from osaurus.engine.grammars import Grammars, on_large_stack
from osaurus.engine.panics import Panicked
from osaurus.engine.schemas import SchemaRule, prepared

from .grammar_desk import GrammarDesk


@pytest.fixture
def desk(tiny_tokenizer: Tokenizer) -> GrammarDesk:
    return GrammarDesk(tiny_tokenizer)


def refusal(desk: GrammarDesk, schema: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        desk.compile(schema)
    assert caught.value.param == "format"
    message = str(caught.value)
    assert len(message) < 500
    assert "\n" not in message
    return message


# What is wrong.


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"properties": []}, "properties must be an object"),
        ({"type": "string", "pattern": "a(b"}, "unclosed group"),
        ({"type": "string", "pattern": "*a"}, "repetition operator missing expression"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": r"(a)\1"}, "backreferences are not supported"),
        ({"type": "string", "format": "nothing"}, "Unknown format: nothing"),
        ({"not": {"type": "null"}}, 'Unimplemented keys: ["not"]'),
        ({"minimum": 5, "maximum": 1, "type": "number"}, "Unsatisfiable"),
        ({"enum": []}, "Unsatisfiable"),
        ({"$ref": "#/$defs/x"}, "does not exist"),
        ({"$ref": "#"}, "leads to itself"),
        ({"allOf": [{"$ref": "#"}]}, "leads to itself"),
        ({"type": "array", "minItems": -1}, "Expected positive integer"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "of a oneOf fits at a time; use anyOf"),
        ({"properties": {f"p{number}": {"type": "integer"} for number in range(1000)}}, "it is too large, or"),
        ({"$schema": "http://127.0.0.1:1/schema"}, "not present in a registry"),
    ],
)
def test_what_is_wrong_with_a_schema_is_told(desk: GrammarDesk, schema: Any, reason: str) -> None:
    assert reason in refusal(desk, schema)


def test_what_is_not_strict_takes_what_cannot_be_enforced(desk: GrammarDesk) -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"oneOf": [{"type": "integer"}, {"minimum": 3}]}}
    refusal(desk, schema)
    assert desk.accepts(desk.compile(schema, strict=False), [1, 1])


def test_of_several_schemas_the_one_at_fault_is_named(desk: GrammarDesk) -> None:
    good, bad = {"type": "object"}, {"type": "object", "properties": {"x": {"type": "strin"}}}
    rules = [
        SchemaRule(schema=prepared(json.dumps(schema), True, "x"), strict=True, asked_by=f"tools[{number}]")
        for number, schema in enumerate([good, bad, good])
    ]
    with pytest.raises(InvalidRequest, match="strin") as caught:
        desk.grammars.compile(["start: schema_0 | schema_1 | schema_2"], rules)
    assert caught.value.param == "tools[1]"


def test_schemas_have_so_many_characters_in_all(desk: GrammarDesk) -> None:
    long = SchemaRule(schema={"const": "x" * 100_000}, strict=True, asked_by="tools[1]")
    short = SchemaRule(schema={}, strict=True, asked_by="tools[0]")
    with pytest.raises(InvalidRequest, match="characters in all") as caught:
        desk.grammars.compile(["start: schema_0"], [short, *[long] * 6])
    assert caught.value.param == "tools[1]"


def test_literals_stand_for_themselves_and_marks_for_their_tokens(tiny_tokenizer: Tokenizer) -> None:
    token = tiny_tokenizer.token_to_id("<|im_start|>")
    assert token is not None
    grammars = Grammars.of(tiny_tokenizer.to_str(), tiny_tokenizer.get_vocab_size(), [2], {"<|im_start|>": token})
    text = 'a "quoted" \\ line\n'
    matcher = grammars.compile([f"start: {grammars.literal('<|im_start|>')} {grammars.literal(text)}"], []).begin()
    assert matcher.consume_tokens([token, *tiny_tokenizer.encode(text).ids])
    assert matcher.is_accepting()


# What is kept.


def counted(desk: GrammarDesk, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return what grows with each grammar that is tried."""
    tried: list[object] = []
    complaint = Grammars._complaint

    def count(self: Grammars, matcher: Any) -> str:
        tried.append(matcher)
        return complaint(self, matcher)

    monkeypatch.setattr(Grammars, "_complaint", count)
    return tried


def test_a_grammar_is_tried_once_and_compiled_for_each_request(
    desk: GrammarDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = counted(desk, monkeypatch)
    schema = {"const": "tried once"}
    assert desk.compile(schema) is not desk.compile(schema)
    assert len(tried) == 1
    desk.compile(schema, strict=False)
    assert len(tried) == 2


@pytest.mark.parametrize(("name", "most"), [("MOST_KEPT", 2), ("MOST_SOURCE", 1000)])
def test_what_is_known_is_bounded(desk: GrammarDesk, monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> None:
    monkeypatch.setattr(module, name, most)
    tried = counted(desk, monkeypatch)
    for letter in "abca":
        desk.compile({"const": letter * 400})
    assert len(tried) == 4


def test_what_one_client_uses_up_is_there_for_the_next(desk: GrammarDesk) -> None:
    long = {"type": "string", "maxLength": 30_000}
    schema = {"type": "object", "properties": {"a": long, "b": long}, "required": ["a", "b"]}
    draw = random.Random(1)
    ends = []
    for _ in range(4):
        held = Constraint.of(desk.compile(schema), forces=True)
        try:
            for room in range(600, 0, -1):
                held.take(draw.choice([int(token) for token in held.allowed().nonzero()[0]]), room + 10_000)
            ends.append("written")
        except ConstraintFailed:
            ends.append("used up")
    assert ends == ["written"] * 4


def test_an_object_may_have_hundreds_of_properties(desk: GrammarDesk) -> None:
    properties = {f"property_{number}": {"type": "string"} for number in range(500)}
    grammar = desk.compile({"type": "object", "properties": properties})
    assert desk.accepts(grammar, {"property_7": "x", "property_499": "y"})


def test_an_object_with_more_properties_than_can_be_followed_is_refused(desk: GrammarDesk) -> None:
    properties = {f"property_{number}": {"type": "string"} for number in range(2000)}
    assert "cannot be enforced" in refusal(desk, {"type": "object", "properties": properties})


def test_texts_of_one_grammar_do_not_disturb_each_other(desk: GrammarDesk) -> None:
    grammar = desk.compile({"enum": ["one", "two"]})
    one, two = grammar.begin(), grammar.begin()
    assert one.consume_tokens(desk.tokens('"one"'))
    assert two.consume_tokens(desk.tokens('"two"'))


# Time and threads.


def test_what_takes_too_long_is_refused(desk: GrammarDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    monkeypatch.setattr(module, "LONGEST_COMPILATION", 0.01)
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.01)
    monkeypatch.setattr(Grammars, "_compiled", lambda *_: held.wait())
    try:
        assert "takes too long to compile" in refusal(desk, {"const": 1})
        assert "takes too long to compile" in refusal(desk, {"const": 2})
        # Both threads are still at it.
        with pytest.raises(ServiceUnavailable):
            desk.compile({"const": 3})
    finally:
        held.set()


def test_what_has_failed_makes_room_for_others(desk: GrammarDesk) -> None:
    for number in range(module.MOST_COMPILING + 1):
        refusal(desk, {"type": f"{number}"})


def test_several_threads_compile_at_once(desk: GrammarDesk) -> None:
    wrong: list[object] = []

    def compile_some(first: int) -> None:
        for number in range(first, first + 12):
            value = {"a": [number % 20]}
            if not desk.accepts(desk.compile({"const": value}), value):
                wrong.append(value)

    threads = [threading.Thread(target=compile_some, args=(7 * number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_stack_is_large_for_one_thread_alone() -> None:
    def deep(levels: int) -> int:
        return deep(levels - 1) + 1 if levels else 0

    before = threading.stack_size()
    assert on_large_stack(lambda: deep(500)) == 500
    assert threading.stack_size() == before


def test_what_is_raised_there_is_raised_here() -> None:
    done: list[bool] = []
    with pytest.raises(ZeroDivisionError):
        on_large_stack(lambda: 1 / 0, lambda: done.append(True))
    assert done == [True]


def test_a_panic_there_is_an_error_here_and_nobody_waits_for_it() -> None:
    class Panic(BaseException):
        """What Rust raises."""

    def panic() -> None:
        raise Panic("at the disco")

    with pytest.raises(Panicked, match="at the disco"):
        on_large_stack(panic)


def test_where_the_system_has_no_thread_the_place_is_free_again(
    desk: GrammarDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        for _ in range(module.MOST_COMPILING + 1):
            with pytest.raises(RuntimeError, match="new thread"):
                desk.compile({"type": "object"})
    assert desk.accepts(desk.compile({"type": "object"}), {})


# What is dangerous. Each might end the process, so that each batch has one of its own, with a bound for its memory.


def chain(links: int, link: Callable[[dict[str, str]], dict[str, Any]]) -> dict[str, Any]:
    """A schema whose first definition refers to the second, and so on."""
    made: dict[str, Any] = {f"{number}": link({"$ref": f"#/$defs/{number + 1}"}) for number in range(links)}
    return {"$ref": "#/$defs/0", "$defs": {**made, f"{links}": {"type": "integer"}}}


def layers(levels: int, layer: Callable[[Any], Any]) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(levels):
        schema = layer(schema)
    return schema


def repeated(times: int, levels: int) -> dict[str, Any]:
    pattern = "a"
    for _ in range(levels):
        pattern = f"({pattern}){{{times}}}"
    return {"type": "string", "pattern": f"^{pattern}$"}


def held(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


def patterns(*made: str) -> dict[str, Any]:
    return {"allOf": [{"type": "string", "pattern": pattern} for pattern in made]}


DANGERS: dict[str, dict[str, Any]] = {
    "chains": {
        "950": chain(950, lambda next_: next_),
        "as long as may be": chain(3800, lambda next_: next_),
        "of objects": chain(1700, held),
        "of parts": chain(1900, lambda next_: {"allOf": [next_]}),
        "of alternatives": chain(1900, lambda next_: {"anyOf": [next_]}),
        "of one another": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    },
    "depth": {
        "objects": layers(31, held),
        "objects beyond": layers(200, held),
        "parts": layers(30, lambda inner: {"allOf": [inner]}),
        "alternatives": layers(30, lambda inner: {"anyOf": [inner, {"type": "null"}]}),
        "arrays": layers(60, lambda inner: {"items": inner, "minItems": 1, "type": "array"}),
    },
    "endless": {
        "object": {**held({"$ref": "#"})},
        "array": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        "both": {"anyOf": [held({"$ref": "#"}), {"type": "array", "items": {"$ref": "#"}, "minItems": 2}]},
    },
    "counts": {
        "items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
        "items at most": {"type": "array", "items": {"type": "integer"}, "maxItems": 10**9},
        "items of items": layers(6, lambda inner: {"type": "array", "items": inner, "minItems": 10**9}),
        "characters": {"type": "string", "minLength": 10**9},
        "characters at most": {"type": "string", "maxLength": 10**9},
        "properties": {"type": "object", "minProperties": 1, "maxProperties": 10**9},
        "beyond numbers": {"type": "array", "minItems": 10**30},
    },
    "many": {
        "values": {"enum": [f"value {number}" for number in range(6000)]},
        "numbers": {"enum": list(range(15_000))},
        "properties": {"type": "object", "properties": {f"p{number}": {} for number in range(2000)}},
        "alternatives": {"anyOf": [held({"const": number}) for number in range(400)]},
        "products": {"allOf": [{"anyOf": [held({"const": [i, j]}) for j in range(4)]} for i in range(12)]},
        "characters": {"const": "x" * 120_000},
        "patterns of names": {
            "type": "object",
            "patternProperties": {f"^p{number}.*x$": {"type": "null"} for number in range(500)},
        },
    },
    "patterns": {
        "repetition": repeated(100, 3),
        "deep repetition": repeated(2, 50),
        "long repetition": repeated(10**9, 1),
        "alternation": {"type": "string", "pattern": "^(a|a)*(a|aa)+(a|b)*a(a|b){200}c$"},
        "many alternatives": {"type": "string", "pattern": "|".join(f"{number:x}" for number in range(15_000))},
        "groups": {"type": "string", "pattern": "(" * 60_000 + ")" * 60_000},
        "brackets": {"type": "string", "pattern": "[" * 100_000},
        "characters": {"type": "string", "pattern": r"^\w{1000}\p{L}{1000}$"},
        "nothing to repeat": {"type": "string", "pattern": "a{5,3}"},
        "too much to repeat": {"type": "string", "pattern": "a{99999999999999999999}"},
    },
    # These were computed for minutes, in gigabytes.
    "products": {
        "patterns": patterns(*(f".*{'ab' * number}.*[a-z]{{{number}}}" for number in range(40))),
        "few patterns": patterns(*(f"(a|b)*{'ab'[number % 2]}(a|b){{{number + 10}}}" for number in range(8))),
        "multiple": {"type": "integer", "multipleOf": 1000003, "maximum": 10**8},
        "multiples": {"allOf": [{"type": "integer", "multipleOf": each} for each in (101, 103, 107, 109)]},
        "a multiple within bounds": {"type": "number", "multipleOf": 0.9973, "minimum": 0.12345, "maximum": 1e15},
    },
}

CHILD = """
import json, resource, sys
from tokenizers import Tokenizer
from osaurus.chat import ApiError
from osaurus.engine.constraint import Constraint
from tests.grammar_desk import GrammarDesk, Writer
from osaurus.chat import Sampling

resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
source = json.loads(sys.stdin.read())
desk = GrammarDesk(Tokenizer.from_str(source["tokenizer"]))
for name, schema in source["schemas"].items():
    for strict in (True, False):
        try:
            grammar = desk.compile(schema, strict=strict)
        except ApiError as error:
            assert error.status == 400, error
            outcome = "refused"
        else:
            row = Writer(desk.answer(grammar), Sampling(), 60)
            outcome = "written"
            while row.end is None:
                mask = row.answer.allowed()
                if mask is None:
                    mask = [True]
                row.take(next(index for index in range(len(mask) - 1, -1, -1) if mask[index]))
        print(f"{name}: {outcome}")
"""


@pytest.mark.parametrize("danger", DANGERS)
def test_a_dangerous_schema_is_refused_or_written_to(tiny_tokenizer: Tokenizer, danger: str) -> None:
    given = json.dumps({"tokenizer": tiny_tokenizer.to_str(), "schemas": DANGERS[danger]})
    child = subprocess.run(
        [sys.executable, "-c", CHILD], input=given, capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr[-2000:]
    said = child.stdout.splitlines()
    assert len(said) == 2 * len(DANGERS[danger])


@pytest.mark.parametrize("name", ["object", "array"])
def test_what_only_endless_texts_are_valid_by_is_refused(desk: GrammarDesk, name: str) -> None:
    assert "no text that comes to an end is valid by it" in refusal(desk, DANGERS["endless"][name])
