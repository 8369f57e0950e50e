"""LangChain's chat models in front of the server at OSU_TEST_URL."""

import os
from typing import Any

import ollama
import openai
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

URL = os.environ["OSU_TEST_URL"]
MODEL = "smollm2:135m"
QUESTION = "Tell me the capital of France."
ANSWER = "The capital of France is Paris."
STORY = "Write a very long story."


def chat_openai(model: str = MODEL, tokens: int | None = None, **settings: Any) -> BaseChatModel:
    settings = {"temperature": 0, "max_tokens": tokens, **settings}
    return ChatOpenAI(base_url=f"{URL}/v1", api_key="none", model=model, max_retries=0, **settings)


def chat_ollama(model: str = MODEL, tokens: int | None = None, **settings: Any) -> BaseChatModel:
    return ChatOllama(base_url=URL, model=model, **{"temperature": 0, "num_predict": tokens, **settings})


@pytest.fixture(params=[chat_openai, chat_ollama], ids=["openai", "ollama"])
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_an_answer_has_its_text_and_its_usage(make: Any) -> None:
    answer = make().invoke(QUESTION)
    assert answer.content == ANSWER
    assert (answer.usage_metadata["input_tokens"], answer.usage_metadata["output_tokens"]) == (37, 8)


def test_a_stream_holds_the_same_answer_and_its_usage(make: Any) -> None:
    settings = {"stream_usage": True} if make is chat_openai else {}
    chunks = list(make(**settings).stream(QUESTION))
    assert len([chunk for chunk in chunks if chunk.content]) > 1
    whole = sum(chunks[1:], start=chunks[0])
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == ANSWER
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["total_tokens"] == 45


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_model_that_does_not_exist_is_an_error_of_the_sdks_own(make: Any, stream: bool) -> None:
    error: Any = openai.NotFoundError if make is chat_openai else ollama.ResponseError
    model = make("nope")
    with pytest.raises(error, match="Model not found: nope") as raised:
        list(model.stream(QUESTION)) if stream else model.invoke(QUESTION)
    assert raised.value.status_code == 404


def test_a_model_that_does_not_exist_is_noticed_when_the_chat_is_made() -> None:
    with pytest.raises(ValueError, match="nope"):
        chat_ollama("nope", validate_model_on_init=True)
    chat_ollama("smollm2-135m-instruct", validate_model_on_init=True)


def test_stop_ends_the_answer_before_the_word(make: Any) -> None:
    assert make().invoke(QUESTION, stop=[" Paris"]).content == "The capital of France is"


def test_the_same_seed_gives_the_same_answer(make: Any) -> None:
    model = make(temperature=1.5, top_p=1.0, seed=7, tokens=6)
    assert model.invoke(STORY).content == model.invoke(STORY).content


def test_a_conversation_is_read_from_its_beginning(make: Any) -> None:
    conversation = [HumanMessage(QUESTION), AIMessage(ANSWER), HumanMessage("And of Italy?")]
    assert make().invoke(conversation).content == "The capital of Italy is Rome."


def test_a_stream_that_is_left_in_the_middle_does_not_disturb_the_next_request(make: Any) -> None:
    stream = make(tokens=4000).stream(STORY)
    while not next(stream).content:
        pass
    stream.close()
    assert make().invoke(QUESTION).content == ANSWER


@tool
def get_weather(location: str) -> str:
    """Get current temperature for a given location."""
    return f"It is 31 degrees in {location}."


class Capital(BaseModel):
    """The capital of a country."""

    country: str = Field(max_length=20)
    capital: str = Field(max_length=20)


# A model of this size calls unasked where it sees that it did so before.
BEFORE = [
    HumanMessage("What is the weather like in Rome today?"),
    AIMessage("", tool_calls=[{"name": "get_weather", "args": {"location": "Rome"}, "id": "call_1"}]),
    ToolMessage("23 degrees, sunny", tool_call_id="call_1", name="get_weather"),
    AIMessage("It is 23 degrees and sunny in Rome."),
    HumanMessage("What is the weather like in Paris today?"),
]


def test_an_agent_calls_a_tool_and_tells_what_it_answered(make: Any) -> None:
    model = make(tokens=60)
    call = model.bind_tools([get_weather]).invoke(BEFORE)
    assert [entry["name"] for entry in call.tool_calls] == ["get_weather"]
    result = get_weather.invoke(call.tool_calls[0])
    assert "31 degrees in Paris" in result.content
    assert "31" in model.invoke([*BEFORE, call, result]).content


def test_a_call_that_streams_is_gathered(make: Any) -> None:
    chunks = list(make(tokens=60).bind_tools([get_weather]).stream(BEFORE))
    whole = sum(chunks[1:], start=chunks[0])
    assert isinstance(whole, AIMessageChunk)
    [call] = whole.tool_calls
    assert call["name"] == "get_weather"
    assert "Paris" in call["args"]["location"]


def test_a_call_that_must_be_made_is_made() -> None:
    model = chat_openai(tokens=60).bind_tools([get_weather], tool_choice="get_weather")
    [call] = model.invoke("What is the weather like in Paris today?").tool_calls
    assert "Paris" in call["args"]["location"]


@pytest.mark.parametrize(
    ("make", "method"),
    # Ollama's API has no way to insist on a call.
    [(chat_openai, "json_schema"), (chat_openai, "function_calling"), (chat_ollama, "json_schema")],
)
def test_an_answer_is_parsed_into_a_class(make: Any, method: str) -> None:
    model = make(tokens=60, temperature=1, seed=4).with_structured_output(Capital, method=method)
    assert isinstance(model.invoke(QUESTION), Capital)
