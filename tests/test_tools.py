"""Tools and formats in request bodies, of both dialects."""

import json
from typing import Any

import pytest

from osaurus.chat import (
    CallPiece,
    Completion,
    Event,
    Finished,
    GenerationRequest,
    InvalidRequest,
    JsonFormat,
    Message,
    Piece,
    Timings,
    ToolCall,
    ToolUse,
    Usage,
)
from osaurus.dialects import ollama, openai
from osaurus.dialects.tools import MOST_TOOLS

from .test_ollama import NOON

TURN = {"role": "user", "content": "hi"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "It rains.", "parameters": PARAMETERS}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
USAGE = Usage(prompt_tokens=11, completion_tokens=5)
TIMINGS = Timings(total=40, load=10, prompt=20, generation=10)
DONE = Finished(reason="tool_calls", usage=USAGE, timings=TIMINGS)
CUT = Finished(reason="length", usage=USAGE, timings=TIMINGS)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [TURN], **fields}).encode()


def asked(**fields: Any) -> GenerationRequest:
    """Return what is asked of the model by a chat completion with these fields."""
    [only] = openai.chat_call(body(**fields)).requests
    return only


def tools(**fields: Any) -> ToolUse:
    found = asked(**fields).tools
    assert found is not None
    return found


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        openai.chat_call(body(**fields))
    return caught.value


def test_a_tool_is_passed_on_as_it_is_described() -> None:
    [tool] = tools(tools=[WEATHER]).tools
    assert json.loads(tool.definition) == WEATHER
    assert json.loads(tool.parameters) == PARAMETERS
    assert (tool.name, tool.strict, tool.asked_by) == ("weather", False, "tools[0].function.parameters")


def test_a_tool_needs_a_name_and_nothing_else() -> None:
    [tool] = tools(tools=[CLOCK]).tools
    assert json.loads(tool.parameters) == {"type": "object", "properties": {}}


def test_a_strict_tool_is_one() -> None:
    [tool] = tools(tools=[{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]).tools  # type: ignore[dict-item]
    assert tool.strict
    assert "strict" not in json.loads(tool.definition)["function"]


@pytest.mark.parametrize(
    ("choice", "required", "only"),
    [
        (None, False, None),
        ("auto", False, None),
        ("required", True, None),
        ({"type": "function", "function": {"name": "clock"}}, False, "clock"),
    ],
)
def test_what_is_to_be_made_of_tools(choice: Any, required: bool, only: str | None) -> None:
    use = tools(tools=[WEATHER, CLOCK], tool_choice=choice)
    assert (use.required, use.only, use.parallel) == (required, only, True)


def test_calls_may_be_wanted_one_by_one() -> None:
    assert not tools(tools=[WEATHER], parallel_tool_calls=False).parallel


def test_none_means_no_tools() -> None:
    assert asked(tools=[WEATHER], tool_choice="none") == asked()
    assert asked(tools=[]) == asked()


FUNCTION = {"type": "function", "function": {"name": "f"}}


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


def by_schema(**fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": fields}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [FUNCTION] * 129}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "code_interpreter", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [function(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [WEATHER, CLOCK, WEATHER]}, "tools[2].function.name"),
        ({"tools": [function(description="\ud800")]}, "tools[0].function.description"),
        ({"tools": [function(parameters={"a": "\ud800"})]}, "tools[0].function"),
        ({"tools": [FUNCTION], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": function(name="g")}, "tool_choice.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (by_schema(name="x"), "response_format.json_schema.schema"),
        (by_schema(schema={}), "response_format.json_schema.name"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    problem = refusal(**fields)
    assert problem.param == param
    assert problem.message.startswith(f"{param}: ")


def test_there_may_be_so_many_tools() -> None:
    many = [{"type": "function", "function": {"name": f"f{number}"}} for number in range(MOST_TOOLS)]
    assert len(tools(tools=many).tools) == MOST_TOOLS


def test_a_format_is_a_schema() -> None:
    described = {"name": "x", "schema": PARAMETERS, "strict": True}
    assert asked(response_format={"type": "json_schema", "json_schema": described}).format == JsonFormat(
        schema=json.dumps(PARAMETERS), strict=True, asked_by="response_format.json_schema.schema"
    )
    assert asked(response_format={"type": "json_object"}).format == JsonFormat(
        schema='{"type": "object"}', strict=False, asked_by="response_format"
    )
    assert asked(response_format={"type": "text"}).format is None


def test_ollama_has_the_same_in_its_own_words() -> None:
    call = ollama.chat_call(body(tools=[WEATHER], format=PARAMETERS))
    assert call.request is not None
    assert call.request.tools == tools(tools=[WEATHER])
    assert call.request.format == JsonFormat(schema=json.dumps(PARAMETERS), strict=True, asked_by="format")
    plain = ollama.chat_call(body(format="json")).request
    assert plain is not None
    assert plain.format == JsonFormat(schema='{"type": "object"}', strict=False, asked_by="format")


def test_calls_and_results_of_an_ollama_conversation() -> None:
    called = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    turns = [
        TURN,
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "tool_name": "weather", "content": "11 degrees"},
    ]
    call = ollama.chat_call(body(messages=turns))
    assert call.request is not None
    assert call.request.messages[1:] == (
        Message("assistant", "", calls=(ToolCall("weather", '{"city": "Paris"}'),)),
        Message("tool", "11 degrees", tool_name="weather"),
    )


# Answers.

CALLS = (ToolCall("weather", '{"city": "Paris"}'), ToolCall("clock", "{}"))
PIECES: tuple[Event, ...] = (
    Piece("", calls=(CallPiece(0, name="weather"), CallPiece(0, arguments='{"ci'))),
    Piece("", calls=(CallPiece(0, arguments='ty": "Paris"}', last=True),)),
    Piece("", calls=(CallPiece(1, name="clock"), CallPiece(1, arguments="{}", last=True))),
)


def openai_answer(**fields: Any) -> openai.ChatAnswer:
    return openai.ChatAnswer(id="chatcmpl-1", created=1, model="m", **fields)


def test_a_whole_answer_has_calls_and_no_content() -> None:
    [choice] = openai_answer().completion([Completion("", DONE, calls=CALLS)])["choices"]
    ids = [call.pop("id") for call in choice["message"]["tool_calls"]]
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
            {"type": "function", "function": {"name": "clock", "arguments": "{}"}},
        ],
    }
    assert choice["finish_reason"] == "tool_calls"
    assert all(name.startswith("call_") for name in ids)
    assert len(set(ids)) == 2


def test_what_is_said_beside_a_call_is_content() -> None:
    [choice] = openai_answer().completion([Completion("Let me see.", DONE, calls=CALLS)])["choices"]
    assert choice["message"]["content"] == "Let me see."


def test_a_stream_has_each_call_by_its_index() -> None:
    answer = openai_answer(only_calls=True)
    stream = answer.opening() + b"".join(answer.event(event) for event in (*PIECES, DONE))
    chunks = [json.loads(line[6:]) for line in stream.split(b"\n\n") if line.startswith(b"data: {")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": None, "refusal": None}
    first, second, third = (delta["tool_calls"] for delta in deltas[1:4])
    assert first[0].pop("id").startswith("call_")
    assert first == [{"index": 0, "type": "function", "function": {"name": "weather", "arguments": '{"ci'}}]
    assert second == [{"index": 0, "function": {"arguments": 'ty": "Paris"}'}}]
    assert (third[0]["index"], third[0]["function"]) == (1, {"name": "clock", "arguments": "{}"})
    assert deltas[4] == {}
    assert chunks[4]["choices"][0]["finish_reason"] == "tool_calls"


def ollama_answer() -> ollama.Answer:
    return ollama.Answer(model="m", spoken=ollama.as_message)


def said(answer: ollama.Answer, *events: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(answer.event(event, NOON) for event in events).splitlines()]


def test_ollamas_calls_have_objects_for_arguments() -> None:
    whole = ollama_answer().completion(Completion("", DONE, calls=CALLS), NOON)
    assert whole["message"] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"function": {"name": "weather", "arguments": {"city": "Paris"}}},
            {"function": {"name": "clock", "arguments": {}}},
        ],
    }
    assert whole["done_reason"] == "stop"


def test_ollamas_stream_has_each_call_when_it_is_complete() -> None:
    lines = said(ollama_answer(), *PIECES, DONE)
    assert [line["message"].get("tool_calls") for line in lines] == [
        [{"function": {"name": "weather", "arguments": {"city": "Paris"}}}],
        [{"function": {"name": "clock", "arguments": {}}}],
        None,
    ]
    assert [line["done"] for line in lines] == [False, False, True]


def test_a_call_that_was_cut_off_is_text_to_ollama() -> None:
    text = '{"name": "weather", "arguments": {"ci'
    lines = said(ollama_answer(), PIECES[0], CUT)
    assert [line["message"]["content"] for line in lines] == [text, ""]
    cut = Completion("", CUT, calls=(ToolCall("weather", '{"ci'),))
    assert ollama_answer().completion(cut, NOON)["message"] == {"role": "assistant", "content": text}


def test_arguments_that_would_take_too_long_to_read_are_refused() -> None:
    call = {"function": {"name": "weather", "arguments": "[" + "{}," * 2**20 + "0]"}}
    problem = refusal(messages=[TURN, {"role": "assistant", "tool_calls": [call]}])
    assert problem.param == "messages[1].tool_calls[0].function.arguments"
    assert "more than 500,000 values" in problem.message
