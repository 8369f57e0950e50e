"""How families of models mark thoughts and calls, with tokens as their tokenizers have them, through the engine."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tokenizers import AddedToken, Tokenizer

from osaurus.chat import Sampling, Thinking, Tool, ToolUse
from osaurus.engine.backend import Backend
from osaurus.model_config import HARMONY_MARKS

from .conftest import CHAT_TEMPLATE, TINY_CONFIG, write_tiny_model
from .desk import Desk, another
from .test_constrained import FORMAT, SCHEMA, TOOLS, Said, called, reason

Family = Callable[..., Desk]

# What mlx_lm knows the forms by, in templates.
JSON_TOOLS = "{# <tool_call> tool_call.name #}"
MISTRAL = "{# [TOOL_CALLS] #}"
GEMMA = "{# <|tool_call> <tool_call|> #}"
FUNCTION_GEMMA = "{# <start_function_call> #}"
KIMI = "{# <|tool_calls_section_begin|> #}"
# What it does not know them by.
NEMOTRON = "{# <TOOLCALL> #}"
COMMAND = "{# <|START_ACTION|> #}"
TELLS_TOOLS = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"


@pytest.fixture
def family(backend: Backend, tmp_path: Path, tiny_tokenizer: Tokenizer) -> Family:
    """What makes a desk with a model of these special tokens, these that are added as text, and more of a template."""

    def made(template: str = "", special: Sequence[str] = (), plain: Sequence[str] = ()) -> Desk:
        tokenizer = Tokenizer.from_str(tiny_tokenizer.to_str())
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
        folder = tmp_path / "tests" / "tiny"
        write_tiny_model(folder, tokenizer, architecture={**TINY_CONFIG, "max_position_embeddings": 4096})
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(
            json.dumps({**config, "chat_template": TELLS_TOOLS + CHAT_TEMPLATE + template})
        )
        return another(backend, tmp_path)

    return made


def tokens(desk: Desk, text: str) -> list[int]:
    tokenizer = desk.engine.load("tiny", desk.folder("tiny")).tokenizer
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def answer(desk: Desk, text: str, **fields: Any) -> str:
    """What is told of an answer that the model writes so."""
    desk.add(1, "Hello", **{"max_tokens": 300, **fields})
    [progress] = desk.engine._resident["tiny"][1]._reading.waiting
    progress.sampler = Said(tokens(desk, text + "<|im_end|>")).sampler(progress.sampler)
    return desk.finish().get(1, "")


def prompt(desk: Desk, **fields: Any) -> str:
    desk.add(2, "Hello", **fields)
    row = desk.engine._resident["tiny"][1]._reading.waiting[-1].row
    desk.engine.remove(2)
    text = desk.engine.load("tiny", desk.folder("tiny")).tokenizer.decode(row.prompt, skip_special_tokens=False)
    assert isinstance(text, str)
    return text


# Qwen's tokenizers have these as added tokens that are not special.
QWEN: dict[str, Any] = {"template": JSON_TOOLS, "plain": ["<tool_call>", "</tool_call>", "<think>", "</think>"]}


@pytest.mark.parametrize(
    "use", [ToolUse(tools=TOOLS, required=True, parallel=False), ToolUse(tools=TOOLS, only="clock")]
)
def test_a_call_is_enforced_where_its_marks_are_added_tokens(family: Family, use: ToolUse) -> None:
    desk = family(**QWEN)
    desk.add(1, "Hello", tools=use, sampling=Sampling(temperature=2.0, seed=1), max_tokens=600)
    assert desk.finish()[1] == ""
    assert {name for name, _ in called(desk, 1)} <= {"weather", "clock"} - ({"weather"} if use.only else set())
    assert reason(desk, 1) == "tool_calls"


@pytest.mark.parametrize("space", ["\n", "\n\n\n", ""])
def test_a_call_that_a_model_begins_ends_with_its_own_mark(family: Family, space: str) -> None:
    desk = family(**QWEN)
    text = f'<tool_call>\n{{"name": "clock", "arguments": {{"hours": 12}}}}{space}</tool_call>'
    assert answer(desk, text, tools=ToolUse(tools=TOOLS)) == ""
    assert called(desk, 1) == [("clock", {"hours": 12})]
    assert reason(desk, 1) == "tool_calls"


def test_a_call_or_json_where_the_mark_is_an_added_token(family: Family) -> None:
    desk = family(**QWEN)
    for number, begin in enumerate(["<tool_call>", "{"]):
        [token] = tokens(desk, begin)
        sampling = Sampling(temperature=0, bias=((token, 100.0),))
        desk.add(number, "Hello", tools=ToolUse(tools=TOOLS), format=FORMAT, sampling=sampling, max_tokens=300)
    texts = desk.finish()
    assert called(desk, 0)
    assert reason(desk, 0) == "tool_calls"
    jsonschema.validate(json.loads(texts[1]), SCHEMA)


def test_thoughts_between_added_tokens_are_told_apart(family: Family) -> None:
    desk = family(**QWEN)
    assert answer(desk, "<think>\nWell.\n</think>\n\nHi.") == "Hi."
    assert desk.thoughts[1] == "Well."


def test_a_call_in_thoughts_that_never_end_is_a_thought(family: Family) -> None:
    desk = family(**QWEN)
    call = '<tool_call>\n{"name": "clock", "arguments": {"hours": 12}}\n</tool_call>'
    assert answer(desk, f"<think>\n{call}", tools=ToolUse(tools=TOOLS)) == ""
    assert (desk.thoughts[1], called(desk, 1), reason(desk, 1)) == (call, [], "stop")


WEATHER = Tool(
    name="get_weather",
    definition=json.dumps({"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}),
    parameters='{"type": "object"}',
    strict=False,
    asked_by="tools[0]",
)


@pytest.mark.parametrize(
    ("template", "special", "text"),
    [
        (MISTRAL, ["[TOOL_CALLS]", "[ARGS]"], '[TOOL_CALLS]get_weather[ARGS]{"city": "12, Paris"}'),
        (
            MISTRAL,
            ["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
            '[TOOL_CALLS]get_weather[CALL_ID]abc123def[ARGS]{"city": "12, Paris"}',
        ),
        (MISTRAL, [], '[TOOL_CALLS]get_weather[CALL_ID]abc123def[ARGS]{"city": "12, Paris"}'),
        (
            GEMMA,
            ["<|tool_call>", "<tool_call|>", '<|"|>'],
            '<|tool_call>call:get_weather{city:<|"|>12, Paris<|"|>}<tool_call|>',
        ),
        (
            FUNCTION_GEMMA,
            ["<start_function_call>", "<end_function_call>", "<escape>"],
            "<start_function_call>call:get_weather{city:<escape>12, Paris<escape>}<end_function_call>",
        ),
        (
            KIMI,
            [
                "<|tool_calls_section_begin|>",
                "<|tool_calls_section_end|>",
                "<|tool_call_begin|>",
                "<|tool_call_end|>",
                "<|tool_call_argument_begin|>",
            ],
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
            '{"city": "12, Paris"}<|tool_call_end|><|tool_calls_section_end|>',
        ),
        (
            NEMOTRON,
            ["<TOOLCALL>", "</TOOLCALL>"],
            '<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "12, Paris"}}]</TOOLCALL>',
        ),
        (
            COMMAND,
            ["<|START_ACTION|>", "<|END_ACTION|>"],
            '<|START_ACTION|>[\n{"tool_call_id": "0", "tool_name": "get_weather", '
            '"parameters": {"city": "12, Paris"}}\n]<|END_ACTION|>',
        ),
    ],
)
def test_special_tokens_within_a_call_are_read(family: Family, template: str, special: list[str], text: str) -> None:
    desk = family(template, special)
    assert answer(desk, text, tools=ToolUse(tools=(WEATHER,))) == ""
    assert called(desk, 1) == [("get_weather", {"city": "12, Paris"})]
    assert reason(desk, 1) == "tool_calls"


def test_each_of_several_calls_may_have_an_id(family: Family) -> None:
    desk = family(MISTRAL, ["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"])
    said = [f'[TOOL_CALLS]get_weather[CALL_ID]abc12345{number}[ARGS]{{"a": {number}}}' for number in range(2)]
    assert answer(desk, "".join(said), tools=ToolUse(tools=(WEATHER,))) == ""
    assert called(desk, 1) == [("get_weather", {"a": 0}), ("get_weather", {"a": 1})]


@pytest.mark.parametrize(
    ("special", "text"),
    [
        (["[THINK]", "[/THINK]"], "[THINK]Well.[/THINK]Hi."),
        (["<seed:think>", "</seed:think>"], "<seed:think>\nWell.\n</seed:think>\nHi."),
        (["<|channel>", "<channel|>"], "<|channel>thought\nWell.\n<channel|>Hi."),
        (["<|START_THINKING|>", "<|END_THINKING|>"], "<|START_THINKING|>Well.<|END_THINKING|>Hi."),
        (["<|inner_prefix|>", "<|inner_suffix|>"], "<|inner_prefix|>Well.<|inner_suffix|>Hi."),
    ],
)
def test_thoughts_between_special_tokens_are_told_apart(family: Family, special: list[str], text: str) -> None:
    desk = family(special=special)
    assert answer(desk, text, thinking=Thinking(True, "think")) == "Hi."
    assert desk.thoughts[1] == "Well."


def test_thoughts_between_tags_that_only_the_template_spells_are_told_apart(family: Family) -> None:
    desk = family("{# <think></think> #}")
    assert answer(desk, "<think>\nWell.\n</think>\n\nHi.") == "Hi."
    assert desk.thoughts[1] == "Well."


def test_tags_that_a_template_spells_are_none_where_there_are_messages_on_channels(family: Family) -> None:
    desk = family("{# <think></think> #}", special=HARMONY_MARKS)
    model = desk.engine.load("tiny", desk.folder("tiny"))
    assert (model.harmony, model.thought_tags) == (True, None)


def test_a_grammar_begins_behind_thoughts_whose_mark_is_several_tokens(family: Family) -> None:
    desk = family(special=["<|channel>", "<channel|>"])
    thought = [*tokens(desk, "Well."), *tokens(desk, "<channel|>")]
    desk.add(1, "Hello", format=FORMAT, thinking=Thinking(True, "think"), max_tokens=300)
    [progress] = desk.engine._resident["tiny"][1]._reading.waiting
    progress.sampler = Said(thought).sampler(progress.sampler)
    jsonschema.validate(json.loads(desk.finish()[1]), SCHEMA)
    assert desk.thoughts[1] == "Well."


# Whether to think, as templates decide it.
VARIABLES = "{{ 'E' if enable_thinking is defined and enable_thinking }}{{ 'T' if thinking is defined and thinking }}"
# Cohere's and Seed's.
OTHERS = "{{ 'R' if reasoning is defined and reasoning }}{{ '0' if thinking_budget is defined }}"
UNLESS_TOLD = "{{ 'U' if enable_thinking is not defined or enable_thinking }}"


@pytest.mark.parametrize(
    ("thinking", "told"), [(None, "U"), (Thinking(True, "think"), "ETRU"), (Thinking(False, "think"), "0")]
)
def test_who_asks_for_nothing_gets_what_the_template_does(family: Family, thinking: Thinking | None, told: str) -> None:
    desk = family(VARIABLES + OTHERS + UNLESS_TOLD, plain=["<think>", "</think>"])
    assert prompt(desk, thinking=thinking).endswith(f"<|im_start|>assistant\n{told}")


@pytest.mark.parametrize("thinking", [None, Thinking(False, "think")])
def test_thoughts_that_could_not_be_told_apart_are_not_wanted(family: Family, thinking: Thinking | None) -> None:
    assert prompt(family(VARIABLES + UNLESS_TOLD), thinking=thinking).endswith("<|im_start|>assistant\n")
