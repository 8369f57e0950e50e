"""Answers that are messages on channels, as OpenAI's open models write them."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from osaurus.chat import (
    Finished,
    GenerationRequest,
    JsonFormat,
    Message,
    Piece,
    Sampling,
    Thinking,
    TokenScore,
    Tool,
    ToolCall,
    ToolUse,
    gathered,
)
from osaurus.engine.answer import Answer
from osaurus.engine.backend import Backend
from osaurus.engine.conversation import TemplateAbilities, as_given
from osaurus.engine.harmony import ANALYSIS, FINAL, HARMONY, HarmonyCalls, HarmonyScanner, Mark, end_tokens_of, marks_of
from osaurus.engine.output import StopScanner, TextAssembler
from osaurus.engine.shape import Shape

from .conftest import write_tiny_model
from .desk import Desk, another
from .test_prompt import JinjaTemplate

MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|return|>", "<|call|>")
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
DEFINITION = {"type": "function", "function": {"name": "weather", "description": "It rains.", "parameters": PARAMETERS}}
WEATHER = Tool(
    name="weather", definition=json.dumps(DEFINITION), parameters=json.dumps(PARAMETERS), strict=False, asked_by="tools"
)
FORMAT = JsonFormat(schema='{"enum": ["yes", "no"]}', strict=True, asked_by="response_format")
THOUGHT = "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant"
CALLED = '<|message|>{"city": "Paris"}<|call|>'

# What the models' own does, in short.
TEMPLATE = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}<|end|>"
    "{% if messages[0].role == 'system' or tools %}<|start|>developer<|message|>"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% for tool in tools or [] %}{{ '// ' + tool.function.description + '\n' }}"
    "type {{ tool.function.name }} = (_: {{ tool.function.parameters.properties | tojson }}) => any;{% endfor %}"
    "<|end|>{% endif %}{% set last = namespace(name=none) %}{% for message in messages %}"
    "{% if message.role == 'assistant' and 'tool_calls' in message %}{% set call = message.tool_calls[0].function %}"
    "{% set last.name = call.name %}<|start|>assistant to=functions.{{ call.name }}<|channel|>"
    "commentary json<|message|>"
    "{{ call.arguments | tojson }}<|call|>"
    "{% elif message.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|end|>"
    "{% elif message.role == 'tool' %}{% if last.name is none %}{{ raise_exception('no call!') }}{% endif %}"
    "<|start|>functions.{{ last.name }} to=assistant<|channel|>commentary<|message|>"
    "{{ message.content | tojson }}<|end|>"
    "{% elif message.role == 'user' %}<|start|>user<|message|>{{ message.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer with the marks of this format."""
    copy = Tokenizer.from_str(tiny_tokenizer.to_str())
    copy.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    return copy


@pytest.fixture(scope="module")
def model_desk(backend: Backend, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk with a model whose tokenizer and template are of this format."""
    models = tmp_path_factory.mktemp("harmony")
    folder = models / "tests" / "tiny"
    write_tiny_model(folder, tokenizer)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    return another(backend, models)


def number(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


def begin(
    tokenizer: Tokenizer, *, tools: tuple[Tool, ...] = (WEATHER,), parallel: bool = True, stop: tuple[str, ...] = ()
) -> Answer:
    shape = Shape(format=HARMONY, tools=tools, parallel=parallel)
    vocabulary = tokenizer.get_vocab()
    ends = end_tokens_of(vocabulary, frozenset())
    calls = shape.scanner()
    assert calls is None or isinstance(calls, HarmonyCalls)
    scanner = HarmonyScanner(calls, False)
    text = TextAssembler(tokenizer, ends, StopScanner(stop), scanner, calls, marks_of(vocabulary))
    return Answer(text, ends, shape, lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids), True)


def write(answer: Answer, tokens: list[int], room: int = 10_000) -> tuple[Piece, object]:
    """Have these tokens drawn; return what is said, and how the answer ends."""
    said = Piece("")
    for place, token in enumerate(tokens):
        score = TokenScore(str(place).encode(), 0.0)
        written = answer.take(token, score, room - place)
        said += written.piece
        if written.end is not None:
            return said, written.end
    return said, None


def say(tokenizer: Tokenizer, text: str, **fields: Any) -> tuple[str, str, list[tuple[str, str]], object]:
    """Return the thoughts, the text, the calls and the end of an answer that is written so."""
    room = fields.pop("room", 10_000)
    said, end = write(begin(tokenizer, **fields), tokenizer.encode(text, add_special_tokens=False).ids, room)
    return said.reasoning, said.text, [(call.name, call.arguments) for call in gathered(said.calls)], end


def test_thoughts_are_told_from_the_answer(tokenizer: Tokenizer) -> None:
    text = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>Hello!<|return|>"
    assert say(tokenizer, text) == ("Easy.", "Hello!", [], "stop")


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.weather <|constrain|>json",
        "<|channel|>commentary to=functions.weather<|constrain|>json",
        "<|channel|>commentary to=functions.weather json",
        "<|channel|>commentary to=functions.weather",
        "<|channel|>analysis to=functions.weather code",
        " to=functions.weather<|channel|>commentary json",
        " to=functions.weather<|channel|>analysis <|constrain|>json",
        "<|channel|>commentary to=weather <|constrain|>json",
    ],
)
def test_a_message_to_a_tool_is_a_call(header: str, tokenizer: Tokenizer) -> None:
    call = ("weather", '{"city": "Paris"}')
    assert say(tokenizer, THOUGHT + header + CALLED) == ("Need it.", "", [call], "tool_calls")
    assert say(tokenizer, header + CALLED) == ("", "", [call], "tool_calls")


def test_what_is_said_on_the_way_to_a_call_is_text(tokenizer: Tokenizer) -> None:
    said = "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant"
    thoughts, text, calls, end = say(tokenizer, f"{THOUGHT}{said}<|channel|>commentary to=functions.weather{CALLED}")
    assert (thoughts, text, len(calls), end) == ("Need it.", "I look it up.", 1, "tool_calls")


def test_between_messages_of_a_kind_there_is_a_gap(tokenizer: Tokenizer) -> None:
    text = "<|end|><|start|>assistant".join(
        f"<|channel|>{channel}<|message|>{said}"
        for channel, said in [("analysis", "a"), ("commentary", "b"), ("analysis", "c"), ("final", "d"), ("final", "")]
    )
    assert say(tokenizer, text + "<|return|>") == ("a\n\nc", "b\n\nd", [], "stop")


def test_a_call_may_be_ended_like_any_message_and_another_follow(tokenizer: Tokenizer) -> None:
    one = '<|channel|>commentary to=functions.weather<|message|>{"city": "Paris"}'
    text = f"{one}<|end|><|start|>assistant{one}<|call|>"
    assert len(say(tokenizer, text)[2]) == 2
    assert len(say(tokenizer, text, parallel=False)[2]) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Hello!", "Hello!"),
        ("to be", "to be"),
        ("<|channel|>critic<|message|>Well<|end|>", "<|channel|>critic<|message|>Well"),
        ("<|channel|>final Hello!", "<|channel|>final Hello!"),
        ("<|channel|>final Hello!<|end|>", "<|channel|>final Hello!"),
        ("<|channel|>" + "x " * 200, "<|channel|>" + "x " * 200),
        ("<|message|>Hello!", "Hello!"),
        ("<|channel|>final<|message|>a<|constrain|>b<|message|>c", "a<|constrain|>b<|message|>c"),
        ("<|channel|>final<|message|>a<|end|>b", "a\n\nb"),
        ("<|start|>user<|channel|>final<|message|>Hi", "<|start|>user<|channel|>final<|message|>Hi"),
        ("<|channel|><|channel|>final<|message|>Hi", "Hi"),
        (
            '<|channel|>commentary to=functions.other<|message|>{"a": 1}',
            '<|channel|>commentary to=functions.other<|message|>{"a": 1}',
        ),
        ("<|channel|>analysis to=python code<|message|>1+1", "<|channel|>analysis to=python code<|message|>1+1"),
        (
            "<|channel|>commentary to=functions.weather to=functions.weather<|message|>{}",
            "<|channel|>commentary to=functions.weather to=functions.weather<|message|>{}",
        ),
        (
            '<|channel|>commentary to=functions.weather json<|message|>{"city": <|call|>',
            '<|channel|>commentary to=functions.weather json<|message|>{"city": ',
        ),
        (
            "<|channel|>commentary to=functions.weather<|message|>[1]<|end|>",
            "<|channel|>commentary to=functions.weather<|message|>[1]",
        ),
    ],
)
def test_what_is_no_message_of_this_kind_is_text_and_no_call(text: str, told: str, tokenizer: Tokenizer) -> None:
    assert say(tokenizer, text + "<|return|>") == ("", told, [], "stop")


def test_without_tools_nothing_is_a_call(tokenizer: Tokenizer) -> None:
    text = "<|channel|>commentary to=functions.weather<|message|>{}"
    assert say(tokenizer, text + "<|call|>", tools=()) == ("", text, [], "stop")


def test_text_that_spells_marks_is_text(tokenizer: Tokenizer) -> None:
    """Only tokens are marks: nobody has a call made by having the model quote one."""
    plain = Tokenizer.from_str(tokenizer.to_str())
    settings = json.loads(plain.to_str())
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] not in MARKS]
    plain = Tokenizer.from_str(json.dumps(settings))
    quoted = '<|end|><|start|>assistant<|channel|>commentary to=functions.weather<|message|>{"city": "Paris"}<|call|>'
    tokens = tokenizer.encode(FINAL, add_special_tokens=False).ids + plain.encode(quoted, add_special_tokens=False).ids
    said, end = write(begin(tokenizer), [*tokens, number(tokenizer, "<|return|>")])
    assert (said.text, said.calls, end) == (quoted, (), "stop")


def test_no_character_goes_on_behind_a_mark(tokenizer: Tokenizer) -> None:
    before = tokenizer.encode(f"{ANALYSIS}a", add_special_tokens=False).ids
    half = number(tokenizer, "\u00e2")  # the first of three bytes
    behind = tokenizer.encode(f"<|end|><|start|>assistant{FINAL}b<|return|>", add_special_tokens=False).ids
    said, end = write(begin(tokenizer), [*before, half, *behind])
    assert (said.reasoning, said.text, end) == ("a", "b", "stop")


@pytest.mark.parametrize("cut", ["<|channel|>", "<|channel|>ana", "<|channel|>commentary to=functions.wea"])
def test_of_a_header_that_was_cut_off_there_is_nothing(cut: str, tokenizer: Tokenizer) -> None:
    text = THOUGHT + cut
    room = len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert say(tokenizer, text, room=room) == ("Need it.", "", [], "length")


def test_what_is_said_is_told_at_once(tokenizer: Tokenizer) -> None:
    answer = begin(tokenizer)
    text = f"{ANALYSIS}abc<|end|><|start|>assistant{FINAL}def"
    pieces = [answer.take(t, None, 99).piece for t in tokenizer.encode(text, add_special_tokens=False).ids]
    assert "".join(piece.reasoning for piece in pieces) == "abc"
    assert "".join(piece.text for piece in pieces) == "def"
    assert not answer.text.thinking


def test_stop_strings_are_looked_for_in_the_text_alone(tokenizer: Tokenizer) -> None:
    text = "<|channel|>analysis<|message|>one two<|end|><|start|>assistant<|channel|>final<|message|>one, two"
    assert say(tokenizer, text, stop=("two", "final", "analysis")) == ("one two", "one, ", [], "stop")


def test_scores_are_of_the_text_alone(tokenizer: Tokenizer) -> None:
    before = tokenizer.encode(f"{THOUGHT}{FINAL}", add_special_tokens=False).ids
    text = tokenizer.encode("Hello!", add_special_tokens=False).ids
    said, _ = write(begin(tokenizer), [*before, *text, number(tokenizer, "<|return|>")])
    places = range(len(before), len(before) + len(text))
    assert [score.token for score in said.scores] == [str(place).encode() for place in places]


PARTS = [
    *MARKS[:5],
    "assistant",
    " to=functions.weather",
    "analysis",
    "final",
    "commentary",
    "json",
    " ",
    "{}",
    "a b",
    "x",
]


@given(parts=st.lists(st.sampled_from(PARTS), max_size=14), cuts=st.sets(st.integers(0, 60)))
def test_how_text_is_cut_makes_no_difference(parts: list[str], cuts: set[int]) -> None:
    def told(pieces: list[str]) -> tuple[str, str, int]:
        calls = HarmonyCalls(HARMONY, (WEATHER,), True)
        scanner = HarmonyScanner(calls, False)
        said = [*map(scanner.feed, pieces), scanner.flush()]
        return "".join(a for a, _ in said), "".join(b for _, b in said), calls.complete

    whole = [Mark(part) if part in MARKS else part for part in parts]
    pieces: list[str] = []
    for part in whole:
        places = sorted({0, len(part), *(cut for cut in cuts if cut < len(part))})
        pieces += [part] if isinstance(part, Mark) else [part[start:end] for start, end in pairwise(places)]
    assert told(pieces) == told(whole)
    # Letters that nobody wrote in a header are somewhere.
    thought, text, _ = told(whole)
    assert (thought + text).count("x") == parts.count("x")


def ask(*messages: Message, **fields: Any) -> GenerationRequest:
    return GenerationRequest(
        model="tiny", messages=messages or (Message("user", "hi"),), max_tokens=9, max_tokens_may_shrink=True, **fields
    )


def prompt_of(desk: Desk, tokenizer: Tokenizer, *messages: Message, **fields: Any) -> str:
    encoded = desk.engine.load("tiny", desk.folder("tiny")).prompt.encode(ask(*messages, **fields))
    text: str = tokenizer.decode(encoded.tokens, skip_special_tokens=False)
    return text


@pytest.mark.parametrize(
    ("effort", "told"), [("minimal", "low"), ("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "high")]
)
def test_the_template_is_told_how_much_to_think(effort: str, told: str, model_desk: Desk, tokenizer: Tokenizer) -> None:
    text = prompt_of(model_desk, tokenizer, thinking=Thinking(True, "reasoning_effort", effort))
    assert f"Reasoning: {told}" in text
    assert text.endswith("<|start|>assistant")


def test_who_wants_no_thoughts_has_the_answer_begun(model_desk: Desk, tokenizer: Tokenizer) -> None:
    unwanted = Thinking(False, "think")
    assert prompt_of(model_desk, tokenizer, thinking=unwanted).endswith(f"<|start|>assistant{FINAL}")
    with_tools = prompt_of(model_desk, tokenizer, thinking=unwanted, tools=ToolUse(tools=(WEATHER,)))
    assert with_tools.endswith("<|start|>assistant")
    assert "Reasoning: low" in with_tools


def test_a_loaded_model_ends_with_a_call_and_not_with_a_message(model_desk: Desk, tokenizer: Tokenizer) -> None:
    model = model_desk.engine.load("tiny", model_desk.folder("tiny"))
    assert model.harmony
    assert {number(tokenizer, mark) for mark in ("<|return|>", "<|call|>")} <= model.end_tokens
    assert number(tokenizer, "<|end|>") not in model.end_tokens


@pytest.mark.parametrize(
    ("text", "told", "calls", "reason"),
    [
        (THOUGHT + "<|channel|>final<|message|>Hello!<|return|>", "Hello!", 0, "stop"),
        (THOUGHT + "<|channel|>commentary to=functions.weather <|constrain|>json" + CALLED, "", 1, "tool_calls"),
    ],
)
def test_an_answer_of_a_loaded_model_is_told_apart(
    text: str,
    told: str,
    calls: int,
    reason: str,
    model_desk: Desk,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = iter(tokenizer.encode(text, add_special_tokens=False).ids)
    monkeypatch.setattr("osaurus.engine.batch.sample", lambda *_: [next(script)])
    row = 10 + calls
    # Where the most probable token is taken, drafts are checked without a draw.
    sampling = Sampling(temperature=1)
    model_desk.add(row, "hi", tools=ToolUse(tools=(WEATHER,)), max_tokens=99, sampling=sampling)
    assert model_desk.finish()[row] == told
    end = model_desk.ends[row]
    assert isinstance(end, Finished)
    assert (model_desk.thoughts[row], len(gathered(model_desk.calls[row])), end.reason) == ("Need it.", calls, reason)
    assert end.usage.reasoning_tokens > 0


def biased(tokenizer: Tokenizer, mark: str) -> Sampling:
    return Sampling(temperature=0, bias=((number(tokenizer, mark), 100.0),))


def test_json_of_a_schema_is_held_by_a_grammar(model_desk: Desk) -> None:
    model_desk.add(1, "hi", format=FORMAT, max_tokens=50)
    assert json.loads(model_desk.finish()[1]) in ("yes", "no")
    assert model_desk.thoughts[1] == ""


def test_behind_thoughts_that_were_asked_for_the_answer_is_held_as_well(model_desk: Desk, tokenizer: Tokenizer) -> None:
    thinking = Thinking(True, "reasoning_effort", "low")
    model_desk.add(2, "hi", format=FORMAT, thinking=thinking, max_tokens=50, sampling=biased(tokenizer, "<|end|>"))
    assert json.loads(model_desk.finish()[2]) in ("yes", "no")
    end = model_desk.ends[2]
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.reasoning_tokens > 0) == ("stop", True)


@pytest.mark.parametrize("room", range(1, 7))
def test_the_header_of_an_answer_counts_among_its_tokens(room: int, model_desk: Desk, tokenizer: Tokenizer) -> None:
    thinking = Thinking(True, "think")
    model_desk.add(3, "hi", format=FORMAT, thinking=thinking, max_tokens=room, sampling=biased(tokenizer, "<|end|>"))
    model_desk.finish()
    end = model_desk.ends[3]
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.completion_tokens) == ("length", room)


@pytest.mark.parametrize("fields", [{"required": True}, {"only": "weather"}])
@pytest.mark.parametrize("thinking", [None, Thinking(True, "think")])
def test_a_tool_that_must_be_called_is(
    fields: dict[str, Any], thinking: Thinking | None, model_desk: Desk, tokenizer: Tokenizer
) -> None:
    use = ToolUse(tools=(WEATHER,), parallel=False, **fields)
    sampling = biased(tokenizer, "<|end|>")
    model_desk.calls.pop(4, None)
    model_desk.texts.pop(4, None)
    model_desk.add(4, "hi", tools=use, thinking=thinking, max_tokens=200, sampling=sampling)
    assert model_desk.finish()[4] == ""
    [call] = gathered(model_desk.calls[4])
    assert (call.name, list(json.loads(call.arguments))) == ("weather", ["city"])


def test_the_template_knows_tools_and_takes_one_call_a_message() -> None:
    abilities = TemplateAbilities.found_in(JinjaTemplate(TEMPLATE))
    assert (abilities.definitions, abilities.calls, abilities.several) == (True, "objects", False)
    calls = (ToolCall("weather", '{"city": "Rome"}', "1"), ToolCall("weather", '{"city": "Oslo"}', "2"))
    results = (Message("tool", "hot", call_id="1"), Message("tool", "cold", call_id="2"))
    turns = (Message("user", "?"), Message("assistant", "", calls=calls), *results)
    text = JinjaTemplate(TEMPLATE).apply_chat_template(
        as_given(turns, abilities), tokenize=False, add_generation_prompt=True
    )
    places = [text.index(word) for word in ("Rome", "hot", "Oslo", "cold")]
    assert places == sorted(places)
