"""Function calling and structured output with the openai package for Python.

The starter model was never trained for either.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from ..server import Server
from .conftest import ANSWER, GET_WEATHER, MODEL, QUESTION, WEATHER

pytestmark = pytest.mark.starter

ONE: Any = {"type": "function", "function": {"name": "get_weather"}}
GET_TIME: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Tell the time.",
        "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]},
    },
}


class Forecast(BaseModel):
    """Tell the weather of the next days."""

    location: str = Field(max_length=20)
    days: int = Field(ge=1, le=5)


class Country(BaseModel):
    """A country."""

    name: str = Field(max_length=20)
    capital: str = Field(max_length=20)
    continent: Literal["Europe", "Asia", "Africa"]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, messages: Any = WEATHER, **settings: Any) -> Any:
    """Ask with the example's tool; what is not said is not sent."""
    settings = {"tools": [GET_WEATHER], "temperature": 0, "max_tokens": 60, **settings}
    return client.chat.completions.create(model=MODEL, messages=messages, **settings)


def called(function: str, arguments: str, name: str = "call_1") -> Any:
    """A call as it stands in the history."""
    call = {"id": name, "type": "function", "function": {"name": function, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def told(result: str, name: str = "call_1") -> Any:
    return {"role": "tool", "tool_call_id": name, "content": result}


def location(arguments: str) -> str:
    """The one argument of the example's tool."""
    said = json.loads(arguments)
    assert list(said) == ["location"]
    assert isinstance(said["location"], str)
    return said["location"]


def teller(bounds: Any) -> Any:
    """A tool that takes a story."""
    parameters = {"type": "object", "properties": {"story": {"type": "string", **bounds}}, "required": ["story"]}
    return {"type": "function", "function": {"name": "tell", "parameters": parameters}}


@pytest.mark.parametrize("choice", ["required", ONE], ids=["required", "the function"])
def test_a_call_that_must_be_made_is_made(client: openai.OpenAI, choice: Any) -> None:
    answer = ask(client, tool_choice=choice)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert call.id.startswith("call_")
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert "Paris" in location(call.function.arguments)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens > 10


def test_its_arguments_are_valid_at_any_temperature(client: openai.OpenAI) -> None:
    answer = ask(client, tool_choice=ONE, temperature=2, top_p=1, n=4, seed=1)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        [call] = choice.message.tool_calls
        location(call.function.arguments)


def test_an_automatic_choice_may_be_to_speak(client: openai.OpenAI) -> None:
    [choice] = ask(client, QUESTION, max_tokens=8).choices
    assert choice.message.content
    assert choice.message.tool_calls is None
    assert choice.finish_reason in ("stop", "length")


def test_an_automatic_choice_may_be_to_call(client: openai.OpenAI) -> None:
    # A model of this size calls where it sees that it did so before.
    messages = [
        {"role": "user", "content": "What is the weather like in Rome today?"},
        called("get_weather", '{"location": "Rome, Italy"}'),
        told("23 degrees, sunny"),
        {"role": "assistant", "content": "It is 23 degrees and sunny in Rome."},
        *WEATHER,
    ]
    [choice] = ask(client, messages, tool_choice="auto").choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert [location(call.function.arguments) for call in choice.message.tool_calls] == ["Paris, France"]


def test_without_a_choice_the_model_does_not_hear_of_tools(client: openai.OpenAI) -> None:
    answer = ask(client, QUESTION, tool_choice="none")
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.tool_calls is None
    assert answer.usage.prompt_tokens == 37


def test_several_calls_come_with_one_answer(client: openai.OpenAI) -> None:
    both: Any = [{"role": "user", "content": "What is the weather in Paris, and what is the time in UTC?"}]
    [choice] = ask(client, both, tools=[GET_WEATHER, GET_TIME], tool_choice="required", max_tokens=150).choices
    assert len(choice.message.tool_calls) > 1
    assert {call.function.name for call in choice.message.tool_calls} <= {"get_weather", "get_time"}
    assert len({call.id for call in choice.message.tool_calls}) == len(choice.message.tool_calls)
    assert all(isinstance(json.loads(call.function.arguments), dict) for call in choice.message.tool_calls)
    alone = ask(client, both, tools=[GET_WEATHER, GET_TIME], tool_choice="required", parallel_tool_calls=False)
    assert len(alone.choices[0].message.tool_calls) == 1
    assert alone.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_call_without_room_is_cut_and_says_so(client: openai.OpenAI, stream: bool) -> None:
    answer = ask(client, tool_choice="required", max_tokens=3, stream=stream)
    last = list(answer)[-1] if stream else answer
    assert last.choices[0].finish_reason == "length"


def test_a_call_is_closed_where_room_becomes_scarce(client: openai.OpenAI) -> None:
    story: Any = [{"role": "user", "content": "Tell a very long story."}]
    [choice] = ask(client, story, tools=[teller({})], tool_choice="required", max_tokens=40).choices
    assert choice.finish_reason == "tool_calls"
    assert list(json.loads(choice.message.tool_calls[0].function.arguments)) == ["story"]
    # Where even the shortest has no room it is cut.
    [choice] = ask(client, story, tools=[teller({"minLength": 500})], tool_choice="required", max_tokens=30).choices
    assert choice.finish_reason == "length"


def test_a_stream_tells_each_call_by_its_index(client: openai.OpenAI) -> None:
    both: Any = [{"role": "user", "content": "What is the weather in Paris, and what is the time in UTC?"}]
    settings = {"tools": [GET_WEATHER, GET_TIME], "tool_choice": "required", "max_tokens": 150}
    [whole] = ask(client, both, **settings).choices
    calls: dict[int, Any] = {}
    first, *chunks = ask(client, both, stream=True, stream_options={"include_usage": True}, **settings)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", None)
    *chunks, last, usage = chunks
    for chunk in chunks:
        assert chunk.choices[0].delta.content is None
        for delta in chunk.choices[0].delta.tool_calls:
            if delta.index in calls:
                assert (delta.id, delta.type, delta.function.name) == (None, None, None)
                calls[delta.index].function.arguments += delta.function.arguments
            else:
                assert delta.id.startswith("call_")
                assert (delta.index, delta.type) == (len(calls), "function")
                calls[delta.index] = delta
    assert [(call.function.name, call.function.arguments) for call in calls.values()] == [
        (call.function.name, call.function.arguments) for call in whole.message.tool_calls
    ]
    assert len(chunks) > len(calls)
    assert last.choices[0].finish_reason == whole.finish_reason
    assert usage.usage.completion_tokens > 20


def test_the_streaming_helper_gathers_calls_and_parses_their_arguments(client: openai.OpenAI) -> None:
    settings: Any = {"tools": [openai.pydantic_function_tool(Forecast)], "tool_choice": "required"}
    deltas, done = "", []
    with client.chat.completions.stream(
        model=MODEL, messages=WEATHER, temperature=0, parallel_tool_calls=False, max_tokens=60, **settings
    ) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                deltas += event.arguments_delta
            elif event.type == "tool_calls.function.arguments.done":
                done.append(event)
        final = stream.get_final_completion()
    [event] = done
    assert (event.name, event.arguments) == ("Forecast", deltas)
    assert isinstance(event.parsed_arguments, Forecast)
    calls: Any = final.choices[0].message.tool_calls
    assert [call.function.parsed_arguments for call in calls] == [event.parsed_arguments]
    assert final.choices[0].finish_reason == "tool_calls"


def test_arguments_are_parsed_into_a_class(client: openai.OpenAI) -> None:
    settings: Any = {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 1.5, "seed": 3}
    answer = client.chat.completions.parse(
        model=MODEL, messages=WEATHER, tools=[openai.pydantic_function_tool(Forecast)], max_tokens=60, **settings
    )
    calls: Any = answer.choices[0].message.tool_calls
    assert [type(call.function.parsed_arguments) for call in calls] == [Forecast]


@pytest.mark.parametrize("temperature", [0, 2])
def test_an_answer_is_parsed_into_a_class(client: openai.OpenAI, temperature: float) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, response_format=Country, temperature=temperature, seed=5, max_tokens=80
    )
    assert isinstance(answer.choices[0].message.parsed, Country)
    assert answer.choices[0].finish_reason == "stop"


def test_the_streaming_helper_parses_an_answer_into_a_class(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, response_format=Country, temperature=0, max_tokens=80
    ) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert events.count("content.done") == 1
    assert events.count("content.delta") > 2
    assert isinstance(final.choices[0].message.parsed, Country)


def test_an_answer_may_be_any_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, response_format={"type": "json_object"}, temperature=1, seed=2, max_tokens=40
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice.function.name"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tools": [GET_WEATHER, GET_WEATHER]}, "tools[1].function.name"),
        ({"tools": [{**GET_WEATHER, "type": "web_search"}]}, "tools[0].type"),
        ({"tools": [GET_TIME] * 129}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}]},
            "tools[0].function.parameters",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "any"}, "strict": True},
                }
            },
            "response_format.json_schema.schema",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_cannot_be_done_is_refused_with_the_name_of_the_field(
    client: openai.OpenAI, settings: Any, param: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **{"tool_choice": "auto", **settings}, stream=stream)
    assert (refused.value.code, refused.value.param) == ("invalid_request", param)


def test_an_agent_calls_a_tool_and_tells_what_it_answered(client: openai.OpenAI) -> None:
    """The loop of OpenAI's guide, with a tool whose answer nobody could guess."""
    said = []
    for degrees in (14, 31):
        messages = list(WEATHER)
        [choice] = ask(client, messages, tool_choice=ONE).choices
        [call] = choice.message.tool_calls
        assert "Paris" in location(call.function.arguments)
        messages += [choice.message, told(f"The temperature in Paris is {degrees} degrees Celsius today.", call.id)]
        [choice] = ask(client, messages, tool_choice="none", max_tokens=30).choices
        assert choice.message.tool_calls is None
        assert str(degrees) in choice.message.content
        said.append(choice.message.content)
    assert said[0] != said[1]
