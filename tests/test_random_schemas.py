"""Whatever the schema, the temperature and the room: what is written is valid, or has no end that fits."""

import json
from pathlib import Path
from random import Random

import pytest
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer

from osaurus.chat import Finished, InvalidRequest, JsonFormat, Sampling
from osaurus.engine.backend import Backend
from osaurus.engine.constraint import CLOSING_WINDOW
from osaurus.library.packages import STARTER

from .desk import Desk, another
from .grammar_desk import GrammarDesk, Schema, Writer, random_schema, write

TEMPERATURES = (0.0, 1.0, 2.0)
MANY = 200


def faults(schema: Schema, text: str) -> list[str]:
    """What is wrong with a text by a schema, formats as well."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return [str(error)]
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [error.message for error in validator.iter_errors(value)]


@pytest.fixture(scope="module")
def grammar_desk(tiny_tokenizer: Tokenizer) -> GrammarDesk:
    return GrammarDesk(tiny_tokenizer)


def test_random_logits_write_what_random_schemas_allow(grammar_desk: GrammarDesk, backend: Backend) -> None:
    """Each of many schemas at three temperatures, with room from none to spare to plenty."""
    rng = Random(5)
    rows: list[tuple[Schema, int | None, Writer]] = []
    schemas, refused = 0, 0
    while schemas < MANY:
        schema = random_schema(rng)
        try:
            grammar = grammar_desk.compile(schema)
        except InvalidRequest:
            # Nothing is valid by it.
            refused += 1
            continue
        schemas += 1
        shortest = grammar.closers.close(grammar.begin(), CLOSING_WINDOW)
        least = None if shortest is None else len(shortest)
        for temperature in TEMPERATURES:
            room = rng.choice([max(least or 0, 1), (least or 0) + rng.randrange(1, 12), rng.randrange(1, 280)])
            sampling = Sampling(temperature=temperature, top_p=1.0, seed=schemas)
            answer = grammar_desk.answer(grammar, forces=rng.random() < 0.8)
            rows.append((schema, None if least is None or least > room else least, Writer(answer, sampling, room)))
    write([row for _, _, row in rows], grammar_desk.tokenizer.get_vocab_size(), seed=5)
    for schema, least, row in rows:
        assert row.end in ("stop", "length"), (schema, row.end)
        if row.end == "stop":
            assert not faults(schema, row.text), (schema, row.text)
        else:
            # Where there was an end from the beginning there is one at every step.
            assert least is None, (schema, row.text)
    assert refused < MANY / 20
    assert sum(row.end == "stop" for _, _, row in rows) > len(rows) * 0.8


def test_a_tiny_model_writes_what_random_schemas_allow(desk: Desk) -> None:
    _ask(desk, "tiny", 30)


@pytest.mark.starter
def test_the_starter_model_writes_what_random_schemas_allow(
    backend: Backend, starter_models: Path, tmp_path: Path
) -> None:
    """With a vocabulary of fifty thousand tokens, many of them several characters of JSON."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "starter").symlink_to(starter_models / STARTER.repository)
    _ask(another(backend, tmp_path), "starter", 6)


def _ask(desk: Desk, name: str, many: int) -> None:
    """Ask a model for answers to many schemas at once, at all temperatures and with much room or little."""
    rng = Random(6)
    schemas: dict[int, Schema] = {}
    while len(schemas) < many:
        schema, number = random_schema(rng, depth=1), len(schemas)
        wanted = JsonFormat(schema=json.dumps(schema), strict=True, asked_by="format")
        sampling = Sampling(temperature=TEMPERATURES[number % 3], seed=number)
        try:
            desk.add(number, "JSON", name, max_tokens=(8, 40)[number // 3 % 2], format=wanted, sampling=sampling)
        except InvalidRequest:
            continue
        schemas[number] = schema
    desk.finish()
    for number, schema in schemas.items():
        end = desk.ends[number]
        assert isinstance(end, Finished), (schema, end)
        assert end.reason == "length" or not faults(schema, desk.texts[number]), (schema, desk.texts[number])
