"""The OpenAI dialect: how a chat completion is read, and what is answered."""

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from osaurus.chat import (
    ApiError,
    Completion,
    ContextLengthExceeded,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    HeadersTooLarge,
    InstalledModel,
    InternalError,
    InvalidRequest,
    Message,
    MethodNotAllowed,
    ModelLoadFailed,
    ModelNotFound,
    NotFound,
    Piece,
    RequestTooLarge,
    Sampling,
    ServiceUnavailable,
    Started,
    Thinking,
    Timings,
    TokenScore,
    ToolCall,
    Usage,
)
from osaurus.dialects.openai import Call, ChatAnswer, chat_call, error, models

TURN = {"role": "user", "content": "hi"}
# Clients have been seen to split lines at each of these but the last, which is beyond 16 bits.
TRICKY = 'a\u2028b\u2029c\u0085d\x0be\r\nf"\\ \U0001f995'


def call(**fields: Any) -> Call:
    """Read a chat completion with these fields."""
    return chat_call(json.dumps({"model": "m", "messages": [TURN], **fields}).encode())


def request(**fields: Any) -> GenerationRequest:
    """Return what is asked of the model by a chat completion with these fields."""
    [only] = call(**fields).requests
    return only


def refusal(**fields: Any) -> InvalidRequest:
    """Return what a chat completion with these fields is refused with."""
    with pytest.raises(InvalidRequest) as caught:
        call(**fields)
    return caught.value


def finished(reason: FinishReason = "stop") -> Finished:
    """The end of an answer."""
    return Finished(
        reason=reason,
        usage=Usage(prompt_tokens=11, completion_tokens=5, cached_tokens=7),
        timings=Timings(total=40, load=10, prompt=20, generation=10),
    )


def stream(answer: ChatAnswer, *events: Event) -> list[Any]:
    """Return the data of the events of a stream, after checking their form."""
    encoded = answer.opening() + b"".join(answer.event(event) for event in events)
    assert encoded.isascii()
    assert encoded.endswith(b"\n\n")
    messages = encoded.decode().split("\n\n")[:-1]
    assert all(message.startswith("data: ") and len(message.splitlines()) == 1 for message in messages)
    assert messages[-1] == "data: [DONE]"
    return [json.loads(message.removeprefix("data: ")) for message in messages[:-1]]


def answer(include_usage: bool = False) -> ChatAnswer:
    return ChatAnswer(id="chatcmpl-1", created=1710509445, model="m", include_usage=include_usage)


def test_only_a_model_and_messages_are_needed() -> None:
    assert call() == Call(
        requests=(
            GenerationRequest(
                model="m",
                messages=(Message("user", "hi"),),
                max_tokens=2048,
                max_tokens_may_shrink=True,
                sampling=Sampling(temperature=0.7, top_p=0.9, top_k=None, min_p=None, seed=None),
                stop=(),
                context_length=None,
            ),
        ),
        stream=False,
        include_usage=False,
    )


OPTIONAL = [
    *("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stream"),
    *("stream_options", "tools", "tool_choice", "functions", "function_call", "response_format", "n", "logprobs"),
    *("top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty", "reasoning_effort", "user", "metadata"),
    "chat_template_kwargs",
    *("parallel_tool_calls", "service_tier", "store", "audio", "modalities", "prediction", "web_search_options"),
]


@pytest.mark.parametrize("field", OPTIONAL)
def test_null_means_absent(field: str) -> None:
    assert call(**{field: None}) == call()


def test_null_means_absent_inside_too() -> None:
    assert call(stream_options={"include_usage": None}) == call()
    assert call(messages=[{**TURN, "name": None, "tool_calls": None, "function_call": None}]) == call()


def test_what_is_given_is_passed_on() -> None:
    found = call(
        model="org/repo",
        max_tokens=5,
        temperature=0,
        top_p=0.25,
        top_k=40,
        min_p=0.125,
        seed=-7,
        stop=["a", "b"],
        stream=True,
        stream_options={"include_usage": True},
    )
    assert found == Call(
        requests=(
            GenerationRequest(
                model="org/repo",
                messages=(Message("user", "hi"),),
                max_tokens=5,
                max_tokens_may_shrink=False,
                sampling=Sampling(temperature=0.0, top_p=0.25, top_k=40, min_p=0.125, seed=-7),
                stop=("a", "b"),
            ),
        ),
        stream=True,
        include_usage=True,
    )


def test_zero_filters_nothing() -> None:
    assert request(top_k=0, min_p=0, repetition_penalty=0).sampling == Sampling()
    # As vLLM and others have it.
    assert request(top_k=-1).sampling == Sampling()


def test_the_newer_name_of_max_tokens_precedes_the_older() -> None:
    assert request(max_completion_tokens=5).max_tokens == 5
    assert request(max_completion_tokens=5, max_tokens=9).max_tokens == 5
    assert request(max_completion_tokens=None, max_tokens=9).max_tokens == 9
    assert not request(max_completion_tokens=5).max_tokens_may_shrink
    assert request(max_completion_tokens=5, max_tokens=9).max_tokens_field == "max_completion_tokens"
    assert request(max_tokens=9).max_tokens_field == "max_tokens"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("END", ("END",)), (["END"], ("END",)), (["b", "a"], ("b", "a")), ("", ()), ([], ()), (["", "a"], ("a",))],
)
def test_stop_is_a_string_or_a_list(stop: Any, expected: tuple[str, ...]) -> None:
    assert request(stop=stop).stop == expected


def test_at_most_sixteen_strings_stop() -> None:
    assert len(request(stop=[str(number) for number in range(16)]).stop) == 16
    assert refusal(stop=[str(number) for number in range(17)]).param == "stop"


def test_unknown_fields_and_hints_are_ignored() -> None:
    hints = {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": False}
    assert call(**hints, prompt_cache_key="k", something_new=[1, {"a": None}]) == call()
    assert call(messages=[{**TURN, "name": "ann", "something_new": 1}]) == call()


@pytest.mark.parametrize(
    ("role", "read_as"), [("system", "system"), ("developer", "system"), ("user", "user"), ("assistant", "assistant")]
)
def test_roles_are_read(role: str, read_as: str) -> None:
    found = request(messages=[{"role": role, "content": "x"}, TURN]).messages[0]
    assert (found.role, found.content) == (read_as, "x")


@pytest.mark.parametrize("role", ["function", "User", "", "robot"])
def test_other_roles_are_refused(role: str) -> None:
    problem = refusal(messages=[TURN, {"role": role, "content": "x"}])
    assert problem.param == "messages[1].role"
    assert repr(role) in problem.message


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "a\n"}, {"type": "text", "text": ""}, {"type": "text", "text": "b"}]
    assert request(messages=[{"role": "user", "content": parts}]).messages == (Message("user", "a\nb"),)
    assert request(messages=[{"role": "user", "content": []}]).messages == (Message("user", ""),)


def test_a_refusal_is_what_an_assistant_said() -> None:
    parts = [{"type": "text", "text": "Sorry. "}, {"type": "refusal", "refusal": "That I cannot do."}]
    found = request(messages=[TURN, {"role": "assistant", "content": parts}])
    assert found.messages[1] == Message("assistant", "Sorry. That I cannot do.")
    bad = {"role": "assistant", "content": [{"type": "refusal", "text": "x"}]}
    assert refusal(messages=[TURN, bad]).param == "messages[1].content[0].refusal"


@pytest.mark.parametrize("turn", [{}, {"content": None}, {"content": ""}, {"content": []}])
def test_an_assistant_may_have_said_nothing(turn: dict[str, Any]) -> None:
    assert request(messages=[TURN, {"role": "assistant", **turn}]).messages[1] == Message("assistant", "")


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (None, "messages[1].content"),
        ([{"type": "image_url", "image_url": {"url": "data:,"}}], "messages[1].content[0].type"),
        ([{"type": "text", "text": "x"}, {"type": "input_audio"}], "messages[1].content[1].type"),
        ([{"type": "text"}], "messages[1].content[0].text"),
        ([{"text": "x"}], "messages[1].content[0].type"),
        ([{"type": "refusal", "refusal": "x"}], "messages[1].content[0].type"),
        ([{"type": "text", "text": 5}], "messages[1].content[0].text"),
        (["x"], "messages[1].content[0]"),
        (5, "messages[1].content"),
        ({"type": "text", "text": "x"}, "messages[1].content"),
    ],
)
def test_content_that_is_not_served_is_named(content: Any, param: str) -> None:
    assert refusal(messages=[TURN, {"role": "user", "content": content}]).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": TURN}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": 1, "content": "hi"}]}, "messages[0].role"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 5.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": []}, "max_completion_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": [1]}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": "0"}, "min_p"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ],
)
def test_a_wrong_type_names_its_field(fields: dict[str, Any], param: str) -> None:
    problem = refusal(**fields)
    assert problem.param == param
    assert problem.message.startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("field", "within", "beyond"),
    [
        ("model", ["", "m", "m" * 512], ["m" * 513]),
        ("messages", [[TURN]], [[]]),
        ("max_tokens", [1, 100_000], [0, -1, 2**40]),
        ("max_completion_tokens", [1], [0]),
        ("temperature", [0, 1.5, 2], [-0.01, 2.01, 1e300]),
        ("top_p", [0, 1], [-0.01, 1.01]),
        ("top_k", [-1, 0, 1000], [-2, 2**40]),
        ("min_p", [0, 1], [-0.01, 1.01]),
        ("seed", [-(2**63), 2**63 - 1], [-(2**63) - 1, 2**63]),
    ],
)
def test_a_value_out_of_range_names_its_field(field: str, within: list[Any], beyond: list[Any]) -> None:
    for value in within:
        call(**{field: value})
    for value in beyond:
        assert refusal(**{field: value}).param == field


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"model":"m","messages":[{"role":"user","content":"hi"}],"temperature":NaN}', "NaN"),
        (b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"model":"m","messages":[{"role":"user","content":"\xe9"}]}', "not UTF-8"),
        (b'[{"role":"user","content":"hi"}]', "must be a JSON object"),
        (b"", "not JSON"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        chat_call(body)
    assert caught.value.param is None


def test_half_a_surrogate_pair_is_refused_where_it_stands() -> None:
    assert refusal(messages=[{"role": "user", "content": "\ud83e"}]).param == "messages[0].content"
    assert refusal(model="\udd95").param == "model"
    assert refusal(stop=["a", "\udd95"]).param == "stop[1]"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", {}),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("response_format", "text"),
        ("n", 0),
        ("n", "1"),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {}),
    ],
)
def test_what_is_not_served_and_changes_the_answer_is_named(field: str, value: Any) -> None:
    problem = refusal(**{field: value})
    assert problem.param == field
    assert problem.message.startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", []),
        ("tool_choice", "none"),
        ("tool_choice", "auto"),
        ("functions", []),
        ("function_call", "auto"),
        ("response_format", {"type": "text"}),
        ("logprobs", False),
        ("top_logprobs", 0),
        ("logit_bias", {}),
        ("presence_penalty", 0),
        ("frequency_penalty", 0.0),
        ("repetition_penalty", 1.0),
        ("modalities", ["text"]),
    ],
)
def test_a_value_that_asks_for_nothing_passes(field: str, value: Any) -> None:
    assert call(**{field: value}) == call()


# Fields of other servers: a value that asks for something, and those that front ends send where nothing is set.
FOREIGN: list[tuple[str, Any, list[Any]]] = [
    ("mirostat", 2, [0, 0.0, None]),
    ("mirostat_mode", 1, [0]),
    ("tfs_z", 0.5, [1, 1.0]),
    ("tfs", 0.95, [1]),
    ("typical_p", 0.2, [1, 1.0]),
    ("typ_p", 0.2, [1]),
    ("grammar", 'root ::= "yes"', ["", None]),
    ("json_schema", {"type": "object"}, [{}, "", None]),
    ("format", "json", ["", None]),
    ("guided_json", {"type": "object"}, [{}, "", None]),
    ("guided_regex", "[0-9]+", ["", None]),
    ("guided_choice", ["yes", "no"], [[], None]),
    ("guided_grammar", 'root ::= "yes"', ["", None]),
    ("structured_outputs", {"choice": ["yes", "no"]}, [{}, None]),
]


@pytest.mark.parametrize(("field", "value", "neutral"), FOREIGN)
def test_what_other_servers_have_is_refused_where_it_asks_for_something(
    field: str, value: Any, neutral: list[Any]
) -> None:
    assert refusal(**{field: value}).param == field
    for nothing in neutral:
        assert call(**{field: nothing}) == call()


def test_a_function_call_of_the_old_kind_is_refused_by_its_name() -> None:
    turn = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
    assert refusal(messages=[TURN, turn]).param == "messages[1].function_call"


@pytest.mark.parametrize(
    ("arguments", "taken"), [("", "{}"), (" ", "{}"), ('{"a', '{"a'), ("[1]", "[1]"), ('{"a":1}', '{"a":1}')]
)
def test_arguments_of_a_call_are_taken_as_they_went_out(arguments: str, taken: str) -> None:
    called = {"id": "call_1", "function": {"name": "f", "arguments": arguments}}
    [call] = request(messages=[TURN, {"role": "assistant", "tool_calls": [called]}]).messages[1].calls
    assert call.arguments == taken


@pytest.mark.parametrize("levels", [101, 900, 100_000])
def test_arguments_of_a_call_are_not_nested_without_end(levels: int) -> None:
    called = {"id": "call_1", "function": {"name": "f", "arguments": '{"a":' * levels + "1" + "}" * levels}}
    problem = refusal(messages=[TURN, {"role": "assistant", "tool_calls": [called]}])
    assert problem.param == "messages[1].tool_calls[0].function.arguments"


def test_arguments_of_a_call_are_characters_even_where_they_are_escaped() -> None:
    called = {"id": "call_1", "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
    problem = refusal(messages=[TURN, {"role": "assistant", "tool_calls": [called]}])
    assert problem.param == "messages[1].tool_calls[0].function.arguments"
    assert "surrogate" in problem.message


def test_calls_and_their_results_are_part_of_the_conversation() -> None:
    called = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = [
        TURN,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "42"}]},
    ]
    assert request(messages=turns).messages[1:] == (
        Message("assistant", "", calls=(ToolCall("f", '{"a": 1}', "call_1"),)),
        Message("tool", "42", call_id="call_1"),
    )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_may_come_back(name: str) -> None:
    called = {"id": "call_1", "type": "function", "function": {"name": "f"}}
    turns = [TURN, {"role": "assistant", "content": None, name: "I must look.", "tool_calls": [called]}]
    calls = (ToolCall("f", "{}", "call_1"),)
    assert request(messages=turns).messages[1] == Message("assistant", "", calls, reasoning="I must look.")
    assert request(messages=[{**TURN, name: "?"}]).messages == (Message("user", TURN["content"]),)
    assert refusal(messages=[TURN, {"role": "assistant", name: ["?"]}]).param == f"messages[1].{name}"


@pytest.mark.parametrize(
    ("turn", "param"),
    [
        ({"role": "tool", "content": "42"}, "tool_call_id"),
        ({"role": "tool", "tool_call_id": "call_1"}, "content"),
        ({"role": "assistant", "tool_calls": [{"id": "call_1"}]}, "tool_calls[0].function"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            "tool_calls[0].function.arguments",
        ),
        ({"role": "assistant", "tool_calls": {}}, "tool_calls"),
    ],
)
def test_what_is_wrong_with_a_call_or_result_is_named(turn: dict[str, Any], param: str) -> None:
    assert refusal(messages=[TURN, turn]).param == f"messages[1].{param}"


def test_no_calls_in_the_conversation_are_none() -> None:
    turn: dict[str, Any] = {"role": "assistant", "content": "x", "tool_calls": [], "function_call": None}
    assert request(messages=[TURN, turn]).messages[1] == Message("assistant", "x")


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_whole_answer_has_every_field(reason: FinishReason) -> None:
    assert answer().completion([Completion("Paris", finished(reason))]) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1710509445,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Paris", "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
        ],
        "usage": {
            "prompt_tokens": 11,
            "completion_tokens": 5,
            "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 7},
        },
    }


def test_a_stream_is_role_content_reason_done() -> None:
    chunks = stream(answer(), Started(11), Piece("Par"), Piece("is"), finished("length"))
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Par"},
        {"content": "is"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]
    assert all(choice["index"] == 0 and choice["logprobs"] is None for choice in choices)
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_stream_has_one_id_throughout(include_usage: bool) -> None:
    heads = [
        {key: chunk[key] for key in ("id", "object", "created", "model")}
        for chunk in stream(answer(include_usage), Started(11), Piece("a"), Piece("b"), finished())
    ]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1710509445, "model": "m"}
    assert heads == [head] * (5 if include_usage else 4)


def test_usage_comes_last_and_is_null_before_if_it_was_asked_for() -> None:
    *chunks, last = stream(answer(include_usage=True), Started(11), Piece("a"), finished())
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 11
    assert last["usage"]["completion_tokens"] == 5
    assert last["usage"]["total_tokens"] == 16
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 7}
    assert len(chunks) == 3
    assert all("usage" in chunk and chunk["usage"] is None for chunk in chunks)


def test_text_reaches_the_client_unchanged_in_ascii() -> None:
    chunks = stream(answer(), Started(1), Piece(TRICKY), finished())
    assert chunks[1]["choices"][0]["delta"]["content"] == TRICKY


def test_an_error_in_a_stream_is_told_and_ends_it() -> None:
    chunks = stream(answer(include_usage=True), Started(1), Piece("a"), Failed(InternalError("broken\u2028")))
    assert chunks[-1] == {
        "error": {"message": "broken\u2028", "type": "server_error", "param": None, "code": "internal_server_error"}
    }


@pytest.mark.parametrize(
    ("problem", "status", "kind", "code"),
    [
        (ModelNotFound("x", param="model"), 404, "invalid_request_error", "model_not_found"),
        (InvalidRequest("x", param="model"), 400, "invalid_request_error", "invalid_request"),
        (ContextLengthExceeded("x", param="model"), 400, "invalid_request_error", "context_length_exceeded"),
        (InternalError("x"), 500, "server_error", "internal_server_error"),
        (NotFound("x"), 404, "invalid_request_error", "not_found"),
        (MethodNotAllowed("x"), 405, "invalid_request_error", "method_not_allowed"),
        (RequestTooLarge("x"), 413, "invalid_request_error", "request_too_large"),
        (HeadersTooLarge("x"), 431, "invalid_request_error", "request_too_large"),
        (ServiceUnavailable("x"), 503, "server_error", "service_unavailable"),
        (ModelLoadFailed("x", param="model"), 503, "server_error", "model_load_failed"),
    ],
)
def test_errors_have_their_names(problem: ApiError, status: int, kind: str, code: str) -> None:
    assert problem.status == status
    assert error(problem) == {"error": {"message": "x", "type": kind, "param": problem.param, "code": code}}


def test_models_are_listed() -> None:
    model = InstalledModel(
        id="small",
        repository="org/Small",
        folder=Path("/models/org/Small"),
        size=10,
        modified=1710509445.75,
        family="llama",
        parameters=5,
        quantization="Q4",
        context_length=2048,
    )
    listed = json.loads(json.dumps(models([model])))
    assert listed == {
        "object": "list",
        "data": [
            {"id": "small", "object": "model", "created": 1710509445, "owned_by": "osaurus", "context_length": 2048}
        ],
    }
    assert isinstance(listed["data"][0]["created"], int)
    assert models([]) == {"object": "list", "data": []}


def test_penalties_and_bias_are_passed_on() -> None:
    sampling = (
        call(presence_penalty=0.5, frequency_penalty=-1, repetition_penalty=1.25, logit_bias={"7": -100, "0": 1.5})
        .requests[0]
        .sampling
    )
    assert sampling == Sampling(
        presence_penalty=0.5, frequency_penalty=-1, repetition_penalty=1.25, bias=((7, -100.0), (0, 1.5))
    )


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("presence_penalty", 2.5, "presence_penalty"),
        ("frequency_penalty", "1", "frequency_penalty"),
        ("repetition_penalty", -1, "repetition_penalty"),
        ("logit_bias", [], "logit_bias"),
        ("logit_bias", {"hello": 1}, "logit_bias"),
        ("logit_bias", {"-1": 1}, "logit_bias"),
        ("logit_bias", {"7": 101}, "logit_bias.7"),
        ("logit_bias", {"7": "x"}, "logit_bias.7"),
        ("logit_bias", {"7": True}, "logit_bias.7"),
        ("logit_bias", {str(token): 1 for token in range(1025)}, "logit_bias"),
        ("logprobs", 1, "logprobs"),
        ("top_logprobs", 21, "top_logprobs"),
        ("top_logprobs", 3, "top_logprobs"),
    ],
)
def test_penalties_bias_and_scores_have_bounds(field: str, value: Any, param: str) -> None:
    problem = refusal(**{field: value})
    assert problem.param == param
    assert problem.message.startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 5}, 5), ({"logprobs": False}, None)],
)
def test_log_probabilities_are_asked_for_with_two_fields(fields: dict[str, Any], expected: int | None) -> None:
    assert request(**fields).top_logprobs == expected


SCORE = TokenScore("é".encode(), -0.5, (TokenScore("é".encode(), -0.5), TokenScore(b"\xe2", -1.5)))
SCORED = {
    "token": "é",
    "logprob": -0.5,
    "bytes": [195, 169],
    "top_logprobs": [
        {"token": "é", "logprob": -0.5, "bytes": [195, 169]},
        {"token": "\ufffd", "logprob": -1.5, "bytes": [226]},
    ],
}


def test_log_probabilities_are_in_the_answer_and_in_the_chunks() -> None:
    answer = ChatAnswer(id="i", created=1, model="m", include_logprobs=True)
    whole = answer.completion([Completion("é", finished(), (SCORE,))])
    assert whole["choices"][0]["logprobs"] == {"content": [SCORED], "refusal": None}
    chunk = json.loads(answer.event(Piece("é", (SCORE,))).removeprefix(b"data: "))
    assert chunk["choices"][0]["logprobs"] == {"content": [SCORED], "refusal": None}


def test_keep_alive_is_an_extension() -> None:
    assert request(keep_alive="5m").keep_alive == 300
    assert request().keep_alive is None
    assert refusal(keep_alive="soon").param == "keep_alive"


@pytest.mark.parametrize(
    ("effort", "thinking"),
    [
        (None, None),
        ("none", Thinking(False, "reasoning_effort")),
        ("low", Thinking(True, "reasoning_effort", "low")),
        ("high", Thinking(True, "reasoning_effort", "high")),
    ],
)
def test_effort_says_whether_to_think(effort: str | None, thinking: Thinking | None) -> None:
    assert request(reasoning_effort=effort).thinking == thinking


@pytest.mark.parametrize(
    ("variables", "thinking"),
    [
        ({}, None),
        ({"enable_thinking": None}, None),
        ({"enable_thinking": False}, Thinking(False, "chat_template_kwargs.enable_thinking")),
        ({"thinking": True}, Thinking(True, "chat_template_kwargs.thinking")),
        ({"reasoning_effort": "low"}, Thinking(True, "chat_template_kwargs.reasoning_effort", "low")),
        ({"reasoning_effort": "none"}, Thinking(False, "chat_template_kwargs.reasoning_effort")),
        (
            {"enable_thinking": True, "reasoning_effort": "low"},
            Thinking(True, "chat_template_kwargs.reasoning_effort", "low"),
        ),
    ],
)
def test_variables_of_templates_say_whether_to_think(variables: dict[str, Any], thinking: Thinking | None) -> None:
    assert request(chat_template_kwargs=variables).thinking == thinking


@pytest.mark.parametrize(
    ("variables", "param"),
    [
        ({"enable_thinking": "no"}, ".enable_thinking"),
        ({"thinking": 0}, ".thinking"),
        ({"reasoning_effort": "much"}, ".reasoning_effort"),
        ({"reasoning_effort": ["low"]}, ".reasoning_effort"),
        ({"preserve_thinking": True}, ""),
        ([], ""),
    ],
)
def test_other_variables_of_templates_are_named(variables: Any, param: str) -> None:
    problem = refusal(chat_template_kwargs=variables)
    assert problem.param == f"chat_template_kwargs{param}"
    assert all(name in problem.message for name in variables)


@pytest.mark.parametrize(
    ("effort", "variables"),
    [
        ("high", {"enable_thinking": False}),
        ("none", {"enable_thinking": True}),
        ("high", {"reasoning_effort": "low"}),
        (None, {"reasoning_effort": "none", "thinking": True}),
    ],
)
def test_what_contradicts_each_other_is_refused_with_both_names(effort: str | None, variables: dict[str, Any]) -> None:
    problem = refusal(reasoning_effort=effort, chat_template_kwargs=variables)
    assert "reasoning_effort" in problem.message
    assert f"chat_template_kwargs.{[*variables][-1]}" in problem.message
    agreeing = request(reasoning_effort="high", chat_template_kwargs={"enable_thinking": True})
    assert agreeing.thinking == Thinking(True, "reasoning_effort", "high")


def test_thoughts_have_a_place_of_their_own() -> None:
    thoughtful = evolve(finished(), usage=Usage(prompt_tokens=1, completion_tokens=5, reasoning_tokens=3))
    whole = answer().completion([Completion("So.", thoughtful, reasoning="Why?")])
    assert whole["choices"][0]["message"]["reasoning_content"] == "Why?"
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    deltas = [
        json.loads(answer().event(piece).removeprefix(b"data: "))["choices"][0]["delta"]
        for piece in (Piece("", reasoning="Why?"), Piece("So.", reasoning=" Well."), Piece("So."))
    ]
    assert deltas == [
        {"reasoning_content": "Why?"},
        {"reasoning_content": " Well.", "content": "So."},
        {"content": "So."},
    ]
