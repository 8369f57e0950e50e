"""The Ollama dialect: how a chat is read, and what is answered."""

import json
import math
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from osaurus.chat import (
    Completion,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    InternalError,
    InvalidRequest,
    Message,
    ModelNotFound,
    Piece,
    Sampling,
    Started,
    Thinking,
    Timings,
    TokenScore,
    ToolCall,
    Usage,
)
from osaurus.dialects.ollama import Answer, Call, as_message, as_response, chat_call, error, rfc3339

TURN = {"role": "user", "content": "hi"}
NOON = datetime(2024, 3, 15, 12, 0, 0, 5, UTC)
# Clients have been seen to split lines at each of these but the last, which is beyond 16 bits.
TRICKY = 'a\u2028b\u2029c\u0085d\x0be\r\nf"\\ \U0001f995'
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def call(**fields: Any) -> Call:
    """Read a chat with these fields."""
    return chat_call(json.dumps({"model": "m", "messages": [TURN], **fields}).encode())


def asked(**fields: Any) -> GenerationRequest:
    """Return what is asked of the model by a chat with these fields."""
    found = call(**fields).request
    assert found is not None
    return found


def request(**options: Any) -> GenerationRequest:
    """Return what is asked of the model by a chat with these options."""
    return asked(options=options)


def refusal(**fields: Any) -> InvalidRequest:
    """Return what a chat with these fields is refused with."""
    with pytest.raises(InvalidRequest) as caught:
        call(**fields)
    return caught.value


def finished(reason: FinishReason = "stop") -> Finished:
    """The end of an answer."""
    return Finished(
        reason=reason,
        usage=Usage(prompt_tokens=11, completion_tokens=5),
        timings=Timings(total=4_000_000_001, load=1_000_000_002, prompt=2_000_000_003, generation=3_000_000_004),
    )


def stream(*events: Event) -> list[Any]:
    """Return the objects of a stream, after checking its form."""
    encoded = b"".join(Answer(model="m", spoken=as_message).event(event, NOON) for event in events)
    assert encoded.isascii()
    assert encoded.endswith(b"\n")
    lines = encoded.decode().removesuffix("\n").split("\n")
    assert all(line.strip() and len(line.splitlines()) == 1 for line in lines)
    return [json.loads(line) for line in lines]


def test_only_a_model_and_messages_are_needed() -> None:
    assert call() == Call(
        model="m",
        request=GenerationRequest(
            model="m",
            messages=(Message("user", "hi"),),
            max_tokens=2048,
            max_tokens_may_shrink=True,
            sampling=Sampling(temperature=0.7, top_p=0.9, top_k=None, min_p=None, seed=None, penalty_window=64),
            stop=(),
            context_length=None,
        ),
        stream=None,
        keep_alive=None,
    )


@pytest.mark.parametrize("field", ["stream", "options", "keep_alive", "tools", "format", "think", "template"])
def test_null_means_absent(field: str) -> None:
    assert call(**{field: None}) == call()


@pytest.mark.parametrize(
    "option",
    [
        *("temperature", "top_p", "top_k", "min_p", "seed", "num_predict", "num_ctx", "stop", "repeat_penalty"),
        *("presence_penalty", "frequency_penalty", "mirostat", "tfs_z", "typical_p", "num_gpu", "num_thread"),
    ],
)
def test_a_null_option_means_absent(option: str) -> None:
    assert call(options={option: None}) == call()


def test_what_is_given_is_passed_on() -> None:
    options = {
        "temperature": 0,
        "top_p": 0.25,
        "top_k": 40,
        "min_p": 0.125,
        "seed": -7,
        "num_predict": 5,
        "num_ctx": 4096,
        "stop": ["a", "b"],
    }
    assert call(model="org/repo:latest", stream=True, options=options) == Call(
        model="org/repo:latest",
        request=GenerationRequest(
            model="org/repo:latest",
            messages=(Message("user", "hi"),),
            max_tokens=5,
            # Ollama bounds an answer by the context, whatever was asked for.
            max_tokens_may_shrink=True,
            sampling=Sampling(temperature=0.0, top_p=0.25, top_k=40, min_p=0.125, seed=-7, penalty_window=64),
            stop=("a", "b"),
            context_length=4096,
        ),
        stream=True,
        keep_alive=None,
    )


EXTENSIONS = {"top_k": 40, "min_p": 0.125, "repetition_penalty": 1.5}


def test_how_to_sample_may_be_said_beside_the_options_and_counts_where_they_say_nothing() -> None:
    said = Sampling(top_k=40, min_p=0.125, repetition_penalty=1.5, penalty_window=64)
    for sampled in (call(**EXTENSIONS), call(options=EXTENSIONS)):
        assert sampled.request is not None
        assert sampled.request.sampling == said
    off = {"top_k": 0, "min_p": 0, "repetition_penalty": 1}
    assert call(**EXTENSIONS, options=off) == call()
    assert call(**EXTENSIONS, options=dict.fromkeys(EXTENSIONS)) == call(**EXTENSIONS)
    assert call(options={**EXTENSIONS, "repeat_penalty": 1.25}) == call(
        options={**EXTENSIONS, "repetition_penalty": 1.25}
    )


@pytest.mark.parametrize(("field", "value"), [("top_k", -2), ("min_p", 1.5), ("repetition_penalty", 11)])
def test_what_is_said_beside_the_options_is_checked_like_them(field: str, value: float) -> None:
    for body, param in (({field: value}, field), ({"options": {field: value}}, f"options.{field}")):
        assert refusal(**body).param == param


@pytest.mark.parametrize("stream", [True, False])
def test_whether_to_stream_is_told_from_not_said(stream: bool) -> None:
    assert call(stream=stream).stream is stream
    assert call().stream is None


@pytest.mark.parametrize(
    ("num_predict", "max_tokens"), [(1, 1), (100_000, 100_000), (-1, None), (-2, None), (None, 2048)]
)
def test_negative_num_predict_is_to_the_end_of_the_context(num_predict: int | None, max_tokens: int | None) -> None:
    found = request(num_predict=num_predict)
    assert found.max_tokens == max_tokens
    assert found.max_tokens_may_shrink


@pytest.mark.parametrize(
    ("stop", "expected"), [("END", ("END",)), (["b", "a"], ("b", "a")), ("", ()), ([], ()), (["", "a"], ("a",))]
)
def test_stop_is_a_string_or_a_list(stop: Any, expected: tuple[str, ...]) -> None:
    assert request(stop=stop).stop == expected


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": -1}, {"min_p": 0.0}])
def test_zero_filters_nothing(options: dict[str, Any]) -> None:
    assert request(**options).sampling == Sampling(penalty_window=64)


def test_unknown_fields_and_hints_are_ignored() -> None:
    hints = {"num_gpu": 1, "num_thread": 4, "num_batch": 8, "num_keep": 5, "use_mmap": True, "low_vram": False}
    assert call(options=hints, something_new=[1]) == call()


def test_without_messages_a_model_is_loaded_or_unloaded() -> None:
    assert call(messages=[]) == Call(model="m", request=None, stream=None, keep_alive=None)
    assert call(messages=[], keep_alive=0) == Call(model="m", request=None, stream=None, keep_alive=0)


def test_messages_must_be_there_all_the_same() -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_call(b'{"model":"m","keep_alive":0}')
    assert (caught.value.param, caught.value.message) == ("messages", "messages: is required")


@pytest.mark.parametrize(
    ("keep_alive", "seconds"),
    [
        *((zero, 0) for zero in (0, 0.0, -0.0, "0", "00", "0s", "0ms", "0us", "0µs", "0ns", "0.0s", "0h0m0s")),
        *((1, 1), (300, 300), (0.5, 0.5), ("5m", 300), ("10s", 10), ("0.5s", 0.5), ("1h30m0s", 5400), ("60", 60)),
        *((negative, math.inf) for negative in (-1, -0.5, "-1", "-1m")),
    ],
)
def test_keep_alive_is_seconds_or_a_duration(keep_alive: Any, seconds: float) -> None:
    found = call(keep_alive=keep_alive)
    assert found.keep_alive == asked(keep_alive=keep_alive).keep_alive == seconds


@pytest.mark.parametrize("keep_alive", [[], [0], {"seconds": 0}])
def test_keep_alive_of_another_type_is_named(keep_alive: Any) -> None:
    assert refusal(keep_alive=keep_alive).param == "keep_alive"


@pytest.mark.parametrize(
    ("role", "read_as"), [("system", "system"), ("developer", "system"), ("user", "user"), ("assistant", "assistant")]
)
def test_roles_are_read(role: str, read_as: str) -> None:
    found = call(messages=[{"role": role, "content": "x"}]).request
    assert found is not None
    assert (found.messages[0].role, found.messages[0].content) == (read_as, "x")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ["m"]}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [TURN, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "function", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "\ud83e"}]}, "messages[0].content"),
        ({"stream": "true"}, "stream"),
        ({"stream": 0}, "stream"),
        ({"options": []}, "options"),
        ({"options": "{}"}, "options"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"temperature": 2.5}}, "options.temperature"),
        ({"options": {"top_p": 1.5}}, "options.top_p"),
        ({"options": {"top_p": True}}, "options.top_p"),
        ({"options": {"top_k": 0.5}}, "options.top_k"),
        ({"options": {"top_k": -2}}, "options.top_k"),
        ({"options": {"min_p": -1}}, "options.min_p"),
        ({"options": {"seed": "7"}}, "options.seed"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": {"num_predict": -3}}, "options.num_predict"),
        ({"options": {"num_predict": "all"}}, "options.num_predict"),
        ({"options": {"num_ctx": 0}}, "options.num_ctx"),
        ({"options": {"num_ctx": 2048.5}}, "options.num_ctx"),
        ({"options": {"stop": 5}}, "options.stop"),
        ({"options": {"stop": ["a", 5]}}, "options.stop[1]"),
        ({"options": {"stop": ["a"] * 17}}, "options.stop"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    problem = refusal(**fields)
    assert problem.param == param
    assert problem.message.startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"model":"m","messages":[],"options":{"temperature":NaN}}', "NaN"),
        (b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"model":"\xe9","messages":[]}', "not UTF-8"),
        (b'"m"', "must be a JSON object"),
        (b"", "not JSON"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        chat_call(body)
    assert caught.value.param is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"format": "yaml"}, "format"),
        ({"format": 1}, "format"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"options": {"mirostat": 2}}, "options.mirostat"),
        ({"options": {"tfs_z": 0.5}}, "options.tfs_z"),
        ({"options": {"typical_p": 0.7}}, "options.typical_p"),
        ({"messages": [{**TURN, "images": ["aGk="]}]}, "messages[0].images"),
    ],
)
def test_what_is_not_served_and_changes_the_answer_is_named(fields: dict[str, Any], param: str) -> None:
    problem = refusal(**fields)
    assert problem.param == param
    assert problem.message.startswith(f"{param}: ")


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"format": ""},
        {"template": ""},
        {"options": {}},
        {"options": {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0, "mirostat": 0}},
        {"options": {"tfs_z": 1, "typical_p": 1.0}},
        {"messages": [{**TURN, "images": [], "tool_calls": []}]},
        {"messages": [{**TURN, "images": None}]},
    ],
)
def test_a_value_that_asks_for_nothing_passes(fields: dict[str, Any]) -> None:
    assert call(**fields) == call()


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_whole_answer_has_every_field(reason: FinishReason) -> None:
    found = json.loads(
        json.dumps(Answer(model="m", spoken=as_message).completion(Completion("Paris", finished(reason)), NOON))
    )
    assert found == {
        "model": "m",
        "created_at": "2024-03-15T12:00:00.000005Z",
        "message": {"role": "assistant", "content": "Paris"},
        "done": True,
        "done_reason": reason,
        "total_duration": 4_000_000_001,
        "load_duration": 1_000_000_002,
        "prompt_eval_count": 11,
        "prompt_eval_duration": 2_000_000_003,
        "eval_count": 5,
        "eval_duration": 3_000_000_004,
    }
    assert all(type(value) is int for key, value in found.items() if key.endswith(("_duration", "_count")))


def test_a_stream_is_done_with_its_last_line_only() -> None:
    *lines, last = stream(Started(11), Piece("Par"), Piece("is"), finished("length"))
    assert [line["message"] for line in lines] == [
        {"role": "assistant", "content": "Par"},
        {"role": "assistant", "content": "is"},
    ]
    assert all(line["done"] is False and "done_reason" not in line for line in lines)
    assert last == Answer(model="m", spoken=as_message).completion(Completion("", finished("length")), NOON)
    assert all(line["model"] == "m" and RFC3339.fullmatch(line["created_at"]) for line in [*lines, last])


def test_what_needs_no_line_gets_none() -> None:
    assert Answer(model="m", spoken=as_message).event(Started(11), NOON) == b""


def test_text_reaches_the_client_unchanged_in_ascii() -> None:
    assert stream(Piece(TRICKY), finished())[0]["message"]["content"] == TRICKY


def test_an_error_in_a_stream_is_a_line_with_a_string() -> None:
    lines = stream(Piece("a"), Failed(InternalError("broken\u2028")))
    assert lines[-1] == {"error": "broken\u2028", "code": "internal_server_error", "type": "server_error"}


def test_errors_are_strings_for_the_sdks_of_ollama() -> None:
    assert error(ModelNotFound("Model not found: x", param="model")) == {
        "error": "Model not found: x",
        "code": "model_not_found",
        "type": "invalid_request_error",
    }


@pytest.mark.parametrize(("reason", "duration"), [("load", 1_500_000_000), ("unload", 0)])
def test_loading_and_unloading_are_answered_without_text(reason: str, duration: int) -> None:
    assert Answer(model="m", spoken=as_message).idle(reason, duration, NOON) == {
        "model": "m",
        "created_at": "2024-03-15T12:00:00.000005Z",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": reason,
        "total_duration": duration,
        "load_duration": duration,
    }


@hypothesis_settings(deadline=None, max_examples=100)
@given(moment=st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC)))
def test_moments_are_rfc3339_and_lose_nothing(moment: datetime) -> None:
    text = rfc3339(moment)
    assert RFC3339.fullmatch(text)
    assert datetime.fromisoformat(text) == moment


def test_penalties_are_passed_on_with_the_window_that_ollama_gives_them() -> None:
    options = {"repeat_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": -1}
    expected = Sampling(repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=-1, penalty_window=64)
    assert asked(options=options).sampling == expected
    assert asked(options={"repeat_last_n": 7}).sampling.penalty_window == 7
    assert asked(options={"repeat_last_n": -1}).sampling.penalty_window is None
    assert asked(options={"repeat_penalty": 0}).sampling.repetition_penalty == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("repeat_penalty", -1), ("repeat_last_n", -2), ("presence_penalty", 3), ("frequency_penalty", "1")],
)
def test_penalties_have_bounds(option: str, value: Any) -> None:
    assert refusal(options={option: value}).param == f"options.{option}"


def test_log_probabilities_are_lists_beside_the_message() -> None:
    score = TokenScore(b"a", -0.5, (TokenScore(b"b", -1.0),))
    expected = [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [{"token": "b", "logprob": -1.0, "bytes": [98]}],
        }
    ]
    assert asked(logprobs=True, top_logprobs=1).top_logprobs == 1
    assert asked().top_logprobs is None
    assert refusal(top_logprobs=1).param == "top_logprobs"
    answer = Answer(model="m", spoken=as_message)
    assert json.loads(answer.event(Piece("a", (score,)), NOON))["logprobs"] == expected
    assert answer.completion(Completion("a", finished(), (score,)), NOON)["logprobs"] == expected
    assert "logprobs" not in answer.completion(Completion("a", finished()), NOON)


@pytest.mark.parametrize(
    ("think", "thinking"),
    [
        (None, None),
        (True, Thinking(True, "think")),
        (False, Thinking(False, "think")),
        ("high", Thinking(True, "think", "high")),
    ],
)
def test_think_says_whether_to_think(think: Any, thinking: Thinking | None) -> None:
    assert asked(think=think).thinking == thinking


@pytest.mark.parametrize("think", [1, "much", [], {}])
def test_nothing_else_says_so(think: Any) -> None:
    assert refusal(think=think).param == "think"


def test_thoughts_have_a_place_of_their_own() -> None:
    whole = Answer(model="m", spoken=as_message).completion(Completion("So.", finished(), reasoning="Why?"), NOON)
    assert whole["message"] == {"role": "assistant", "content": "So.", "thinking": "Why?"}
    told = json.loads(Answer(model="m", spoken=as_response).event(Piece("", reasoning="Why?"), NOON))
    assert (told["response"], told["thinking"]) == ("", "Why?")


def test_thoughts_may_come_back() -> None:
    called = {"function": {"name": "f", "arguments": {}}}
    turn = {"role": "assistant", "thinking": "I must look.", "tool_calls": [called]}
    found = asked(messages=[TURN, turn]).messages[1]
    assert found == Message("assistant", "", (ToolCall("f", "{}"),), reasoning="I must look.")
    assert refusal(messages=[TURN, {"role": "assistant", "thinking": True}]).param == "messages[1].thinking"
