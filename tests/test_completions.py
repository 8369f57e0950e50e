"""Text completions: what is asked for, and the shape of what comes back."""

import json
from typing import Any

import pytest
from attrs import evolve

from osaurus.chat import Completion, Failed, InternalError, InvalidRequest, Piece, Text, Tokens, TokenScore
from osaurus.dialects.completions import CompletionAnswer, completion_call
from osaurus.dialects.openai import Call

from .doubles import finished
from .test_openai import FOREIGN


def call(**fields: Any) -> Call:
    return completion_call(json.dumps({"model": "m", "prompt": "Once", **fields}).encode())


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        call(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Once", [Text(text="Once")]),
        ("", [Text(text="")]),
        (["Once", "Twice"], [Text(text="Once"), Text(text="Twice")]),
        ([1, 2, 3], [Tokens((1, 2, 3))]),
        ([[1], [2, 3]], [Tokens((1,)), Tokens((2, 3))]),
    ],
)
def test_a_prompt_is_text_or_tokens_one_or_several(prompt: Any, expected: list[Text | Tokens]) -> None:
    found = call(prompt=prompt)
    assert [request.raw for request in found.requests] == expected
    assert found.prompts == len(expected)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        (7, "prompt"),
        ([], "prompt"),
        (["x"] * 129, "prompt"),
        ([1, "x"], "prompt"),
        ([1, -1], "prompt"),
        ([1, True], "prompt"),
        (["x", 1], "prompt[1]"),
        (["x", {}], "prompt[1]"),
        ("\ud800", "prompt"),
    ],
)
def test_another_prompt_is_refused(prompt: Any, param: str) -> None:
    assert refusal(prompt=prompt).param == param


def test_every_prompt_has_its_choices_and_each_its_own_seed() -> None:
    found = call(prompt=["a", "b"], n=2, seed=7)
    assert [(request.raw, request.sampling.seed) for request in found.requests] == [
        (Text(text="a"), 7),
        (Text(text="a"), 8),
        (Text(text="b"), 7),
        (Text(text="b"), 8),
    ]


def test_the_defaults_are_openais() -> None:
    [request] = call().requests
    assert (request.max_tokens, request.max_tokens_may_shrink, request.echo, request.top_logprobs) == (
        16,
        True,
        False,
        None,
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 3}, "best_of"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"suffix": "end", "prompt": [1]}, "suffix"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


@pytest.mark.parametrize(
    ("field", "value", "neutral"), [*FOREIGN, ("response_format", {"type": "json_object"}, [{"type": "text"}, None])]
)
def test_what_other_servers_have_is_refused_where_it_asks_for_something(
    field: str, value: Any, neutral: list[Any]
) -> None:
    assert refusal(**{field: value}).param == field
    for nothing in neutral:
        assert call(**{field: nothing}) == call()


def test_a_suffix_is_what_follows_the_gap() -> None:
    assert call(suffix="end").requests[0].raw == Text(text="Once", suffix="end")
    assert call(suffix="").requests[0].raw == Text(text="Once")


def test_a_best_of_as_many_as_are_wanted_changes_nothing() -> None:
    assert len(call(n=2, best_of=2).requests) == 2


SCORE = TokenScore(b" up", -0.5, (TokenScore(b" up", -0.5), TokenScore(b" a", -1.5)))


def answer(**changes: Any) -> CompletionAnswer:
    return CompletionAnswer(**{"id": "cmpl-1", "created": 1, "model": "m", "choices": 1, "prompts": 1, **changes})


def events(data: bytes) -> list[Any]:
    found = [event.removeprefix(b"data: ") for event in data.split(b"\n\n")[:-1]]
    return [event.decode() if event == b"[DONE]" else json.loads(event) for event in found]


def test_a_whole_answer_has_every_field() -> None:
    assert answer().completion([Completion(" upon", finished(reason="length"))]) == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [{"text": " upon", "index": 0, "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_log_probabilities_have_the_old_shape() -> None:
    whole = answer(include_logprobs=True).completion([Completion(" up a", finished(), (SCORE, SCORE))])
    assert whole["choices"][0]["logprobs"] == {
        "tokens": [" up", " up"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{" up": -0.5, " a": -1.5}] * 2,
        "text_offset": [0, 3],
    }


def test_offsets_go_on_through_a_stream() -> None:
    told = answer(include_logprobs=True)
    chunks = [events(told.event(Piece(" up", (SCORE,))))[0] for _ in range(2)]
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [3]]


def test_a_prompt_is_counted_once_however_many_answers_it_has() -> None:
    whole = answer(choices=4, prompts=2).completion([Completion("x", finished())] * 4)
    assert whole["usage"]["prompt_tokens"] == 6
    assert whole["usage"]["completion_tokens"] == 8
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]


def test_a_stream_ends_when_every_choice_has() -> None:
    told = answer(choices=2, include_usage=True)
    first = events(told.event(finished()))
    assert [chunk["choices"][0]["finish_reason"] for chunk in first] == ["stop"]
    *last, usage, done = events(told.event(Piece("x", (), 1))) + events(told.event(evolve(finished(), choice=1)))
    assert [chunk["choices"][0]["index"] for chunk in last] == [1, 1]
    assert (usage["choices"], usage["usage"]["prompt_tokens"], done) == ([], 3, "[DONE]")


def test_an_error_in_a_stream_is_its_last_event() -> None:
    problem, done = events(answer(choices=2).event(Failed(InternalError("no"))))
    assert (problem["error"]["message"], done) == ("no", "[DONE]")
