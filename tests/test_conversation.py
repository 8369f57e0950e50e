"""What chat templates are given, by what they can do."""

import json
from typing import Any, Literal

import pytest
from attrs import evolve

from osaurus.chat import GenerationRequest, JsonFormat, Message, Tool, ToolCall, ToolUse
from osaurus.engine.conversation import TemplateAbilities, as_given, definitions, in_turns, told
from osaurus.engine.tool_formats import ToolFormat, from_json, to_json

from .test_prompt import CHATML, SYSTEM_FIRST, JinjaTemplate

# As Qwen's and Hermes' templates do it.
KNOWS_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As DeepSeek's V3 and R1.
KNOWS_CALLS_ONLY = KNOWS_TOOLS.replace("{% if tools %}", "{% if false %}")
TAKES_TEXTS = KNOWS_TOOLS.replace("arguments | tojson", "arguments + ''")
# As DeepSeek's V3.2 does: it parses them, and writes what they say in another form.
PARSES_TEXTS = KNOWS_TOOLS.replace("arguments | tojson", "arguments.split('\"')[3]")
# As an object that was dumped twice.
QUOTES_TEXTS = KNOWS_TOOLS.replace("call.function.arguments | tojson", "(call.function.arguments + '') | tojson")
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "{% for message in messages %}{% if message.role not in ('user', 'assistant') %}{{ raise_exception('what?') }}"
    "{% endif %}{{ message.content }}{% endfor %}"
)
# As Mistral's, Llama's and Gemma's do it.
WANTS_SHORT_IDS = KNOWS_TOOLS.replace(
    "<|im_start|>{{ message.role }}",
    "<|im_start|>{{ message.role }}{% if message.role == 'tool' and message.tool_call_id | length != 9 %}"
    "{{ raise_exception('ids of length 9!') }}{% endif %}",
)
WANTS_ONE_CALL = KNOWS_TOOLS.replace(
    "{% for call in",
    "{% if message.tool_calls and message.tool_calls | length > 1 %}{{ raise_exception('one call!') }}{% endif %}"
    "{% for call in",
)
# As Kimi's do it.
NAMES_BY_ID = KNOWS_TOOLS.replace('"name": "{{ call.function.name }}"', '"id": "{{ call.id }}"')
# As DeepSeek's.
WANTS_SYSTEM_FOR_TOOLS = KNOWS_TOOLS.replace("{% if tools %}", "{% if tools and messages[0].role == 'system' %}")
# As LFM2's and Granite's.
RENDERS_NO_CALLS = (
    "{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
)
WANTS_TURNS = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{{ message.content }}{% endfor %}"
)
# As gpt-oss' does it.
WANTS_THOUGHTS_ALONE = KNOWS_TOOLS.replace(
    "{{ message.content }}",
    "{% if message.tool_calls and message.content and message.thinking %}{{ raise_exception('one of both!') }}"
    "{% endif %}{{ message.content or message.thinking }}",
)
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
ALL = TemplateAbilities(definitions=True, calls="objects")
NONE = TemplateAbilities(results=False)

DEFINITION: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
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
        (CHATML, TemplateAbilities()),
        (KNOWS_TOOLS, ALL),
        (TAKES_TEXTS, TemplateAbilities(definitions=True, calls="texts")),
        (PARSES_TEXTS, TemplateAbilities(definitions=True, calls="texts")),
        (QUOTES_TEXTS, TemplateAbilities(definitions=True)),
        (REFUSES_SYSTEM, TemplateAbilities(results=False, system=False)),
        (SYSTEM_FIRST, NONE),
        (WANTS_SHORT_IDS, ALL),
        (WANTS_ONE_CALL, evolve(ALL, several=False)),
        (WANTS_TURNS, TemplateAbilities(results=False, system=False)),
        (KNOWS_CALLS_ONLY, TemplateAbilities()),
        # As Cohere's and Hermes': without tools it fails.
        (KNOWS_TOOLS.replace("{% if tools %}", "{% if tools | length %}"), ALL),
        (WANTS_THOUGHTS_ALONE, evolve(ALL, thoughts_beside=False)),
        (NAMES_BY_ID, evolve(ALL, named_ids=True)),
        (RENDERS_NO_CALLS, TemplateAbilities(definitions=True)),
        (WANTS_SYSTEM_FOR_TOOLS, evolve(ALL, needs_system=True)),
    ],
)
def test_what_a_template_can_is_found_out_by_trying(source: str, abilities: TemplateAbilities) -> None:
    assert TemplateAbilities.found_in(JinjaTemplate(source)) == abilities


def test_a_template_that_knows_tools_is_given_them_as_they_are() -> None:
    described = {"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}
    assert definitions(USE, ALL) == {"tools": [{"type": "function", "function": described}]}
    assert told(ask(*TURNS, tools=USE), ALL) == TURNS
    user, called, result = as_given(TURNS, ALL)
    name = called["tool_calls"][0].pop("id")
    assert result.pop("tool_call_id") == name
    assert [user, called, result] == [
        {"role": "user", "content": "Paris?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Paris"}},
                }
            ],
        },
        {"role": "tool", "content": "11 degrees", "name": "weather"},
    ]


def test_arguments_are_text_where_a_template_wants_that() -> None:
    given = as_given(TURNS, TemplateAbilities(calls="texts"))
    assert given[1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'


@pytest.mark.parametrize("arguments", ['{"ci', "[1]", "", '"x"'])
@pytest.mark.parametrize("form", ["objects", "texts"])
def test_arguments_that_are_no_object_are_none(arguments: str, form: Literal["objects", "texts"]) -> None:
    cut = Message("assistant", "", calls=(ToolCall("weather", arguments),))
    [given] = as_given([cut], TemplateAbilities(calls=form))
    assert given["tool_calls"][0]["function"]["arguments"] == ({} if form == "objects" else "{}")


TWO = (ToolCall("weather", '{"city": "Paris"}', "call_1"), ToolCall("weather", '{"city": "Rome"}', "call_2"))
LOOP = (
    Message("user", "Where is it warmer?"),
    Message("assistant", "", calls=TWO),
    Message("tool", "21 degrees", call_id="call_2"),
    Message("tool", "11 degrees", call_id="call_1"),
    Message("assistant", "In Rome."),
    Message("user", "Sure?"),
)
UNNAMED = tuple(
    evolve(message, call_id="", calls=tuple(evolve(call, id="") for call in message.calls)) for message in LOOP
)


@pytest.mark.parametrize("messages", [LOOP, UNNAMED])
@pytest.mark.parametrize(
    "source",
    [
        *(CHATML, KNOWS_TOOLS, TAKES_TEXTS, WANTS_SHORT_IDS, WANTS_ONE_CALL, WANTS_TURNS, REFUSES_SYSTEM),
        *(NAMES_BY_ID, RENDERS_NO_CALLS, WANTS_SYSTEM_FOR_TOOLS),
    ],
)
def test_what_was_called_and_answered_can_be_told_to_any_template(source: str, messages: tuple[Message, ...]) -> None:
    template = JinjaTemplate(source)
    abilities = TemplateAbilities.found_in(template)
    request = ask(*messages, tools=USE)
    given = as_given(told(request, abilities), abilities)
    text = template.apply_chat_template(
        given, tokenize=False, add_generation_prompt=True, **definitions(request.tools, abilities)
    )
    for word in ("Paris", "Rome", "11 degrees", "21 degrees", "In Rome.", "Sure?", "weather"):
        assert word in text
    for message in given:
        for call in message.get("tool_calls", []):
            [result] = [other for other in given if other.get("tool_call_id") == call["id"]]
            if messages is LOOP:
                city = "Paris" if result["content"] == "11 degrees" else "Rome"
                assert city in json.dumps(call["function"]["arguments"])


@pytest.mark.parametrize("abilities", [ALL, evolve(ALL, several=False), TemplateAbilities(), NONE])
def test_results_are_in_the_order_of_the_calls(abilities: TemplateAbilities) -> None:
    lost = Message("tool", "42", call_id="call_3")
    text = json.dumps(as_given([*LOOP[:2], lost, *LOOP[2:]], abilities))
    assert text.index("11 degrees") < text.index("21 degrees") < text.index("42") < text.index("In Rome.")


@pytest.mark.parametrize("abilities", [ALL, evolve(ALL, several=False), NONE])
def test_thoughts_are_given_under_each_name_and_once(abilities: TemplateAbilities) -> None:
    called = as_given([LOOP[0], evolve(LOOP[1], reasoning="I compare both."), *LOOP[2:]], abilities)
    assert [called[1][name] for name in THOUGHTS] == ["I compare both."] * 3
    assert sum("thinking" in message for message in called) == 1
    [said] = as_given([Message("assistant", "11.", reasoning="Easy.")], abilities)
    assert said == {"role": "assistant", "content": "11.", **dict.fromkeys(THOUGHTS, "Easy.")}


def test_thoughts_and_what_is_said_are_one_text_where_a_template_wants_only_one_beside_calls() -> None:
    alone = evolve(ALL, thoughts_beside=False)
    [given] = as_given([Message("assistant", "", (CALL,), reasoning="I must look.")], alone)
    assert (given["content"], given["thinking"]) == ("", "I must look.")
    [given] = as_given([Message("assistant", "Wait.", (CALL,), reasoning="I must look.")], alone)
    assert given["content"] == "I must look.\n\nWait."
    assert "thinking" not in given


def test_ids_have_the_names_of_tools_and_count_the_calls_where_a_template_wants_that() -> None:
    given = as_given([*LOOP, *LOOP], evolve(ALL, named_ids=True))
    assert [call["id"] for message in given for call in message.get("tool_calls", [])] == [
        f"functions.weather:{number}" for number in range(4)
    ]
    assert [message["tool_call_id"] for message in given if message["role"] == "tool"] == [
        f"functions.weather:{number}" for number in range(4)
    ]


def test_calls_that_a_template_cannot_render_are_told_in_the_models_own_form() -> None:
    form = ToolFormat("[call]", "[/call]", from_json, write=to_json)
    call = {"name": "weather", "arguments": {"city": "Paris"}}
    said = as_given([evolve(TURNS[1], content="Wait.")], TemplateAbilities(definitions=True), form)
    assert said == [{"role": "assistant", "content": f"Wait.\n[call]{json.dumps([call])}[/call]"}]


def test_where_a_message_has_one_call_its_result_is_behind_it() -> None:
    roles = [message["role"] for message in as_given(LOOP, evolve(ALL, several=False))]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant", "user"]


def test_results_are_messages_where_a_template_has_them_without_calls() -> None:
    assert [message["role"] for message in as_given(LOOP, TemplateAbilities())] == [
        *("user", "assistant", "tool", "tool", "assistant", "user")
    ]


def test_a_result_without_a_call_is_given_as_it_is() -> None:
    lost = Message("tool", "42", tool_name="clock")
    assert as_given([lost], ALL)[0]["content"] == "42"


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


def test_results_that_follow_each_other_are_one_turn_with_what_the_user_says() -> None:
    results = [Message("tool", "1", call_id="a"), Message("tool", "2", call_id="b"), Message("user", "So?")]
    responses = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    assert as_given(results, NONE) == [{"role": "user", "content": f"{responses}\nSo?"}]
    assert as_given(results[:2], NONE) == [{"role": "user", "content": responses}]


def test_what_is_told_joins_the_system_message_there_is() -> None:
    [system, _] = told(ask(Message("system", "Be brief."), Message("user", "x"), tools=USE), NONE)
    assert system.content.startswith("Be brief.\n\n")
    assert "weather" in system.content


def test_where_tools_are_part_of_what_the_system_says_there_is_a_system_message() -> None:
    needs, user = evolve(ALL, needs_system=True), Message("user", "x")
    assert told(ask(user, tools=USE), needs) == (Message("system", ""), user)
    assert told(ask(Message("system", "Be brief."), user, tools=USE), needs)[0].content == "Be brief."
    assert told(ask(user), needs) == (user,)


def test_system_messages_at_the_beginning_are_one() -> None:
    user = Message("user", "Hi")
    several = [Message("system", "Be brief."), Message("system", ""), Message("system", "Be kind.")]
    later = (user, Message("system", "Be quick."), user)
    assert told(ask(*several, *later), ALL) == (Message("system", "Be brief.\n\nBe kind."), *later)
    [system, *_] = told(ask(*several, user, tools=USE), NONE)
    assert system.content.startswith("Be brief.\n\nBe kind.\n\nYou can call these tools:")
    assert told(ask(*several), ALL) == (Message("system", "Be brief.\n\nBe kind."),)


def test_where_there_are_no_system_messages_the_user_says_what_they_say() -> None:
    without = TemplateAbilities(system=False)
    system, user = Message("system", "Be brief."), Message("user", "Paris?")
    assert as_given([system, user, system], without) == [
        {"role": "user", "content": "Be brief.\n\nParis?"},
        {"role": "user", "content": "Be brief."},
    ]
    answered = [system, Message("assistant", "Hello."), user]
    assert [message["role"] for message in as_given(answered, without)] == ["user", "assistant", "user"]
    [told_tools] = as_given(told(ask(user, tools=USE), without), without)
    assert told_tools["content"].startswith("You can call these tools:")
    assert told_tools["content"].endswith("\n\nParis?")


def test_neighbours_of_one_role_can_be_one_turn() -> None:
    messages = [
        *(Message("user", "a"), Message("user", "b"), Message("system", "c")),
        *(Message("assistant", "d", reasoning="1"), Message("assistant", "e", reasoning="2")),
        *(Message("assistant", "f", calls=TWO), Message("tool", "g"), Message("tool", "h")),
    ]
    given = as_given(messages, ALL)
    assert in_turns(given) == [
        {"role": "user", "content": "a\n\nb\n\nc"},
        {"role": "assistant", "content": "d\n\ne", **dict.fromkeys(THOUGHTS, "1\n\n2")},
        *given[5:],
    ]


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
