"""The openai package for Python."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from ..server import Server
from .conftest import ANSWER, ITALY, MODEL, QUESTION, STORY

pytestmark = pytest.mark.starter


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_an_answer_has_its_text_its_reason_to_end_and_its_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 8)


def test_a_stream_holds_the_same_answer_and_its_usage_at_the_end(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == ANSWER
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 45


def test_the_streaming_helper_gathers_the_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == ANSWER


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2-135m-instruct"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_model_that_does_not_exist_is_an_error_of_the_sdks_own(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError, match="Model not found: nope") as missing:
        client.chat.completions.create(model="nope", messages=QUESTION, stream=stream)
    assert missing.value.code == "model_not_found"


def test_a_field_out_of_range_is_an_error_that_names_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=9)
    assert refused.value.param == "temperature"


def test_a_prompt_that_exceeds_the_context_is_refused_with_its_size(client: openai.OpenAI) -> None:
    long: Any = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(openai.BadRequestError) as large:
        client.chat.completions.create(model=MODEL, messages=long, stream=True)
    assert large.value.code == "context_length_exceeded"
    assert "8192" in large.value.message


def test_stop_ends_the_answer_before_the_word(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stop=[" Paris"])
    assert answer.choices[0].message.content == "The capital of France is"
    assert answer.choices[0].finish_reason == "stop"


def test_the_same_seed_gives_the_same_answer(client: openai.OpenAI) -> None:
    first, second = (
        client.chat.completions.create(
            model=MODEL, messages=STORY, temperature=1.5, top_p=1, seed=7, max_tokens=6
        ).choices[0]
        for _ in range(2)
    )
    assert first.message.content == second.message.content
    assert first.finish_reason == "length"


def test_a_conversation_is_read_from_its_beginning(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ITALY, temperature=0)
    assert answer.choices[0].message.content == "The capital of Italy is Rome."


def test_a_stream_that_is_closed_in_the_middle_does_not_disturb_the_next_request(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model=MODEL, messages=STORY, stream=True, max_tokens=4000) as stream:
        next(iter(stream))
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == ANSWER


def test_many_clients_at_once_get_what_each_would_get_alone(client: openai.OpenAI) -> None:
    questions = ["Tell me the capital of France.", "Count to ten.", "Name a colour.", "Who wrote Hamlet?"]

    def ask(question: str) -> str:
        messages: Any = [{"role": "user", "content": question}]
        answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=12)
        return answer.choices[0].message.content or ""

    alone = [ask(question) for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(ask, questions))
    assert together == alone


def test_special_tokens_in_a_users_text_stay_text(client: openai.OpenAI) -> None:
    plain: Any = [{"role": "user", "content": "abc"}]
    spelled: Any = [{"role": "user", "content": "abc<|im_end|>"}]
    counts = []
    for messages in (plain, spelled):
        answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
        assert answer.usage is not None
        counts.append(answer.usage.prompt_tokens)
    # As a special token it would be one more.
    assert counts[1] - counts[0] > 3


def test_several_answers_come_with_one_request(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, n=3, temperature=0)
    assert [choice.message.content for choice in answer.choices] == [ANSWER] * 3
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 24)


def test_several_answers_stream_side_by_side(client: openai.OpenAI) -> None:
    texts = ["", ""]
    for chunk in client.chat.completions.create(model=MODEL, messages=QUESTION, n=2, temperature=0, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [ANSWER] * 2


def test_texts_are_continued(client: openai.OpenAI) -> None:
    prompts = ["The capital of France is", "One, two, three,"]
    answer = client.completions.create(model=MODEL, prompt=prompts, max_tokens=4, temperature=0, logprobs=2, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text.startswith(" Paris")
    assert answer.choices[1].text.startswith(" four")
    scores = answer.choices[0].logprobs
    assert scores is not None
    assert scores.tokens is not None
    assert "".join(scores.tokens) == answer.choices[0].text
    assert scores.token_logprobs is not None
    assert all(score is not None and -20 < score <= 0 for score in scores.token_logprobs)


def test_a_prompt_is_scored_as_evaluations_ask_for_it(client: openai.OpenAI) -> None:
    """How likely each of two ends of a text is, as lm-eval finds it out."""

    def likelihood(end: str) -> tuple[float, bool]:
        text = "The capital of France is"
        answer = client.completions.create(
            model=MODEL, prompt=text + end, max_tokens=1, temperature=0, logprobs=1, echo=True
        )
        [choice] = answer.choices
        assert choice.text.startswith(text + end)
        scores = choice.logprobs
        assert scores is not None
        assert scores.token_logprobs is not None
        assert scores.text_offset is not None
        assert scores.top_logprobs is not None
        assert scores.token_logprobs[0] is None
        of_end = [place for place, offset in enumerate(scores.text_offset) if len(text) <= offset < len(text + end)]
        greedy = all(max(scores.top_logprobs[place].values()) == scores.token_logprobs[place] for place in of_end)
        return sum(scores.token_logprobs[place] for place in of_end), greedy

    right, wrong = likelihood(" Paris"), likelihood(" bananas")
    assert right[0] > wrong[0] + 3
    assert right[1]
    assert not wrong[1]


def test_a_text_streams_behind_its_prompt(client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    chunks = client.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=3,
        temperature=0,
        echo=True,
        stream=True,
        stream_options={"include_usage": True},
    )
    *told, last = list(chunks)
    assert "".join(chunk.choices[0].text for chunk in told).startswith(f"{prompt} Paris")
    assert last.usage is not None
    assert last.usage.completion_tokens == 3


def test_one_model_is_described(client: openai.OpenAI) -> None:
    for name in (MODEL, "HuggingFaceTB/SmolLM2-135M-Instruct"):
        assert client.models.retrieve(name).id == "smollm2-135m-instruct"
    with pytest.raises(openai.NotFoundError, match="Model not found: no/such"):
        client.models.retrieve("no/such")


def test_what_is_not_served_yet_is_an_error_of_the_sdks_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.embeddings.create(model=MODEL, input="text")
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.responses.create(model=MODEL, input="text")
