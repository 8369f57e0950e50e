"""What chat templates are given, by what they can do."""

import json
from typing import Any

import pytest

from osaurus.chat import GenerationRequest, JsonFormat, Message, Tool, ToolCall, ToolUse
from osaurus.engine.conversation import TemplateAbilities, as_given, definitions, told

from .test_prompt import CHATML, SYSTEM_FIRST, JinjaTemplate

# As Qwen's and Hermes' templates do it.
KNOWS_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TAKES_TEXTS = KNOWS_TOOLS.replace("arguments | tojson", "arguments + ''")
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "{% for message in messages %}{% if message.role not in ('user', 'assistant') %}{{ raise_exception('what?') }}"
    "{% endif %}{{ message.content }}{% endfor %}"
)
ALL = TemplateAbilities(definitions=True, calls="objects", results=True)
NONE = TemplateAbilities()

DEFINITION = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TOOL = Tool(name="weather", definition=json.dumps(DEFINITION), parameters="{}", strict=False, asked_by="tools[0]")
USE = ToolUse(tools=(TOOL,))
CALL = ToolCall("weather", '{"city": "Paris"}', "call_1")
TURNS = (
    Message("user", "Paris?"),
    Message("assistant", "", calls=(CALL,)),
    Message("tool", "11 degrees", call_id="call_1"),
)


def ask(*messages: Message, **fields: Any) -> GenerationRequest:
    return GenerationRequest(model="m", messages=messages, max_tokens=1, max_tokens_may_shrink=True, **fields)


@pytest.mark.parametrize(
    ("source", "abilities"),
    [
        (CHATML, TemplateAbilities(results=True)),
        (KNOWS_TOOLS, ALL),
        (TAKES_TEXTS, TemplateAbilities(definitions=True, calls="texts", results=True)),
        (REFUSES_SYSTEM, TemplateAbilities(system=False)),
        (SYSTEM_FIRST, NONE),
    ],
)
def test_what_a_template_can_is_found_out_by_trying(source: str, abilities: TemplateAbilities) -> None:
    assert TemplateAbilities.found_in(JinjaTemplate(source)) == abilities


def test_a_template_that_knows_tools_is_given_them_as_they_are() -> None:
    assert definitions(USE, ALL) == {"tools": [DEFINITION]}
    assert told(ask(*TURNS, tools=USE), ALL) == TURNS
    assert as_given(TURNS, ALL) == [
        {"role": "user", "content": "Paris?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Paris"}},
                }
            ],
        },
        {"role": "tool", "content": "11 degrees", "tool_call_id": "call_1", "name": "weather"},
    ]


def test_arguments_are_text_where_a_template_wants_that() -> None:
    given = as_given(TURNS, TemplateAbilities(calls="texts"))
    assert given[1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'


def test_arguments_that_are_no_json_are_given_as_they_came() -> None:
    cut = Message("assistant", "", calls=(ToolCall("weather", '{"ci'),))
    assert as_given([cut], ALL)[0]["tool_calls"][0]["function"]["arguments"] == '{"ci'


def test_a_template_that_knows_no_tools_is_told_in_words() -> None:
    assert definitions(USE, NONE) == {}
    system, *rest = told(ask(*TURNS, tools=USE), NONE)
    assert system.role == "system"
    assert json.dumps(DEFINITION) in system.content
    assert tuple(rest) == TURNS
    [call, result] = as_given(rest, NONE)[1:]
    assert call == {
        "role": "assistant",
        "content": '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    }
    assert result == {"role": "user", "content": "<tool_response>\n11 degrees\n</tool_response>"}


def test_results_that_follow_each_other_are_one_turn() -> None:
    results = [Message("tool", "1", call_id="a"), Message("tool", "2", call_id="b"), Message("user", "So?")]
    assert as_given(results, NONE) == [
        {"role": "user", "content": "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"},
        {"role": "user", "content": "So?"},
    ]


def test_what_is_told_joins_the_system_message_there_is() -> None:
    [system, _] = told(ask(Message("system", "Be brief."), Message("user", "x"), tools=USE), NONE)
    assert system.content.startswith("Be brief.\n\n")
    assert "weather" in system.content


def test_where_there_are_no_system_messages_the_first_message_is_told() -> None:
    [user] = told(ask(Message("user", "Paris?"), tools=USE), TemplateAbilities(system=False))
    assert user.role == "user"
    assert user.content.endswith("\n\nParis?")


def test_a_format_is_told_in_one_line() -> None:
    wanted = JsonFormat(schema='{"type": "integer"}', strict=True, asked_by="format")
    for abilities in (ALL, NONE):
        system, _ = told(ask(Message("user", "x"), format=wanted), abilities)
        assert '{"type": "integer"}' in system.content
        assert "\n" not in system.content
    any_object = JsonFormat(schema='{"type": "object"}', strict=True, asked_by="format")
    assert "JSON object" in told(ask(Message("user", "x"), format=any_object), ALL)[0].content


def test_without_tools_and_formats_nothing_is_told() -> None:
    assert told(ask(*TURNS), NONE) == TURNS
