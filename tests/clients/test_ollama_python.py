"""The ollama package for Python."""

from collections.abc import Iterator

import ollama
import pytest

from ..server import Server
from .conftest import ANSWER, ITALY, MODEL, QUESTION, STORY

pytestmark = pytest.mark.starter


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as client:
        yield client


def test_an_answer_has_its_text_its_reason_to_end_and_its_counts(client: ollama.Client) -> None:
    answer = client.chat(model=MODEL, messages=QUESTION, options={"temperature": 0})
    assert answer.message.content == ANSWER
    assert (answer.done_reason, answer.prompt_eval_count, answer.eval_count) == ("stop", 37, 8)
    assert answer.total_duration is not None
    assert answer.eval_duration is not None
    assert answer.total_duration >= answer.eval_duration > 0


def test_a_stream_holds_the_same_answer_and_its_counts_at_the_end(client: ollama.Client) -> None:
    lines = list(client.chat(model=MODEL, messages=QUESTION, options={"temperature": 0}, stream=True))
    assert "".join(line.message.content or "" for line in lines) == ANSWER
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert (lines[-1].prompt_eval_count, lines[-1].eval_count) == (37, 8)


def test_models_are_listed_with_their_details(client: ollama.Client) -> None:
    [model] = client.list().models
    assert model.model == "smollm2-135m-instruct:latest"
    assert model.digest is not None
    assert model.details is not None
    assert (model.details.family, model.details.parameter_size) == ("llama", "135M")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_model_that_does_not_exist_is_an_error_of_the_sdks_own(client: ollama.Client, stream: bool) -> None:
    with pytest.raises(ollama.ResponseError) as missing:
        list(client.chat(model="nope", messages=QUESTION, stream=stream))  # type: ignore[call-overload]
    assert (missing.value.status_code, missing.value.error) == (404, "Model not found: nope")


def test_stop_ends_the_answer_before_the_word(client: ollama.Client) -> None:
    answer = client.chat(model=MODEL, messages=QUESTION, options={"temperature": 0, "stop": [" Paris"]})
    assert answer.message.content == "The capital of France is"
    assert answer.done_reason == "stop"


def test_the_same_seed_gives_the_same_answer(client: ollama.Client) -> None:
    options = {"temperature": 1.5, "top_p": 1.0, "seed": 7, "num_predict": 6}
    first, second = (client.chat(model=MODEL, messages=STORY, options=options) for _ in range(2))
    assert first.message.content == second.message.content
    assert first.done_reason == "length"


def test_a_conversation_is_read_from_its_beginning(client: ollama.Client) -> None:
    answer = client.chat(model=MODEL, messages=ITALY, options={"temperature": 0})
    assert answer.message.content == "The capital of Italy is Rome."


def test_a_stream_that_is_left_in_the_middle_does_not_disturb_the_next_request(client: ollama.Client) -> None:
    stream = client.chat(model=MODEL, messages=STORY, options={"num_predict": 4000}, stream=True)
    assert not next(stream).done
    del stream
    answer = client.chat(model=MODEL, messages=QUESTION, options={"temperature": 0})
    assert answer.message.content == ANSWER


def test_a_text_is_generated_and_goes_on_from_its_context(client: ollama.Client) -> None:
    first = client.generate(model=MODEL, prompt="Tell me the capital of France.", options={"temperature": 0})
    assert first.response == ANSWER
    assert first.context is not None
    then = client.generate(
        model=MODEL, prompt="And of Italy?", context=first.context, options={"temperature": 0, "num_predict": 12}
    )
    assert then.prompt_eval_count is not None
    assert then.prompt_eval_count > len(first.context)


def test_a_raw_prompt_streams(client: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 3}
    lines = list(
        client.generate(model=MODEL, prompt="The capital of France is", raw=True, stream=True, options=options)
    )
    assert "".join(line.response or "" for line in lines).startswith(" Paris")
    assert lines[-1].done_reason == "length"


def test_a_model_is_shown_loaded_listed_and_unloaded(client: ollama.Client) -> None:
    shown = client.show(MODEL)
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 8192
    client.generate(model=MODEL, keep_alive="5m")
    [running] = client.ps().models
    assert (running.model, running.context_length) == ("smollm2-135m-instruct:latest", 8192)
    assert running.size is not None
    assert running.size > 9 * 10**7
    assert running.expires_at is not None
    client.generate(model=MODEL, keep_alive=0)
    assert client.ps().models == []


def test_a_model_is_copied_and_deleted(client: ollama.Client) -> None:
    client.copy(MODEL, "a-copy")
    assert "a-copy:latest" in {model.model for model in client.list().models}
    client.delete("a-copy")
    assert [model.model for model in client.list().models] == ["smollm2-135m-instruct:latest"]
