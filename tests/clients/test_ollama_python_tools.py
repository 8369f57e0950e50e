"""Function calling and structured output with the ollama package for Python.

Ollama's API has no way to insist on a call. A model as small as the starter model calls where it sees in the history
that it did so before.
"""

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
from pydantic import BaseModel, Field

from ..server import Server
from .conftest import ANSWER, GET_WEATHER, MODEL, QUESTION, WEATHER

pytestmark = pytest.mark.starter

BEFORE: Any = [
    {"role": "user", "content": "What is the weather like in Rome today?"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"location": "Rome"}}}]},
    {"role": "tool", "tool_name": "get_weather", "content": "23 degrees, sunny"},
    {"role": "assistant", "content": "It is 23 degrees and sunny in Rome."},
]


def get_weather(location: str) -> str:
    """Get current temperature for a given location.

    Args:
        location: City and country e.g. Bogotá, Colombia

    """
    return f"It is 14 degrees in {location}."


class Country(BaseModel):
    """A country."""

    name: str = Field(max_length=20)
    capital: str = Field(max_length=20)
    inhabitants: int = Field(ge=1, le=10**9)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as client:
        yield client


def ask(client: ollama.Client, messages: Any, tokens: int = 60, **settings: Any) -> Any:
    options = {"temperature": 0, "num_predict": tokens, **settings.pop("options", {})}
    return client.chat(model=MODEL, messages=messages, options=options, **settings)


@pytest.mark.parametrize("tool", [get_weather, GET_WEATHER], ids=["a function", "a definition"])
def test_a_tool_is_called(client: ollama.Client, tool: Any) -> None:
    answer = ask(client, [*BEFORE, *WEATHER], tools=[tool])
    [call] = answer.message.tool_calls
    assert call.function.name == "get_weather"
    assert list(call.function.arguments) == ["location"]
    assert "Paris" in call.function.arguments["location"]
    assert answer.message.content == ""
    assert answer.done_reason == "stop"


def test_a_call_streams_whole(client: ollama.Client) -> None:
    *lines, last = list(ask(client, [*BEFORE, *WEATHER], tools=[get_weather], stream=True))
    [call] = [call for line in lines for call in line.message.tool_calls or ()]
    assert call.function.name == "get_weather"
    assert "Paris" in call.function.arguments["location"]
    assert "".join(line.message.content or "" for line in lines) == ""
    assert (last.done, last.done_reason) == (True, "stop")
    assert last.eval_count > 10


def test_with_tools_the_model_may_speak(client: ollama.Client) -> None:
    answer = ask(client, QUESTION, 8, tools=[get_weather])
    assert answer.message.content
    assert answer.message.tool_calls is None


def test_no_tools_are_as_good_as_none(client: ollama.Client) -> None:
    answer = ask(client, QUESTION, tools=[])
    assert (answer.message.content, answer.prompt_eval_count) == (ANSWER, 37)


def test_an_agent_calls_a_tool_and_tells_what_it_answered(client: ollama.Client) -> None:
    messages = [*BEFORE, *WEATHER]
    answer = ask(client, messages, tools=[get_weather])
    [call] = answer.message.tool_calls
    result = get_weather(**call.function.arguments)
    messages += [answer.message, {"role": "tool", "tool_name": call.function.name, "content": result}]
    answer = ask(client, messages, 30)
    assert answer.message.tool_calls is None
    assert "14" in answer.message.content


@pytest.mark.parametrize("temperature", [0, 2])
def test_an_answer_keeps_to_a_schema(client: ollama.Client, temperature: float) -> None:
    answer = ask(
        client, QUESTION, 80, format=Country.model_json_schema(), options={"temperature": temperature, "seed": 1}
    )
    Country.model_validate_json(answer.message.content)
    assert answer.done_reason == "stop"


def test_a_schema_holds_a_stream_too(client: ollama.Client) -> None:
    lines = list(ask(client, QUESTION, 80, format=Country.model_json_schema(), stream=True))
    assert len(lines) > 3
    Country.model_validate_json("".join(line.message.content or "" for line in lines))


def test_an_answer_may_be_any_object(client: ollama.Client) -> None:
    answer = ask(client, QUESTION, 40, format="json", options={"temperature": 1, "seed": 2})
    assert isinstance(json.loads(answer.message.content), dict)


def test_a_text_keeps_to_a_schema(client: ollama.Client) -> None:
    answer = client.generate(
        model=MODEL,
        prompt="The capital of France, as JSON: ",
        raw=True,
        format=Country.model_json_schema(),
        options={"temperature": 0, "num_predict": 80},
    )
    Country.model_validate_json(answer.response or "")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"format": {"type": "array", "uniqueItems": True}}, "format: .*uniqueItems"),
        ({"tools": [GET_WEATHER, GET_WEATHER]}, r"tools\[1\].function.name"),
        ({"tools": [GET_WEATHER] * 129}, "tools"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_cannot_be_done_is_refused_with_the_name_of_the_field(
    client: ollama.Client, settings: Any, named: str, stream: bool
) -> None:
    with pytest.raises(ollama.ResponseError, match=named) as refused:
        list(ask(client, QUESTION, **settings, stream=stream))
    assert refused.value.status_code == 400
