"""Answers that are JSON, or calls of tools, through the engine on tiny real models."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tokenizers import AddedToken, Tokenizer

from osaurus.chat import (
    Event,
    Failed,
    Finished,
    InvalidRequest,
    JsonFormat,
    Message,
    Sampling,
    Thinking,
    Tool,
    ToolUse,
    gathered,
)
from osaurus.engine.backend import Backend
from osaurus.engine.constraint import Constraint, ConstraintFailed

from .conftest import CHAT_TEMPLATE, TINY_CONFIG, write_tiny_model
from .desk import Desk, another

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["a long first kind of thing", "another kind"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "done": {"type": "boolean"},
    },
    "required": ["kind", "count", "done"],
}
FORMAT = JsonFormat(schema=json.dumps(SCHEMA), strict=True, asked_by="format")
WARM = Sampling(temperature=2.0, seed=3)


def tool(name: str, **properties: Any) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    definition = {"type": "function", "function": {"name": name, "parameters": parameters}}
    return Tool(
        name=name,
        definition=json.dumps(definition),
        parameters=json.dumps(parameters),
        strict=True,
        asked_by="tools[0].function.parameters",
    )


TOOLS = (tool("weather", city={"enum": ["Paris", "Rome"]}), tool("clock", hours={"enum": [12, 24]}))


@pytest.fixture(scope="module")
def roomy_models(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, backend: Backend) -> Path:
    """A models folder with `tests/tiny`, whose context has room for tools told in words."""
    folder = tmp_path_factory.mktemp("roomy")
    roomy = {**TINY_CONFIG, "max_position_embeddings": 4096}
    write_tiny_model(folder / "tests" / "tiny", tiny_tokenizer, architecture=roomy)
    return folder


@pytest.fixture
def desk(backend: Backend, roomy_models: Path) -> Desk:
    """A desk with a model that knows no tools."""
    return another(backend, roomy_models)


def reason(desk: Desk, number: int) -> str:
    end = desk.ends[number]
    assert isinstance(end, Finished), end
    return end.reason


def called(desk: Desk, number: int) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in gathered(desk.calls[number])]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_an_answer_has_the_schema_that_was_asked_for(desk: Desk, temperature: float) -> None:
    for seed in range(4):
        sampling = Sampling(temperature=temperature, seed=seed)
        desk.add(seed, "Hello", format=FORMAT, sampling=sampling, max_tokens=200)
    for number, text in desk.finish().items():
        jsonschema.validate(json.loads(text), SCHEMA)
        assert reason(desk, number) == "stop"


def test_held_and_free_rows_together_say_what_each_says_alone(desk: Desk) -> None:
    rows: list[tuple[str, dict[str, Any]]] = [
        ("Hello", {"format": FORMAT, "max_tokens": 80}),
        ("Hello", {}),
        ("def test_one(client):", {"format": FORMAT, "sampling": WARM, "max_tokens": 80}),
        ("x", {"sampling": WARM, "max_tokens": 60}),
        ("return None", {"format": FORMAT, "max_tokens": 20}),
        ("a longer prompt than the others, " * 8, {"format": FORMAT, "sampling": WARM, "max_tokens": 80}),
    ]
    alone = [desk.alone(content, **fields) for content, fields in rows]
    for number, (content, fields) in enumerate(rows):
        desk.add(number, content, **fields)
        desk.step()
    together = desk.finish()
    assert [together[number] for number in range(len(rows))] == alone


@pytest.mark.parametrize("name", ["rotating", "recurrent"])
def test_it_is_so_for_models_whose_caches_cannot_be_cut(backend: Backend, whole_models: Path, name: str) -> None:
    desk = another(backend, whole_models)
    fields: dict[str, Any] = {"name": name, "format": FORMAT, "max_tokens": 80}
    alone = desk.alone("Hello", **fields)
    jsonschema.validate(json.loads(alone), SCHEMA)
    desk.add(1, "Hello", **fields)
    desk.add(2, "return None", name=name)
    desk.add(3, "def test_one(client):", **fields, sampling=WARM)
    texts = desk.finish()
    assert texts[1] == alone
    jsonschema.validate(json.loads(texts[3]), SCHEMA)


def test_what_has_no_alternative_costs_no_steps_of_its_own(desk: Desk) -> None:
    desk.add(1, "Hello", format=FORMAT, max_tokens=200)
    steps = 0
    while desk.engine.busy:
        desk.step()
        steps += 1
    end = desk.ends[1]
    assert isinstance(end, Finished)
    assert steps < end.usage.completion_tokens / 2


def test_a_parked_row_goes_on_within_its_grammar(desk: Desk) -> None:
    alone = desk.alone("Hello", format=FORMAT, max_tokens=80)
    desk.add(1, "Hello", format=FORMAT, max_tokens=80)
    desk.add(2, "x")
    for _ in range(3):
        desk.step()
    desk.engine.park(1)
    desk.step()
    desk.engine.unpark(1)
    assert desk.finish()[1] == alone


@pytest.mark.parametrize("max_tokens", [1, 30, 60, 90, 120])
def test_few_tokens_are_enough_for_an_end_or_the_answer_is_cut(desk: Desk, max_tokens: int) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    wanted = JsonFormat(schema=json.dumps(schema), strict=True, asked_by="format")
    desk.add(1, "Hello", format=wanted, sampling=WARM, max_tokens=max_tokens)
    text = desk.finish()[1]
    assert reason(desk, 1) == ("stop" if max_tokens > 20 else "length")
    if max_tokens > 20:
        jsonschema.validate(json.loads(text), schema)


def test_stop_strings_do_not_stop_json(desk: Desk) -> None:
    desk.add(1, "Hello", format=FORMAT, stop=('"', ","), max_tokens=200)
    jsonschema.validate(json.loads(desk.finish()[1]), SCHEMA)


def test_scores_come_of_every_token(desk: Desk) -> None:
    desk.add(1, "Hello", format=FORMAT, top_logprobs=0, max_tokens=200)
    events: list[tuple[int, Event]] = []
    while desk.engine.busy:
        events += chain.from_iterable(desk.engine.step())
    scores = [score for _, event in events for score in getattr(event, "scores", ())]
    [end] = [event for _, event in events if isinstance(event, Finished)]
    assert len(scores) == end.usage.completion_tokens
    jsonschema.validate(json.loads(b"".join(score.token for score in scores)), SCHEMA)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["name", "tags"],
}


@pytest.mark.parametrize("room", [40, 400])
@pytest.mark.parametrize("seed", range(3))
def test_a_seed_repeats_an_answer_whether_its_tokens_are_scored_or_not(desk: Desk, seed: int, room: int) -> None:
    asked: dict[str, Any] = {
        "format": JsonFormat(schema=json.dumps(PERSON), strict=True, asked_by="format"),
        "sampling": Sampling(temperature=1.0, seed=seed),
        "max_tokens": room,
    }
    assert desk.alone("Hello", **asked, top_logprobs=0) == desk.alone("Hello", **asked)


def test_what_is_written_to_end_in_time_has_no_scores(desk: Desk) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    wanted = JsonFormat(schema=json.dumps(schema), strict=True, asked_by="format")
    desk.add(1, "Hello", format=wanted, sampling=WARM, max_tokens=40, top_logprobs=0)
    events: list[tuple[int, Event]] = []
    while desk.engine.busy:
        events += chain.from_iterable(desk.engine.step())
    text = "".join(getattr(event, "text", "") for _, event in events)
    scores = [score.token for _, event in events for score in getattr(event, "scores", ())]
    jsonschema.validate(json.loads(text), schema)
    assert text.encode().startswith(b"".join(scores))


def test_calls_have_no_scores_nor_have_their_marks(desk: Desk) -> None:
    desk.add(1, "Hello", tools=ToolUse(tools=TOOLS, only="clock"), top_logprobs=0, max_tokens=200)
    events: list[tuple[int, Event]] = []
    while desk.engine.busy:
        events += chain.from_iterable(desk.engine.step())
    assert not [score for _, event in events for score in getattr(event, "scores", ())]


@pytest.mark.parametrize("seed", range(4))
def test_the_tool_that_must_be_called_is_called_once(desk: Desk, seed: int) -> None:
    use = ToolUse(tools=TOOLS, only="clock")
    desk.add(1, "Hello", tools=use, sampling=Sampling(temperature=2.0, seed=seed), max_tokens=200)
    assert desk.finish()[1] == ""
    [(name, arguments)] = called(desk, 1)
    assert (name, list(arguments)) == ("clock", ["hours"])
    assert arguments["hours"] in (12, 24)
    assert reason(desk, 1) == "tool_calls"


@pytest.mark.parametrize("parallel", [True, False])
def test_some_tool_is_called_where_one_must_be(desk: Desk, parallel: bool) -> None:
    numbers = []
    for seed in range(6):
        use = ToolUse(tools=TOOLS, required=True, parallel=parallel)
        desk.add(seed, "Hello", tools=use, sampling=Sampling(temperature=2.0, seed=seed), max_tokens=300)
    texts = desk.finish()
    for seed in range(6):
        assert texts[seed] == ""
        assert {name for name, _ in called(desk, seed)} <= {"weather", "clock"}
        assert reason(desk, seed) == "tool_calls"
        numbers.append(len(called(desk, seed)))
    assert (max(numbers) > 1) == parallel


def test_a_call_or_json_where_both_are_asked_for(desk: Desk) -> None:
    use = ToolUse(tools=TOOLS)
    begins = {}
    for number, character in enumerate("<{"):
        [token] = desk.engine.load("tiny", desk.folder("tiny")).tokenizer.encode(character).ids
        begins[character] = number
        sampling = Sampling(temperature=0, bias=((token, 100.0),))
        desk.add(number, "Hello", tools=use, format=FORMAT, sampling=sampling, max_tokens=300)
    texts = desk.finish()
    jsonschema.validate(json.loads(texts[begins["{"]]), SCHEMA)
    assert reason(desk, begins["{"]) == "stop"
    assert called(desk, begins["<"])
    assert reason(desk, begins["<"]) == "tool_calls"


def test_a_model_that_begins_a_call_by_itself_is_held_to_its_end(desk: Desk) -> None:
    # A bias has it write the mark; what comes behind is the grammar's.
    tokenizer = desk.engine.load("tiny", desk.folder("tiny")).tokenizer
    mark = tokenizer.encode("<tool_call>", add_special_tokens=False).ids
    answers = [Said(mark)]
    desk.add(1, "Hello", tools=ToolUse(tools=TOOLS, parallel=False), max_tokens=200)
    [progress] = desk.engine._resident["tiny"][1]._reading.waiting
    progress.sampler = answers[0].sampler(progress.sampler)
    assert desk.finish().get(1, "") == ""
    [(name, _)] = called(desk, 1)
    assert name in {"weather", "clock"}
    assert reason(desk, 1) == "tool_calls"


class Said:
    """Has a row say something first, by the bias of one token after the other."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = list(tokens)

    def sampler(self, inner: Any) -> Any:
        said = self

        class Sampler(type(inner)):  # type: ignore[misc]
            def wrote(self, tokens: Any) -> None:
                super().wrote(tokens)
                del said.tokens[: len(tokens)]
                self.penalties = said.penalties()

        sampler = Sampler(inner.sampling)
        sampler.penalties = self.penalties()
        return sampler

    def penalties(self) -> Any:
        from osaurus.engine.penalties import penalties

        return penalties(Sampling(bias=((self.tokens[0], 1e9),)), []) if self.tokens else None


def test_a_grammar_that_fails_ends_its_row_and_no_other(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = desk.alone("Hello")
    desk.add(1, "Hello")
    desk.add(2, "Hello", format=FORMAT, max_tokens=80)
    for _ in range(3):
        desk.step()

    def fail(self: Constraint) -> None:
        raise ConstraintFailed("too complex")

    monkeypatch.setattr(Constraint, "allowed", fail)
    assert desk.finish()[1] == alone
    end = desk.ends[2]
    assert isinstance(end, Failed)
    assert isinstance(end.error, ConstraintFailed)


def test_a_schema_that_is_none_is_refused_before_the_engine_sees_it(desk: Desk) -> None:
    wrong = JsonFormat(schema='{"type": "strange"}', strict=True, asked_by="format")
    with pytest.raises(InvalidRequest) as caught:
        desk.add(1, "Hello", format=wrong)
    assert caught.value.param == "format"
    assert not desk.engine.busy


@pytest.fixture
def thinker(backend: Backend, tmp_path: Path, tiny_tokenizer: Tokenizer) -> Desk:
    """A desk with a model that knows thoughts, and whose template opens them if asked."""
    tokenizer = Tokenizer.from_str(tiny_tokenizer.to_str())
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    write_tiny_model(tmp_path / "tests" / "tiny", tokenizer)
    config = tmp_path / "tests" / "tiny" / "tokenizer_config.json"
    opening = "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
    template = CHAT_TEMPLATE.replace("assistant\n{% endif", "assistant\n" + opening + "{% endif")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    return another(backend, tmp_path)


def test_json_needs_no_thoughts_unless_they_are_asked_for(thinker: Desk) -> None:
    thinker.add(1, "Hello", format=FORMAT, max_tokens=200)
    jsonschema.validate(json.loads(thinker.finish()[1]), SCHEMA)
    assert thinker.thoughts[1] == ""


def test_the_grammar_begins_behind_the_thoughts(thinker: Desk) -> None:
    tokenizer = thinker.engine.load("tiny", thinker.folder("tiny")).tokenizer
    thinker.add(1, "Hello", format=FORMAT, max_tokens=200, thinking=Thinking(True, "think"))
    [progress] = thinker.engine._resident["tiny"][1]._reading.waiting
    said = [*tokenizer.encode("Let me see.", add_special_tokens=False).ids, tokenizer.token_to_id("</think>")]
    progress.sampler = Said(said).sampler(progress.sampler)
    jsonschema.validate(json.loads(thinker.finish()[1]), SCHEMA)
    assert thinker.thoughts[1] == "Let me see."


def test_results_of_tools_are_read_like_any_message(desk: Desk) -> None:
    turns = (
        Message("user", "What time is it?"),
        Message("assistant", "", calls=gathered(())),
        Message("tool", "12:30", call_id="call_1"),
    )
    assert desk.alone(turns, tools=ToolUse(tools=TOOLS)) != desk.alone(turns[:2], tools=ToolUse(tools=TOOLS))
