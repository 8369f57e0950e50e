"""Which form of calls a model has, by what mlx_lm finds and by what its template spells."""

import json
from importlib import import_module
from typing import Any

import pytest

from osaurus.engine.backend import Backend
from osaurus.engine.tool_calls import CallScanner
from osaurus.engine.tool_families import known_form, spelled_form
from osaurus.engine.tool_formats import ToolFormat

from .doubles import tool

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "sunny": {"type": "boolean"}},
}
TOOLS = (tool("weather", PARAMETERS),)
ARGUMENTS = {"city": "Paris", "days": 2, "sunny": True}

DSML = """<｜DSML｜NAME>
<｜DSML｜invoke name="weather">
<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>
<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>
<｜DSML｜parameter name="sunny" string="false">true</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜NAME>"""  # noqa: RUF001

# What each family's template spells, and what its models write; mlx_lm knows none of them.
FAMILIES = {
    "Nemotron Nano v2": (
        "<TOOLCALL>",
        '<TOOLCALL>[{"name": "weather", "arguments": {"city": "Paris", "days": 2, "sunny": true}}]</TOOLCALL>',
    ),
    "Command": (
        "<|START_ACTION|>",
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "weather", '
        '"parameters": {"city": "Paris", "days": 2, "sunny": true}}\n]<|END_ACTION|>',
    ),
    "Apertus": (
        "<|tools_prefix|>",
        '<|tools_prefix|>[{"weather": {"city": "Paris", "days": 2, "sunny": true}}]<|tools_suffix|>',
    ),
    "Seed-OSS": (
        "<seed:tool_call>",
        "<seed:tool_call>\n<function=weather>\n<parameter=city>Paris</parameter>\n<parameter=days>2</parameter>\n"
        "<parameter=sunny>True</parameter>\n</function>\n</seed:tool_call>",
    ),
    "DeepSeek V3.2": ("'｜DSML｜' function_calls message.tool_calls", DSML.replace("NAME", "function_calls")),  # noqa: RUF001
    "DeepSeek V4": ("'｜DSML｜' tool_calls", DSML.replace("NAME", "tool_calls")),  # noqa: RUF001
    "DeepSeek V3.1": (
        "<｜tool▁calls▁begin｜>",  # noqa: RUF001
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Paris", "days": 2, "sunny": true}'  # noqa: RUF001
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",  # noqa: RUF001
    ),
    "Hunyuan": (
        "'<tool_calls><tool_call>' + call.name",
        '<tool_calls><tool_call>weather\n```json\n{"city": "Paris", "days": 2, "sunny": true}\n```</tool_call>'
        "</tool_calls>",
    ),
    "Granite 3": (
        "<|tool_call|>",
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris", "days": 2, "sunny": true}}]',
    ),
    "MiniMax M1": (
        "<tool_calls>",
        '<tool_calls>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2, "sunny": true}}\n</tool_calls>',
    ),
    "OLMo 3": ("<function_calls>", '<function_calls>weather(city="Paris", days=2, sunny=true)</function_calls>'),
}


def scan(text: str, form: ToolFormat) -> tuple[str, list[Any]]:
    scanner = CallScanner(form, TOOLS, True)
    said, pieces = scanner.feed(text)
    rest, others = scanner.flush()
    return said + rest, [json.loads(piece.arguments) for piece in (*pieces, *others) if piece.arguments]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_in_the_form_that_a_template_spells_is_one(family: str) -> None:
    spelled, said = FAMILIES[family]
    form = spelled_form(f"{{% if tools %}}{spelled}{{% endif %}}")
    assert form is not None
    assert scan(f"Wait. {said}", form) == ("Wait. ", [ARGUMENTS])
    more = f"{said.removesuffix(form.end)} and so on{form.end}"
    assert scan(more, form) == (more, [])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_that_is_cut_off_is_whole_or_none(family: str) -> None:
    spelled, said = FAMILIES[family]
    form = spelled_form(spelled)
    assert form is not None
    for length in range(len(said)):
        assert scan(said[:length], form) in ((said[:length], []), ("", [ARGUMENTS]))


def test_a_template_that_spells_no_form_has_none() -> None:
    assert spelled_form("<tool_call> <think> [TOOL] function_calls") is None


@pytest.mark.parametrize("family", ["glm47", "laguna", "longcat", "minicpm5"])
def test_where_nothing_else_says_that_a_call_is_whole_the_mark_behind_it_must(family: str, backend: Backend) -> None:
    module = import_module(f"mlx_lm.tool_parsers.{family}")
    assert known_form(module.tool_call_start, module.tool_call_end, module.parse_tool_call).needs_end


def test_of_mlx_lms_parsers_only_that_of_json_is_held_by_a_grammar(backend: Backend) -> None:
    held = []
    for family in ("json_tools", "qwen3_coder", "mistral", "gemma4", "pythonic", "kimi_k2"):
        module = import_module(f"mlx_lm.tool_parsers.{family}")
        form = known_form(module.tool_call_start, module.tool_call_end, module.parse_tool_call)
        assert not form.needs_end
        held += [family] if form.parse is None else []
    assert held == ["json_tools"]
