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
    assert (request.prompt_field, request.max_tokens_field) == ("prompt", "max_tokens")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 3}, "best_of"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"echo": True, "logprobs": 1, "suffix": "end"}, "echo"),
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


def test_a_prompt_is_scored_where_it_is_told_and_scores_are() -> None:
    [request] = call(echo=True, logprobs=1).requests
    assert (request.echo, request.top_logprobs) == (True, 1)


def test_a_mark_before_a_prompt_takes_no_place_in_it() -> None:
    scores = (TokenScore(b"<s>", None), TokenScore(b" Once", -1.0), SCORE)
    found = events(answer(include_logprobs=True).event(Piece("Once up", scores)))[0]["choices"][0]
    assert found["logprobs"]["tokens"] == ["<s>", " Once", " up"]
    assert found["logprobs"]["text_offset"] == [0, 0, 4]


def test_the_first_token_of_a_prompt_has_no_score() -> None:
    scores = (TokenScore(b"Once", None), SCORE)
    found = events(answer(include_logprobs=True).event(Piece("Once up", scores)))[0]["choices"][0]
    assert found["text"] == "Once up"
    assert found["logprobs"] == {
        "tokens": ["Once", " up"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {" up": -0.5, " a": -1.5}],
        "text_offset": [0, 4],
    }


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


def scored(*tokens: bytes) -> tuple[TokenScore, ...]:
    return tuple(TokenScore(token, -1.0, (TokenScore(token, -1.0),)) for token in tokens)


# A dinosaur in four tokens, between others; the last begins with its end.
PARTS = scored(b" a", b" \xf0", b"\x9f", b"\xa6", b"\x95 b", "é\\".encode(), b"\\\xc3", b"\xa9'", b"c")
PLACES = [0, 2, 3, 3, 3, 6, 8, 9, 11]


def test_a_part_of_a_character_is_spelled_by_its_bytes() -> None:
    whole = answer(include_logprobs=True).completion([Completion(" a \U0001f995 bé\\\\é'c", finished(), PARTS)])
    logprobs = whole["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [
        " a",
        r"bytes: \xf0",
        r"bytes:\x9f",
        r"bytes:\xa6",
        r"bytes:\x95 b",
        "é\\",
        r"bytes:\\\xc3",
        r"bytes:\xa9'",
        "c",
    ]
    assert [list(top) for top in logprobs["top_logprobs"]] == [[token] for token in logprobs["tokens"]]
    assert logprobs["text_offset"] == PLACES


def test_as_many_alternatives_are_told_as_differ() -> None:
    best = TokenScore(b"\xf0", -0.1)
    others = (best, TokenScore(b"\xf1", -0.5), TokenScore(b"\xf2", -0.6), TokenScore("\ufffd".encode(), -0.7))
    same = TokenScore(b"\xf0", -0.9)
    choice = answer(include_logprobs=True).completion(
        [Completion("x", finished(), (TokenScore(b"\xf0", -0.1, (*others, same)),))]
    )["choices"][0]
    assert choice["logprobs"]["top_logprobs"] == [
        {r"bytes:\xf0": -0.1, r"bytes:\xf1": -0.5, r"bytes:\xf2": -0.6, "\ufffd": -0.7}
    ]


def test_a_token_that_is_none_of_the_best_is_told_of_beside_them() -> None:
    best = (TokenScore(b"a", -0.1), TokenScore(b"b", -0.2))
    scores = (TokenScore(b"<s>", None), TokenScore(b"c", -5.0, best), TokenScore(b"d", -6.0), best[0])
    choice = answer(include_logprobs=True).completion([Completion("cda", finished(), scores)])["choices"][0]
    assert choice["logprobs"]["top_logprobs"] == [None, {"a": -0.1, "b": -0.2, "c": -5.0}, {"d": -6.0}, {"a": -0.1}]


@pytest.mark.parametrize(
    "pieces",
    [
        [(" a", 1), (" ", 0), ("\U0001f995 b", 4), ("é\\", 1), ("\\é'", 2), ("c", 1)],
        [(" a ", 2), ("\U0001f995 bé", 4), ("\\\\é'c", 3)],
        [(" a \U0001f995 bé\\\\é'c", 9)],
    ],
)
def test_a_token_is_where_its_character_is_however_the_stream_is_cut(pieces: list[tuple[str, int]]) -> None:
    told, scores, found = answer(include_logprobs=True), list(PARTS), []
    for text, count in pieces:
        [chunk] = events(told.event(Piece(text, tuple(scores[:count]))))
        del scores[:count]
        found += chunk["choices"][0]["logprobs"]["text_offset"]
    assert (found, scores) == (PLACES, [])


def test_a_space_that_the_text_does_not_begin_with_takes_no_place() -> None:
    told = answer(include_logprobs=True)
    chunks = [events(told.event(Piece(text, scored(token))))[0] for text, token in [("up", b" up"), (" a", b" a")]]
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [2]]


def test_behind_a_character_that_was_left_incomplete_begins_another() -> None:
    told = answer(include_logprobs=True)
    [chunk] = events(
        told.event(Piece("a\ufffdb\ufffd\u00e9", scored(b"a", b"\xf0", b"\x9f", b"b", b"\xf0", b"\xc3", b"\xa9")))
    )
    assert chunk["choices"][0]["logprobs"]["text_offset"] == [0, 1, 1, 2, 3, 4, 4]


def test_every_choice_has_places_of_its_own() -> None:
    told = answer(include_logprobs=True, choices=2)
    chunks = [events(told.event(Piece(" a", scored(b" a"), choice)))[0] for choice in (0, 1, 0)]
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [0], [2]]


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
