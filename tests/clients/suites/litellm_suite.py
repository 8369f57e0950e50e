"""LiteLLM's `openai/` and `ollama_chat/` in front of the server at OSU_TEST_URL."""

import json
import os
from typing import Any

import litellm
import pytest
from pydantic import BaseModel, Field

URL = os.environ["OSU_TEST_URL"]
MODEL = "smollm2:135m"
QUESTION = [{"role": "user", "content": "Tell me the capital of France."}]
ANSWER = "The capital of France is Paris."
STORY = [{"role": "user", "content": "Write a very long story."}]


@pytest.fixture(params=["openai", "ollama_chat"])
def ask(request: pytest.FixtureRequest) -> Any:
    provider = request.param
    base = f"{URL}/v1" if provider == "openai" else URL

    def completion(messages: Any = QUESTION, model: str = MODEL, **settings: Any) -> Any:
        settings = {"temperature": 0, "num_retries": 0, **settings}
        return litellm.completion(
            model=f"{provider}/{model}", api_base=base, api_key="none", messages=messages, **settings
        )

    return completion


def text(answer: Any) -> str:
    content: str = answer.choices[0].message.content
    return content


def test_an_answer_has_its_text_its_reason_to_end_and_its_usage(ask: Any) -> None:
    answer = ask()
    assert text(answer) == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 8)


def test_a_stream_holds_the_same_answer(ask: Any) -> None:
    texts = [chunk.choices[0].delta.content for chunk in ask(stream=True)]
    assert "".join(filter(None, texts)) == ANSWER
    assert len([text for text in texts if text]) > 1


def test_a_stream_of_the_openai_api_tells_its_usage() -> None:
    chunks = litellm.completion(
        model=f"openai/{MODEL}",
        api_base=f"{URL}/v1",
        api_key="none",
        messages=QUESTION,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    [usage] = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert (usage.prompt_tokens, usage.completion_tokens) == (37, 8)


def test_models_are_listed() -> None:
    models = litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", api_key="none", api_base=f"{URL}/v1"
    )
    assert models == ["smollm2-135m-instruct"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_model_that_does_not_exist_is_an_error_of_the_sdks_own(ask: Any, stream: bool) -> None:
    with pytest.raises(litellm.NotFoundError, match="Model not found: nope"):
        list(ask(model="nope", stream=stream))


def test_stop_ends_the_answer_before_the_word(ask: Any) -> None:
    assert text(ask(stop=[" Paris"])) == "The capital of France is"


def test_the_same_seed_gives_the_same_answer(ask: Any) -> None:
    settings = {"temperature": 1.5, "top_p": 1, "seed": 7, "max_tokens": 6}
    assert text(ask(STORY, **settings)) == text(ask(STORY, **settings))


def test_a_conversation_is_read_from_its_beginning(ask: Any) -> None:
    more = [{"role": "assistant", "content": ANSWER}, {"role": "user", "content": "And of Italy?"}]
    assert text(ask([*QUESTION, *more])) == "The capital of Italy is Rome."


def test_a_stream_that_is_left_in_the_middle_does_not_disturb_the_next_request(ask: Any) -> None:
    stream = ask(STORY, stream=True, max_tokens=4000)
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    del stream
    assert text(ask()) == ANSWER


GET_WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get current temperature for a given location.",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    },
}
WEATHER: Any = [{"role": "user", "content": "What is the weather like in Paris today?"}]


class Capital(BaseModel):
    """The capital of a country."""

    country: str = Field(max_length=20)
    capital: str = Field(max_length=20)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_call_that_must_be_made_is_made(stream: bool) -> None:
    answer: Any = litellm.completion(
        model=f"openai/{MODEL}",
        api_base=f"{URL}/v1",
        api_key="none",
        messages=WEATHER,
        tools=[GET_WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        max_tokens=60,
        stream=stream,
    )
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    assert answer.choices[0].finish_reason == "tool_calls"
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert "Paris" in json.loads(call.function.arguments)["location"]


def test_a_result_is_read(ask: Any) -> None:
    call = {"name": "get_weather", "arguments": '{"location": "Paris"}'}
    more = [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "31 degrees, sunny"},
    ]
    assert "31" in text(ask([*WEATHER, *more], max_tokens=30))


def test_an_answer_keeps_to_a_schema(ask: Any) -> None:
    answer = ask(response_format=Capital, max_tokens=60)
    assert set(json.loads(text(answer))) == {"country", "capital"}
