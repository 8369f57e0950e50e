"""Apple's on-device model, over a stand-in for its SDK: in memory through the scheduler, and over HTTP."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any, cast

import pytest
import pytest_twisted
from attrs import define, field

from osaurus import tap
from osaurus.chat import (
    ContextLengthExceeded,
    Event,
    Finished,
    GenerationRequest,
    InvalidRequest,
    JsonFormat,
    Message,
    ModelNotFound,
    Piece,
    Sampling,
    Thinking,
    Tool,
    ToolCall,
    ToolUse,
    Usage,
)
from osaurus.foundation.asking import GO_ON
from osaurus.foundation.runner import MOST_AT_ONCE, FoundationRunner
from osaurus.foundation.sdk import installed_sdk
from osaurus.library.store import ModelStore
from osaurus.service import OsaurusService
from osaurus.serving.limits import Limits
from osaurus.serving.runners import RunnerForEach
from osaurus.serving.scheduler import Scheduler

from . import foundation_sdk
from .doubles import MemoryWorker, inline
from .foundation_sdk import StandIn, Unavailable
from .test_api import Client
from .test_generation import outcome

PLACE = {
    "type": "object",
    "properties": {"place": {"type": "string", "description": "Where"}, "days": {"type": "integer", "maximum": 7}},
    "required": ["place"],
}
HI: dict[str, Any] = {"model": "foundation", "messages": [{"role": "user", "content": "Say hello to me"}]}


def tool(parameters: Any = PLACE, name: str = "weather") -> Tool:
    function = {"name": name, "description": "The weather", "parameters": parameters}
    return Tool(
        name=name,
        definition=json.dumps({"type": "function", "function": function}),
        parameters=json.dumps(parameters),
        strict=False,
        asked_by="tools[0].function.parameters",
    )


def ask(*messages: Message, **changes: Any) -> GenerationRequest:
    fields: dict[str, Any] = {"model": "foundation", "max_tokens": None, "max_tokens_may_shrink": True, **changes}
    return GenerationRequest(messages=messages or (Message("user", "Say hello to me"),), **fields)


def run_to_its_end(function: Callable[[], object]) -> None:
    """Run on a thread, since this one has a loop of asyncio already; nothing else happens meanwhile."""
    thread = Thread(target=function, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


@define
class Stage:
    """A scheduler over a scripted engine and over the stand-in, whose threads run when they are told to."""

    sdk: StandIn = field(factory=StandIn)
    worker: MemoryWorker = field(factory=MemoryWorker)
    threads: list[Callable[[], object]] = field(factory=list)
    foundation: FoundationRunner = field(init=False)
    scheduler: Scheduler = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.foundation = FoundationRunner(self.threads.append, lambda call, *args: call(*args), self.sdk)
        store = ModelStore(Path("nowhere"), foundation=self.foundation.model)
        runner = RunnerForEach(self.worker.runner, {"foundation": self.foundation})
        limits = Limits(self.worker.clock, 10, 100)
        self.scheduler = Scheduler(store, runner, self.worker.residency, limits, inline)

    def run(self) -> None:
        while self.threads:
            run_to_its_end(self.threads.pop(0))

    def answer(self, request: GenerationRequest) -> Any:
        """The whole answer, or the error."""
        fired = outcome(self.scheduler.submit(request).completions())
        self.run()
        [answer] = fired
        return answer[0] if isinstance(answer, list) else answer

    def refused(self, request: GenerationRequest) -> str | None:
        """The field that a request is refused for."""
        [error] = outcome(self.scheduler.submit(request).started())
        assert isinstance(error, InvalidRequest)
        assert self.sdk.sessions == []
        return error.param


@pytest.fixture
def stage() -> Stage:
    return Stage()


# Where it is, and where it is not.


@pytest.mark.parametrize("name", ["foundation", "Foundation:latest", "default", ""])
def test_it_answers_to_its_names(stage: Stage, name: str) -> None:
    assert stage.answer(ask(model=name)).text == "Hello there"


@pytest.mark.parametrize("name", ["foundation", "default", ""])
def test_where_macos_has_not_the_model_ready_none_is_found(name: str) -> None:
    stage = Stage(StandIn(unavailable=Unavailable.MODEL_NOT_READY))
    [error] = outcome(stage.scheduler.submit(ask(model=name)).started())
    assert isinstance(error, ModelNotFound)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS may have the SDK")
def test_the_sdk_is_not_looked_for_where_there_is_no_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apple_fm_sdk", foundation_sdk)
    assert installed_sdk() is None


def test_a_mac_without_the_sdk_serves_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "apple_fm_sdk", None)
    assert installed_sdk() is None


def test_a_mac_with_the_sdk_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "apple_fm_sdk", foundation_sdk)
    assert installed_sdk() is foundation_sdk


def test_the_other_models_are_the_other_runners(tiny_models: Path) -> None:
    client = Client(tiny_models, foundation=Stage().foundation)
    assert client.chat().json["choices"][0]["message"]["content"] == "Hello"


@pytest_twisted.ensureDeferred
async def test_it_is_put_together_with_the_rest_where_the_sdk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tap, "installed_sdk", StandIn)
    options = tap.Options()
    options.parseOptions(["--models-dir", str(tmp_path), "--hub-cache", "off"])
    service = cast("OsaurusService", tap.makeService(options))
    # Only what this model needs is started, on the real reactor, with real threads: no port, no engine.
    service._blocking_pool.start()
    try:
        [answer] = await service._scheduler.submit(ask()).completions()
    finally:
        service._blocking_pool.stop()
    assert (answer.text, answer.finished.reason) == ("Hello there", "stop")


# Conversations.


def test_what_is_new_in_each_snapshot_is_a_piece(stage: Stage) -> None:
    heard: list[Event] = []
    stage.scheduler.submit(ask()).listen(heard.append)
    stage.run()
    assert heard[:-1] == [Piece("Hel"), Piece("lo"), Piece(" there")]
    assert isinstance(heard[-1], Finished)
    assert heard[-1].reason == "stop"


def test_a_conversation_that_begins_has_instructions_and_a_prompt(stage: Stage) -> None:
    stage.answer(ask(Message("system", "Be brief."), Message("user", "Hi")))
    [session] = stage.sdk.sessions
    assert (session.instructions, session.transcript.told) == ("Be brief.", {})
    assert stage.sdk.prompts[0][0] == "Hi"


def test_what_was_said_before_is_a_transcript(stage: Stage) -> None:
    call = ToolCall("weather", '{"place": "Rome"}', "call_1")
    stage.answer(
        ask(
            Message("system", "Be brief."),
            Message("user", "Hi"),
            Message("assistant", "Hello"),
            Message("user", "How is Rome?"),
            Message("assistant", "", (call,)),
            Message("tool", "Sunny", call_id="call_1"),
            tools=ToolUse(tools=(tool(),)),
        )
    )
    [session] = stage.sdk.sessions
    told = session.transcript.told
    assert (told["version"], told["type"]) == (1, "FoundationModels.Transcript")
    entries = told["transcript"]["entries"]
    assert [entry["role"] for entry in entries] == ["instructions", "user", "response", "user", "response", "tool"]
    assert [entry["contents"][0]["text"] for entry in entries if "toolCalls" not in entry] == [
        "Be brief.",
        "Hi",
        "Hello",
        "How is Rome?",
        "Sunny",
    ]
    assert entries[0]["tools"] == [json.loads(tool().definition)]
    assert entries[4]["toolCalls"] == [{"id": "call_1", "name": "weather", "arguments": '{"place": "Rome"}'}]
    assert (entries[5]["toolName"], entries[5]["toolCallID"]) == ("weather", "call_1")
    assert stage.sdk.prompts[0][0] == GO_ON


def test_temperature_and_one_filter_are_handed_on(stage: Stage) -> None:
    for sampling in (Sampling(temperature=0), Sampling(top_k=40, top_p=0.8), Sampling(top_p=0.8)):
        stage.answer(ask(sampling=sampling, max_tokens=50))
    options = [more["options"] for _, more in stage.sdk.prompts]
    assert [(one.sampling.mode_type, one.sampling.top, one.sampling.probability_threshold) for one in options] == [
        ("greedy", None, None),
        ("random", 40, None),
        ("random", None, 0.8),
    ]
    assert [one.temperature for one in options] == [0, 0.7, 0.7]
    assert {one.maximum_response_tokens for one in options} == {50}


def test_more_tokens_than_the_context_holds_are_refused_or_bounded_by_it(stage: Stage) -> None:
    [error] = outcome(stage.scheduler.submit(ask(max_tokens=5000, max_tokens_may_shrink=False)).started())
    assert isinstance(error, ContextLengthExceeded)
    stage.answer(ask(max_tokens=5000))
    assert stage.sdk.prompts[0][1]["options"].maximum_response_tokens == 4096


def test_a_stop_string_ends_the_answer_before_it(stage: Stage) -> None:
    answer = stage.answer(ask(stop=("lo th",)))
    assert (answer.text, answer.finished.reason) == ("Hel", "stop")


def test_a_stream_is_given_up_at_a_stop_string() -> None:
    stage = Stage(StandIn(snapshots=["One", "One, two", "One, two, three"]))
    assert stage.answer(ask(stop=(",",))).text == "One"
    assert stage.sdk.given_up == 1


def test_usage_is_what_the_sdk_counts(stage: Stage) -> None:
    answer = stage.answer(ask(Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "One two three")))
    assert answer.finished.usage == Usage(prompt_tokens=2 + 3, completion_tokens=2)


def test_usage_is_none_where_the_sdk_cannot_count() -> None:
    answer = Stage(StandIn(counts=False)).answer(ask(max_tokens=1))
    assert answer.finished.usage == Usage(prompt_tokens=0, completion_tokens=0)
    assert answer.finished.reason == "stop"


def test_an_answer_as_long_as_it_may_be_was_cut(stage: Stage) -> None:
    assert stage.answer(ask(max_tokens=2)).finished.reason == "length"
    assert stage.answer(ask(max_tokens=3)).finished.reason == "stop"


def test_several_answers_are_several_sessions(stage: Stage) -> None:
    fired = outcome(stage.scheduler.submit(ask(), ask()).completions())
    stage.run()
    assert [[answer.text for answer in answers] for answers in fired] == [["Hello there"] * 2]  # type: ignore[attr-defined]
    assert len(stage.sdk.sessions) == 2


def test_there_are_so_many_threads_and_no_more(stage: Stage) -> None:
    fired = [outcome(stage.scheduler.submit(ask()).completions()) for _ in range(MOST_AT_ONCE + 2)]
    assert len(stage.threads) == MOST_AT_ONCE
    stage.run()
    assert all(fired)


# Ends.


def test_a_cancelled_answer_says_no_more_and_its_stream_is_given_up(stage: Stage) -> None:
    heard: list[Event] = []
    generation = stage.scheduler.submit(ask())
    generation.listen(heard.append)
    stage.sdk.between = lambda number: generation.cancel() if number == 1 else None
    stage.run()
    assert heard == [Piece("Hel")]
    assert stage.sdk.given_up == 1


def test_an_answer_that_is_cancelled_before_its_thread_is_there_is_never_asked_for(stage: Stage) -> None:
    stage.scheduler.submit(ask()).cancel()
    stage.run()
    assert stage.sdk.sessions == []


def test_an_answer_that_may_call_tools_is_cancelled_while_the_model_writes(stage: Stage) -> None:
    generation = stage.scheduler.submit(ask(tools=ToolUse(tools=(tool(),))))
    stage.sdk.calls = [("weather", {"place": "Rome"})]
    generation.listen(lambda event: generation.cancel())
    stage.run()
    assert stage.sdk.given_up == 1


def test_a_parked_answer_says_nothing_until_it_goes_on(stage: Stage) -> None:
    heard: list[Event] = []
    generation = stage.scheduler.submit(ask())
    generation.listen(heard.append)
    generation.park()
    at_first = Flag()
    stage.sdk.between = lambda _: at_first.set()
    thread = Thread(target=stage.run, daemon=True)
    thread.start()
    assert at_first.wait(10)
    assert heard == []
    generation.unpark()
    thread.join(10)
    assert [event.text for event in heard if isinstance(event, Piece)] == ["Hel", "lo", " there"]


@pytest.mark.parametrize(
    ("error", "status", "param"),
    [
        (foundation_sdk.ExceededContextWindowSizeError("4096"), 400, "messages"),
        (foundation_sdk.GuardrailViolationError("no"), 400, "messages"),
        (foundation_sdk.RefusalError("no"), 400, "messages"),
        (foundation_sdk.UnsupportedLanguageOrLocaleError("no"), 400, "messages"),
        (foundation_sdk.AssetsUnavailableError("no"), 503, None),
        (foundation_sdk.RateLimitedError("no"), 503, None),
        (foundation_sdk.ConcurrentRequestsError("no"), 503, None),
    ],
)
def test_what_the_sdk_raises_is_told(error: Exception, status: int, param: str | None) -> None:
    told = Stage(StandIn(error=error)).answer(ask())
    assert (told.status, told.param) == (status, param)
    assert str(error) in told.message


def test_what_nobody_foresaw_is_an_internal_error_and_not_told() -> None:
    told = Stage(StandIn(error=foundation_sdk.GenerationError("a secret"))).answer(ask())
    assert told.status == 500
    assert "secret" not in told.message


# Tools.


def test_calls_are_handed_over_and_the_session_is_given_up(stage: Stage) -> None:
    stage.sdk.calls = [("weather", {"place": "Rome"}), ("weather", {"place": "Oslo"})]
    answer = stage.answer(ask(tools=ToolUse(tools=(tool(),))))
    assert {(call.name, call.arguments) for call in answer.calls} == {
        ("weather", '{"place": "Rome"}'),
        ("weather", '{"place": "Oslo"}'),
    }
    assert (answer.text, answer.finished.reason) == ("", "tool_calls")
    assert stage.sdk.given_up == 1


def test_only_one_call_is_handed_over_where_several_are_not_wanted(stage: Stage) -> None:
    stage.sdk.calls = [("weather", {"place": "Rome"}), ("weather", {"place": "Oslo"})]
    assert len(stage.answer(ask(tools=ToolUse(tools=(tool(),), parallel=False))).calls) == 1


def test_a_model_that_calls_no_tool_answers_in_one_piece(stage: Stage) -> None:
    heard: list[Event] = []
    stage.scheduler.submit(ask(tools=ToolUse(tools=(tool(),)))).listen(heard.append)
    stage.run()
    assert heard[0] == Piece("Hello there")
    assert len(heard) == 2


def test_a_tools_arguments_are_a_class_of_the_sdk(stage: Stage) -> None:
    nested = {
        "type": "object",
        "description": "A trip",
        "properties": {
            "where": PLACE,
            "kind": {"type": "string", "enum": ["bus", "train"]},
            "stops": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        },
        "required": ["where", "kind", "stops"],
    }
    stage.answer(ask(tools=ToolUse(tools=(tool(nested),))))
    [made] = stage.sdk.sessions[0].tools
    assert (made.name, made.description) == ("weather", "The weather")
    schema = made.arguments_schema
    assert schema.description == "A trip"
    [where, kind, stops] = schema.properties
    assert kind[1:] == (str, {"description": None, "guides": {"anyOf": ["bus", "train"]}})
    assert stops[1:] == (list[str], {"description": None, "guides": {"max_items": 3}})
    [place, days] = where[1].generation_schema().properties
    assert place == ("place", str, {"description": "Where", "guides": {}})
    # The SDK looks for this word.
    assert "Optional[int]" in str(days[1])
    assert days[2]["guides"] == {"maximum": 7}


def test_a_tool_may_take_nothing(stage: Stage) -> None:
    stage.answer(ask(tools=ToolUse(tools=(tool({"type": "object", "properties": {}}),))))
    [made] = stage.sdk.sessions[0].tools
    assert made.arguments_schema.properties == []


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}},
        {"type": "object", "properties": {"a": {"type": ["string", "null"]}}},
        {"type": "object", "properties": {"a": {"type": "array"}}},
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": "one"}}},
        {"type": "object", "properties": {"a": {"type": "object"}}},
        {"type": "object", "properties": {"a": {"type": "string", "enum": [1]}}},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}]}}},
        {"type": "object", "properties": {"no-identifier": {"type": "string"}}},
        {"type": "object", "properties": {"class": {"type": "string"}}},
        {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(300)}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "oneOf": []},
        {"type": "string"},
        deep(40),
    ],
)
def test_arguments_that_the_sdk_has_no_class_for_are_refused_by_name(stage: Stage, parameters: Any) -> None:
    assert stage.refused(ask(tools=ToolUse(tools=(tool(parameters),)))) == "tools[0].function.parameters"


# Formats.


def formatted(schema: Any) -> JsonFormat:
    return JsonFormat(schema=json.dumps(schema), strict=True, asked_by="format")


def test_a_schema_is_told_in_the_sdks_dialect() -> None:
    stage = Stage(StandIn(content={"where": {"place": "Rome"}}))
    schema = {"type": "object", "properties": {"where": PLACE, "list": {"type": "array", "items": PLACE}}}
    answer = stage.answer(ask(format=formatted(schema)))
    assert json.loads(answer.text) == {"where": {"place": "Rome"}}
    told = stage.sdk.prompts[0][1]["json_schema"]
    assert (told["title"], told["additionalProperties"], told["x-order"]) == ("Answer", False, ["where", "list"])
    assert told["properties"]["where"] == PLACE | {
        "title": "Answer_where",
        "additionalProperties": False,
        "x-order": ["place", "days"],
    }
    assert told["properties"]["list"]["items"]["x-order"] == ["place", "days"]


def test_a_property_of_any_name_is_no_keyword() -> None:
    stage = Stage(StandIn(content={"items": "x"}))
    schema = {"type": "object", "properties": {"items": {"type": "string"}, "type": {"type": "string"}}}
    stage.answer(ask(format=formatted(schema)))
    assert stage.sdk.prompts[0][1]["json_schema"]["properties"] == schema["properties"]


@pytest.mark.parametrize("schema", [{"type": "object"}, {"type": "array", "items": {}}, True, deep(40)])
def test_what_is_no_schema_of_an_object_is_refused(stage: Stage, schema: Any) -> None:
    assert stage.refused(ask(format=formatted(schema))) == "format"


@pytest.mark.parametrize(
    "error",
    [
        foundation_sdk.InvalidGenerationSchemaError("no"),
        foundation_sdk.UnsupportedGuideError("no"),
        foundation_sdk.DecodingFailureError("no"),
    ],
)
def test_a_schema_that_the_sdk_cannot_keep_to_is_the_requests_fault(error: Exception) -> None:
    told = Stage(StandIn(error=error)).answer(ask(format=formatted(PLACE)))
    assert (told.status, told.param) == (400, "format")


# What it cannot do.


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"top_logprobs": 0}, "logprobs"),
        ({"sampling": Sampling(seed=1)}, "seed"),
        ({"sampling": Sampling(min_p=0.1)}, "min_p"),
        ({"sampling": Sampling(bias=((1, 1.0),))}, "logit_bias"),
        ({"sampling": Sampling(repetition_penalty=1.1)}, "repetition_penalty"),
        ({"sampling": Sampling(presence_penalty=1)}, "presence_penalty"),
        ({"sampling": Sampling(frequency_penalty=1)}, "frequency_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"context": (1, 2)}, "context"),
        ({"thinking": Thinking(True, "think")}, "think"),
        ({"tools": ToolUse(tools=(tool(),), required=True)}, "tool_choice"),
        ({"tools": ToolUse(tools=(tool(),), only="weather")}, "tool_choice"),
        ({"tools": ToolUse(tools=(tool(),)), "format": formatted(PLACE)}, "format"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(stage: Stage, changes: dict[str, Any], param: str) -> None:
    assert stage.refused(ask(**changes)) == param


@pytest.mark.parametrize(
    "messages",
    [
        (Message("system", "Be brief."),),
        (Message("user", "Hi"), Message("assistant", "Hel")),
        (Message("user", ""),),
    ],
)
def test_a_conversation_without_a_question_is_refused(stage: Stage, messages: tuple[Message, ...]) -> None:
    assert stage.refused(ask(*messages)) == "messages"


def test_not_to_think_is_no_trouble(stage: Stage) -> None:
    assert stage.answer(ask(thinking=Thinking(False, "think"))).text == "Hello there"


# Over HTTP.


@pytest.fixture
def stood_in() -> StandIn:
    return StandIn()


@pytest.fixture
def client(tiny_models: Path, stood_in: StandIn) -> Client:
    runner = FoundationRunner(run_to_its_end, lambda call, *args: call(*args), stood_in)
    return Client(tiny_models, foundation=runner)


@pytest.fixture
def elsewhere(tiny_models: Path) -> Client:
    return Client(tiny_models)


def test_it_is_listed_where_it_is(client: Client, elsewhere: Client) -> None:
    listed = {one["id"]: one for one in client.ask("GET", "/v1/models").json["data"]}
    assert listed["foundation"]["owned_by"] == "apple"
    assert listed["foundation"]["context_length"] == 4096
    assert listed["tiny"]["owned_by"] == "osaurus"
    assert client.ask("GET", "/v1/models/foundation").json == listed["foundation"]
    tags = {one["name"] for one in client.ask("GET", "/api/tags").json["models"]}
    assert tags == {"foundation", "tiny", "other"}
    assert {one["id"] for one in elsewhere.ask("GET", "/v1/models").json["data"]} == {"tiny", "other"}
    assert {one["name"] for one in elsewhere.ask("GET", "/api/tags").json["models"]} == {"tiny", "other"}


@pytest.mark.parametrize("name", ["foundation", "default", ""])
def test_it_is_not_found_where_it_is_not(elsewhere: Client, name: str) -> None:
    for path in ("/v1/chat/completions", "/api/chat"):
        answer = elsewhere.ask("POST", path, {**HI, "model": name})
        assert answer.status == 404
    assert elsewhere.chat(model=name).json["error"]["code"] == "model_not_found"


def test_it_answers_in_both_dialects(client: Client) -> None:
    answer = client.chat(**HI).json
    assert answer["choices"][0]["message"]["content"] == "Hello there"
    assert answer["usage"] == answer["usage"] | {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    answer = client.ollama(stream=False, **HI).json
    assert (answer["message"]["content"], answer["prompt_eval_count"], answer["eval_count"]) == ("Hello there", 4, 2)
    answer = client.ask("POST", "/api/generate", {"model": "foundation", "prompt": "Hi", "stream": False}).json
    assert answer["response"] == "Hello there"


def test_it_streams_in_both_dialects(client: Client) -> None:
    events = client.chat(stream=True, **HI).data
    assert [event["choices"][0]["delta"].get("content") for event in events[:-1]][1:4] == ["Hel", "lo", " there"]
    assert events[-1] == "[DONE]"
    lines = client.ollama(stream=True, **HI).lines
    assert [line["message"]["content"] for line in lines][:3] == ["Hel", "lo", " there"]
    assert lines[-1]["done_reason"] == "stop"


def test_calls_arrive_over_http(client: Client, stood_in: StandIn) -> None:
    stood_in.calls = [("weather", {"place": "Rome"})]
    function = {"name": "weather", "parameters": PLACE}
    answer = client.chat(tools=[{"type": "function", "function": function}], **HI).json["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    [call] = answer["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"place": "Rome"}'}


def test_a_format_arrives_over_http(client: Client, stood_in: StandIn) -> None:
    stood_in.content = {"place": "Rome"}
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}
    answer = client.chat(response_format=wanted, **HI).json
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"place": "Rome"}
    refused = client.chat(response_format={"type": "json_object"}, **HI)
    assert (refused.status, refused.json["error"]["param"]) == (400, "response_format")


def test_text_is_not_continued(client: Client) -> None:
    answer = client.ask("POST", "/v1/completions", {"model": "foundation", "prompt": "Once"})
    assert (answer.status, answer.json["error"]["param"]) == (400, "prompt")


def test_it_is_described_and_neither_copied_nor_deleted(client: Client) -> None:
    shown = client.ask("POST", "/api/show", {"model": "foundation"}).json
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["model_info"]["foundation.context_length"] == 4096
    assert client.ask("POST", "/api/copy", {"source": "foundation", "destination": "mine"}).status == 403
    assert client.ask("DELETE", "/api/delete", {"model": "foundation"}).status == 403


def test_it_is_loaded_and_unloaded_without_effect(client: Client) -> None:
    for keep_alive in (300, 0):
        body: dict[str, Any] = {"model": "foundation", "messages": [], "keep_alive": keep_alive}
        assert client.ask("POST", "/api/chat", body).status == 200
    assert client.ask("GET", "/api/ps").json == {"models": []}


def test_a_model_of_its_name_keeps_its_repositorys(tmp_path: Path, tiny_models: Path) -> None:
    folder = tmp_path / "somebody" / "foundation"
    folder.parent.mkdir()
    folder.symlink_to(tiny_models / "tests" / "tiny")
    store = ModelStore(tmp_path, foundation=Stage().foundation.model)
    assert [model.id for model in store.models()] == ["foundation", "somebody/foundation"]
    assert store.find("foundation").system
    assert not store.find("somebody/foundation").system
