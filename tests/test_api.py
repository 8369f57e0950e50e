"""The HTTP contract, in memory: treq's StubTreq in front of the real resource tree, a scripted engine behind it.

How to test here: `Client.ask` sends a request; it turns the engine by hand until the answer is there. To look at a
stream half way, use `Client.begin`, `worker.turn` and `stub.flush`.
"""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field, frozen
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.web.http_headers import Headers

from osaurus.chat import Failed, InternalError, ModelLoadFailed, NoRoomYet, Piece
from osaurus.dialects.openai import chat_call
from osaurus.engine.tally import Tally
from osaurus.foundation.runner import FoundationRunner
from osaurus.library.store import ModelStore
from osaurus.serving.blocking import Blocking
from osaurus.serving.catalogue import Catalogue
from osaurus.serving.limits import Limits
from osaurus.serving.pulls import Pulls
from osaurus.serving.runners import Runner, RunnerForEach
from osaurus.serving.scheduler import Scheduler
from osaurus.serving.stream import LONGEST_QUIET
from osaurus.web.access import AccessLog
from osaurus.web.api import Api
from osaurus.web.exchange import Observer
from osaurus.web.front import Front
from osaurus.web.generating import Generating
from osaurus.web.guard import Guard
from osaurus.web.library import Library
from osaurus.web.metrics import Metrics
from osaurus.web.page import Page
from osaurus.web.pulling import Pulling

from .doubles import MemorySpawn, MemoryWorker, finished, inline

NOON = 1710509445.0  # 2024-03-15T13:30:45Z
PREFIXES = ["", "/v1", "/api", "/v1/api"]
# Under which the engine knows the model.
NAME = "tests/tiny"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@frozen
class Answer:
    """An answer, whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """The objects of an NDJSON stream."""
        assert self.body.endswith(b"\n")
        return [json.loads(line) for line in self.body.split(b"\n")[:-1]]

    @property
    def data(self) -> list[Any]:
        """The objects of an SSE stream, `[DONE]` as text."""
        assert self.body.endswith(b"\n\n")
        events = [event.removeprefix(b"data: ") for event in self.body.split(b"\n\n")[:-1]]
        return [event.decode() if event == b"[DONE]" else json.loads(event) for event in events]


class Reader(Protocol):
    """Reads a body as it comes, and can leave."""

    def __init__(self) -> None:
        self.received = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def leave(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()


@define
class Client:
    """An HTTP client without a network, and the server's engine to be turned."""

    models: Path
    worker: MemoryWorker = field(factory=MemoryWorker)
    clock: Clock = field(factory=Clock)
    guard: Guard = field(factory=Guard)
    max_concurrent: int = 10
    requests_per_minute: int = 100
    foundation: FoundationRunner | None = None
    log_content: bool = False
    observers: tuple[Observer, ...] = (AccessLog(),)
    spawned: MemorySpawn = field(factory=MemorySpawn)
    tally: Tally = field(factory=Tally)
    registry: CollectorRegistry = field(factory=CollectorRegistry)
    blocking: Blocking = inline  # for what is asked of models
    scheduler: Scheduler = field(init=False)
    pulls: Pulls = field(init=False)
    front: Front = field(init=False)
    stub: Any = field(init=False)  # StubTreq has treq's functions, which its type does not tell

    def __attrs_post_init__(self) -> None:
        self.clock.advance(NOON)
        store = ModelStore(self.models)
        limits = Limits(self.clock, self.max_concurrent, self.requests_per_minute)
        runner: Runner = self.worker.runner
        if self.foundation is not None:
            store.foundation = self.foundation.model
            runner = RunnerForEach(runner, {"foundation": self.foundation})
        self.scheduler = Scheduler(store, runner, self.worker.residency, limits, inline)
        catalogue = Catalogue(store, self.blocking)
        library = Library(catalogue, self.scheduler, inline, self.clock)
        self.pulls = Pulls(self.models, self.spawned, self.clock)
        pulling = Pulling(self.pulls, catalogue, inline, self.clock)
        generating = Generating(self.scheduler, inline, self.guard, self.clock, self.log_content)
        metrics = Metrics(self.registry, self.scheduler, lambda: self.worker.runner.figures, self.tally.counts)
        api = Api(generating, library, pulling, self.scheduler, metrics, Page.of_package(), self.clock)
        self.front = Front(api.resource(), self.guard, self.clock, metrics, *self.observers)
        self.stub = StubTreq(self.front)

    def begin(self, method: str, path: str, body: Any = None, **headers: str) -> list[Any]:
        """Send a request; the list receives the response when its headers are there."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        responses: list[Any] = []
        sent: Deferred[Any] = self.stub.request(method, f"http://127.0.0.1:1337{path}", data=data, headers=named)
        sent.addCallback(responses.append)
        self.stub.flush()
        return responses

    def begin_stream(self, path: str = "/v1/chat/completions", turns: int = 2, **changes: Any) -> Reader:
        """Begin a streamed answer; return who reads it, as soon as there is something."""
        responses: list[Any] = []
        body = json.dumps({**HELLO, "stream": True, **changes}).encode()
        sent = self.stub.request("POST", f"http://127.0.0.1:1337{path}", data=body, unbuffered=True)
        sent.addCallback(responses.append)
        self.stub.flush()
        self.worker.turn(turns)
        reader = Reader()
        if not turns:
            # The engine does nothing for the request, until the client has waited for long.
            self.clock.advance(LONGEST_QUIET - 1)
            self.stub.flush()
            assert responses == []
            self.clock.advance(1)
        self.stub.flush()
        responses[0].deliverBody(reader)
        self.stub.flush()
        return reader

    def finish_stream(self, reader: Reader) -> Answer:
        """Let the engine go on until it has nothing to do; return what the reader has got."""
        self.worker.settle()
        self.stub.flush()
        return Answer(200, {}, reader.received)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request and return the answer."""
        responses = self.begin(method, path, body, **headers)
        for _ in range(20):
            self.worker.turn()
            self.stub.flush()
        [response] = responses
        content: list[bytes] = []
        response.content().addCallback(content.append)
        self.stub.flush()
        [body] = content
        found = {name.decode().lower(): values[0].decode() for name, values in response.headers.getAllRawHeaders()}
        return Answer(response.code, found, body)

    def chat(self, **changes: Any) -> Answer:
        return self.ask("POST", "/v1/chat/completions", {**HELLO, **changes})

    def ollama(self, accept: str = "*/*", **changes: Any) -> Answer:
        return self.ask("POST", "/api/chat", {**HELLO, **changes}, Accept=accept)


@pytest.fixture
def client(tiny_models: Path) -> Client:
    return Client(tiny_models)


# Every endpoint, everywhere.


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("slash", ["", "/"])
def test_every_endpoint_answers_under_every_prefix(client: Client, prefix: str, slash: str) -> None:
    assert client.ask("GET", f"{prefix}{slash or '/'}").body == b"Osaurus is running"
    assert client.ask("GET", f"{prefix}/health{slash}").json["status"] == "ok"
    assert client.ask("GET", f"{prefix}/models{slash}").json["object"] == "list"
    assert len(client.ask("GET", f"{prefix}/tags{slash}").json["models"]) == 2
    assert client.ask("POST", f"{prefix}/chat/completions{slash}", HELLO).json["object"] == "chat.completion"
    assert client.ask("POST", f"{prefix}/chat{slash}", HELLO).json["done"] is True


def test_the_root_is_plain_text_and_head_is_empty(client: Client) -> None:
    assert client.ask("GET", "/").headers["content-type"].startswith("text/plain")
    head = client.ask("HEAD", "/")
    assert (head.status, head.body) == (200, b"")


def test_health_tells_the_time(client: Client) -> None:
    assert client.ask("GET", "/health").json == {"status": "ok", "timestamp": "2024-03-15T13:30:45Z"}


def test_health_is_503_with_the_reason_once_the_engine_has_died(client: Client) -> None:
    client.begin("POST", "/v1/chat/completions", HELLO)
    client.worker.turn()
    client.worker.engine.failure = MemoryError("out of it")
    client.worker.thread.run()
    responses = client.begin("GET", "/health")
    assert responses[0].code == 503
    body: list[Any] = []
    responses[0].json().addCallback(body.append)
    assert body[0]["status"] == "error"
    assert "out of it" in body[0]["reason"]


def test_models_are_listed_as_openai_does(client: Client) -> None:
    listed = client.ask("GET", "/v1/models").json
    assert [model["id"] for model in listed["data"]] == ["other", "tiny"]
    for model in listed["data"]:
        assert set(model) == {"id", "object", "created", "owned_by", "context_length"}
        assert (model["object"], model["owned_by"], type(model["created"])) == ("model", "osaurus", int)


def test_models_are_listed_as_ollama_does(client: Client) -> None:
    for model in client.ask("GET", "/api/tags").json["models"]:
        assert model["model"] == f"{model['name']}:latest"
        assert model["digest"].startswith("sha256:")
        assert type(model["size"]) is int
        assert model["details"]["families"] == ["llama"]


def test_every_answer_carries_cors_and_a_request_id_of_its_own(client: Client) -> None:
    answers = [
        client.ask("GET", "/"),
        client.ask("GET", "/nope"),
        client.ask("DELETE", "/v1/models"),
        client.ask("OPTIONS", "/v1/chat/completions"),
        client.ask("POST", "/v1/chat/completions", b"{"),
        client.chat(stream=True),
        client.ollama(stream=True),
    ]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-allow-methods"] == "GET, POST, OPTIONS"
        assert answer.headers["access-control-expose-headers"] == "X-Request-Id, Retry-After, X-Should-Retry"
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


def test_a_preflight_lets_in_the_headers_it_asks_for_if_they_are_plain_names(client: Client) -> None:
    asked = "x-stainless-lang, Authorization, bad name, x-stainless-os"
    answer = client.ask("OPTIONS", "/v1/chat/completions", Access_Control_Request_Headers=asked)
    assert (answer.status, answer.body) == (204, b"")
    allowed = answer.headers["access-control-allow-headers"]
    assert allowed == "Content-Type, Authorization, x-stainless-lang, x-stainless-os"


# Errors.


@pytest.mark.parametrize("path", ["/nope", "/v1/nope", "/v1/v1/models", "/api/v1/models", "/v1/chat/completions/x"])
def test_an_unknown_path_is_a_json_404(client: Client, path: str) -> None:
    answer = client.ask("GET", path)
    assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")


def test_a_path_that_is_not_utf8_is_a_json_404(client: Client) -> None:
    assert client.ask("GET", "/v1/%ff").json["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("path", "host", "status"), [("/v1/%ff", "localhost", 404), ("/v1/models", "evil.example", 403)]
)
def test_who_asks_for_the_head_of_what_is_refused_is_told_the_length_alone(
    client: Client, path: str, host: str, status: int
) -> None:
    whole = client.ask("GET", path, Host=host)
    with capturedLogs() as events:
        head = client.ask("HEAD", path, Host=host)
    assert (head.status, head.body, head.headers["content-length"]) == (status, b"", str(len(whole.body)))
    # Twisted has a line of its own where there is more.
    assert {event["log_namespace"] for event in events} == {"osaurus.web.access"}


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/api/chat", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_a_json_405_that_says_which_are_right(
    client: Client, method: str, path: str, allow: str
) -> None:
    answer = client.ask(method, path)
    assert (answer.status, answer.json["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allow


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"", None),
        ({"messages": []}, "model"),
        ({"model": "tiny"}, "messages"),
        ({"model": "tiny", "messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({**HELLO, "stream": "yes"}, "stream"),
        ({**HELLO, "tools": [{"type": "function"}]}, "tools[0].function"),
    ],
)
def test_a_bad_body_is_400_and_names_the_field(client: Client, path: str, body: Any, param: str | None) -> None:
    answer = client.ask("POST", path, body)
    assert answer.status == 400
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_request", param)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/api/show"])
def test_a_body_that_is_encoded_is_refused_by_the_encodings_name(client: Client, path: str) -> None:
    answer = client.ask("POST", path, gzip.compress(json.dumps(HELLO).encode()), Content_Encoding="gzip")
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_request")
    assert answer.json["error"]["message"].endswith("without Content-Encoding: gzip")
    assert client.ask("POST", "/api/show", {"model": "tiny"}, Content_Encoding="identity").status == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_an_unknown_model_is_404_in_a_stream_too(client: Client, path: str, stream: bool) -> None:
    answer = client.ask("POST", path, {**HELLO, "model": "nope", "stream": stream})
    assert answer.status == 404
    assert answer.json["error"] == {
        "message": "Model not found: nope",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_a_model_that_cannot_be_loaded_is_503_with_the_reason(client: Client) -> None:
    client.worker.engine.failure = ModelLoadFailed("no weights")
    answer = client.chat(stream=True)
    assert (answer.status, answer.json["error"]["code"]) == (503, "model_load_failed")
    assert "no weights" in answer.json["error"]["message"]


@pytest.mark.parametrize("agent", ["ollama-python/0.6.3 (x86_64)", "ollama-js/0.6.0", "ollama/0.12.0"])
def test_ollamas_own_sdks_get_the_error_as_a_string(client: Client, agent: str) -> None:
    answer = client.ask("POST", "/api/chat", {**HELLO, "model": "nope"}, User_Agent=agent)
    assert answer.json == {
        "error": "Model not found: nope",
        "code": "model_not_found",
        "type": "invalid_request_error",
    }
    assert answer.headers["vary"] == "User-Agent"


def test_a_fault_of_ours_is_a_500_that_tells_nothing_of_the_inside(client: Client) -> None:
    client.worker.engine.model.prompt = None
    answer = client.chat()
    assert (answer.status, answer.json["error"]["code"]) == (500, "internal_server_error")
    assert b"NoneType" not in answer.body


JSON_VALUES = st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists)
BODIES = st.binary(max_size=64) | JSON_VALUES.map(
    lambda value: json.dumps({"model": "tiny", "messages": value, "prompt": value, "options": value}).encode()
)


READING = ["/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate", "/api/show"]


# Not parametrised: pytest-twisted wraps the function that hypothesis calls once for each set of parameters.
@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(READING), body=BODIES)
def test_whatever_is_sent_gets_an_answer_in_the_dialects_shape(client: Client, path: str, body: bytes) -> None:
    answer = client.ask("POST", path, body)
    assert answer.status in (200, 400)
    assert ("error" in answer.json) == (answer.status == 400)


@pytest.mark.parametrize(
    "header", ["User-Agent", "Accept", "Authorization", "Origin", "Access-Control-Request-Headers"]
)
def test_headers_of_any_bytes_do_no_harm(client: Client, header: str) -> None:
    for value in (b"\xff\xfe", b"a" * 300, b"."):
        for path in ("/v1/chat/completions", "/api/chat", "/nope"):
            responses: list[Any] = []
            headers = Headers({header.encode(): [value]})
            data = json.dumps({**HELLO, "model": "nope"}).encode()
            url = f"http://127.0.0.1:1337{path}"
            client.stub.request("POST", url, data=data, headers=headers).addCallback(responses.append)
            client.stub.flush()
            [response] = responses
            assert response.code == 404


# OpenAI chat.


def test_a_chat_completion_has_the_specified_shape(client: Client) -> None:
    answer = client.chat().json
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer == {
        "object": "chat.completion",
        "created": int(NOON),
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_a_streamed_chat_completion_is_server_sent_events_in_order(client: Client) -> None:
    answer = client.chat(stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    *chunks, done = answer.data
    assert done == "[DONE]"
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    [choices] = zip(*(chunk["choices"] for chunk in chunks), strict=True)
    assert [choice["delta"].get("content") for choice in choices] == ["", "Hel", "lo", None]
    assert choices[0]["delta"]["role"] == "assistant"
    assert choices[-1]["delta"] == {}
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]


def test_usage_is_streamed_only_when_asked_for(client: Client) -> None:
    assert all("usage" not in chunk for chunk in client.chat(stream=True).data[:-1])
    *chunks, usage, _ = client.chat(stream=True, stream_options={"include_usage": True}).data
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 5)
    assert all(chunk["usage"] is None for chunk in chunks)


def test_an_error_after_the_first_byte_is_an_event_and_then_the_end(client: Client) -> None:
    client.worker.engine.script = [Piece("Hel"), Failed(InternalError("broken"))]
    *_, error, done = client.chat(stream=True).data
    assert error["error"] == {
        "message": "broken",
        "type": "server_error",
        "param": None,
        "code": "internal_server_error",
    }
    assert done == "[DONE]"


def test_an_answer_cut_by_max_tokens_says_length(client: Client) -> None:
    client.worker.engine.script = [Piece("Hel"), finished(1, "length")]
    assert client.chat(max_tokens=1).json["choices"][0]["finish_reason"] == "length"


# Ollama chat.


def test_an_ollama_chat_has_the_specified_shape(client: Client) -> None:
    assert client.ollama().json == {
        "model": "tiny",
        "created_at": "2024-03-15T13:30:45.000000Z",
        "message": {"role": "assistant", "content": "Hello"},
        "done": True,
        "done_reason": "stop",
        "total_duration": 40,
        "load_duration": 10,
        "prompt_eval_count": 3,
        "prompt_eval_duration": 20,
        "eval_count": 2,
        "eval_duration": 10,
    }


def test_an_ollama_stream_is_one_object_a_line(client: Client) -> None:
    answer = client.ollama(stream=True)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["x-accel-buffering"] == "no"
    assert [line["message"]["content"] for line in answer.lines] == ["Hel", "lo", ""]
    assert [line["done"] for line in answer.lines] == [False, False, True]


@pytest.mark.parametrize(
    ("accept", "stream", "lines"),
    [("*/*", None, 1), ("application/x-ndjson", None, 3), ("application/x-ndjson", False, 1), ("*/*", True, 3)],
)
def test_without_stream_only_the_go_client_gets_one(
    client: Client, accept: str, stream: bool | None, lines: int
) -> None:
    answer = client.ollama(accept=accept, stream=stream)
    assert len(answer.body.rstrip(b"\n").split(b"\n")) == lines


def test_an_error_after_the_first_line_is_a_line(client: Client) -> None:
    client.worker.engine.script = [Piece("Hel"), Failed(InternalError("broken"))]
    assert client.ollama(stream=True).lines[-1]["error"] == "broken"


@pytest.mark.parametrize(
    ("keep_alive", "reason", "loads", "unloads"),
    [(None, "load", [NAME], []), ("5m", "load", [NAME], []), (0, "unload", [], [NAME])],
)
def test_a_chat_without_messages_loads_or_unloads_the_model(
    client: Client, keep_alive: Any, reason: str, loads: list[str], unloads: list[str]
) -> None:
    answer = client.ollama(messages=[], keep_alive=keep_alive).json
    assert (answer["done"], answer["done_reason"], answer["message"]["content"]) == (True, reason, "")
    assert (client.worker.engine.loads, client.worker.engine.unloads) == (loads, unloads)


def test_keep_alive_zero_unloads_the_model_after_the_answer(client: Client) -> None:
    assert client.ollama(keep_alive=0).json["message"]["content"] == "Hello"
    assert client.worker.engine.unloads == ["tests/tiny"]


# Leaving.


def test_a_client_that_disconnects_frees_its_row(client: Client) -> None:
    reader = client.begin_stream()
    assert b"Hel" in reader.received
    assert len(client.worker.engine.rows) == 1
    reader.leave()
    client.stub.flush()
    client.worker.turn()
    assert client.worker.engine.rows == {}


def test_a_client_that_disconnects_while_the_model_loads_gets_no_row(client: Client) -> None:
    sent = client.stub.request("POST", "http://127.0.0.1:1337/v1/chat/completions", data=json.dumps(HELLO).encode())
    client.stub.flush()
    sent.addErrback(lambda failure: None)
    sent.cancel()
    client.stub.flush()
    client.worker.settle()
    assert client.worker.engine.steps == 0


# Waiting for the model.


WAITING = [
    ("/v1/chat/completions", {}),
    ("/v1/completions", {"prompt": "hi"}),
    ("/api/chat", {}),
    ("/api/generate", {"prompt": "hi"}),
    ("/api/chat", {"messages": []}),
    ("/api/generate", {}),
]


@pytest.mark.parametrize(("path", "changes"), WAITING)
def test_a_stream_that_waits_for_its_model_begins_after_ten_seconds_and_says_nothing(
    client: Client, path: str, changes: dict[str, Any]
) -> None:
    reader = client.begin_stream(path, turns=0, **changes)
    once = reader.received
    client.clock.advance(LONGEST_QUIET)
    client.stub.flush()
    # The time is another.
    assert len(reader.received) == 2 * len(once)
    answer = client.finish_stream(reader)
    if path.startswith("/v1"):
        assert once == b": keep-alive\n\n"
        *chunks, done = Answer(200, {}, answer.body.rpartition(once)[2]).data
        assert done == "[DONE]"
        said = [choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices(chunks)]
        assert "".join(said) == "Hello"
    else:
        first, second, *rest = answer.lines
        assert (first["done"], second["done"], rest[-1]["done"]) == (False, False, True)
        assert (first.get("response"), first.get("message", {}).get("content")) in [("", None), (None, "")]
        assert "".join(line.get("response") or line.get("message", {}).get("content", "") for line in rest) in (
            "Hello",
            "",
        )


def choices(chunks: list[Any]) -> list[Any]:
    return [choice for chunk in chunks for choice in chunk["choices"]]


@pytest.mark.parametrize(("path", "changes"), WAITING)
def test_what_goes_wrong_after_a_long_wait_is_told_in_the_stream(
    client: Client, path: str, changes: dict[str, Any]
) -> None:
    reader = client.begin_stream(path, turns=0, **changes)
    client.worker.engine.failure = ModelLoadFailed("no weights")
    with capturedLogs() as events:
        answer = client.finish_stream(reader)
    assert f"POST {path} failed: " in "".join(map(str, map(formatEvent, events)))
    if path.startswith("/v1"):
        [problem, done] = Answer(200, {}, answer.body.removeprefix(b": keep-alive\n\n")).data
        assert (problem["error"]["code"], done) == ("model_load_failed", "[DONE]")
    else:
        assert [line.get("code") for line in answer.lines] == [None, "model_load_failed"]


def test_a_prompt_that_is_refused_after_a_long_wait_is_too(client: Client) -> None:
    client.worker.engine.model.prompt = None
    reader = client.begin_stream(turns=0)
    answer = client.finish_stream(reader)
    assert b'"code":"internal_server_error"' in answer.body
    assert answer.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_who_does_not_stream_is_told_nothing_before_the_answer(client: Client, path: str) -> None:
    responses = client.begin("POST", path, HELLO)
    client.clock.advance(5 * LONGEST_QUIET)
    client.stub.flush()
    assert responses == []


def test_a_client_that_leaves_while_it_waits_gets_no_row_and_is_told_no_more(client: Client) -> None:
    calls = len(client.clock.getDelayedCalls())
    reader = client.begin_stream(turns=0)
    reader.leave()
    client.stub.flush()
    client.worker.settle()
    assert client.worker.engine.steps == 0
    assert len(client.clock.getDelayedCalls()) == calls


# Several answers.


def test_several_answers_are_choices_of_one(client: Client) -> None:
    answer = client.chat(n=3).json
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"Hello"}
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 6


def test_several_answers_stream_side_by_side(client: Client) -> None:
    *chunks, usage, done = client.chat(n=2, stream=True, stream_options={"include_usage": True}).data
    assert done == "[DONE]"
    assert usage["choices"] == []
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "Hello"
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["stop"]


def test_a_client_that_leaves_frees_every_choice(client: Client) -> None:
    generation = client.scheduler.submit(*chat_call(json.dumps({**HELLO, "n": 3}).encode()).requests)
    client.worker.turn()
    assert len(client.worker.engine.rows) == 3
    generation.cancel()
    client.worker.turn()
    assert client.worker.engine.rows == {}


def test_one_choice_that_fails_ends_them_all(client: Client) -> None:
    client.worker.engine.script = [Piece("Hel"), Failed(InternalError("no"))]
    *_, problem, done = client.chat(n=2, stream=True).data
    assert (problem["error"]["message"], done) == ("no", "[DONE]")
    client.worker.turn()
    assert client.worker.engine.rows == {}


def test_no_more_answers_than_requests_at_once(client: Client) -> None:
    answer = client.chat(n=11)
    assert (answer.status, answer.json["error"]["param"]) == (400, "n")
    answer = client.ask("POST", "/v1/completions", {"model": "tiny", "prompt": ["Once"] * 11})
    assert (answer.status, answer.json["error"]["param"]) == (400, "prompt")


# Limits.


def test_the_eleventh_request_is_refused_and_told_when_to_come_again(client: Client) -> None:
    for _ in range(10):
        client.begin("POST", "/v1/chat/completions", HELLO)
    answer = client.ask("POST", "/v1/chat/completions", HELLO)
    assert (answer.status, answer.json["error"]["type"], answer.json["error"]["code"]) == (
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
    )
    assert int(answer.headers["retry-after"]) >= 1
    assert client.chat().status == 200


def test_a_client_that_leaves_makes_place(client: Client) -> None:
    client.worker.engine.script = [Piece("x")] * 100
    generations = [client.scheduler.submit(chat_call(json.dumps(HELLO).encode()).requests[0]) for _ in range(10)]
    assert client.ask("POST", "/api/chat", HELLO).status == 429
    generations[3].cancel()
    client.worker.engine.script = [finished()]
    assert client.ask("POST", "/api/chat", HELLO).status == 200


def test_the_request_beyond_the_minutes_is_refused(tiny_models: Path) -> None:
    client = Client(tiny_models, requests_per_minute=2)
    assert [client.chat().status for _ in range(3)] == [200, 200, 429]
    assert client.chat().headers["retry-after"] == "60"
    assert client.chat(model="other").status == 200
    client.clock.advance(60)
    assert client.chat().status == 200


# One model, those in memory, and what is known of them.


@pytest.mark.parametrize("name", ["tiny", "TINY:latest", "tests/tiny", "tests%2Ftiny", "tests/Tiny/"])
def test_one_model_is_found_by_any_of_its_names(client: Client, name: str) -> None:
    assert client.ask("GET", f"/v1/models/{name}").json["id"] == "tiny"


def test_a_model_that_is_not_there_is_named(client: Client) -> None:
    answer = client.ask("GET", "/v1/models/no/such")
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
    assert answer.json["error"]["message"].startswith("Model not found: no/such")


def test_the_version_is_of_numbers(client: Client) -> None:
    parts = client.ask("GET", "/api/version").json["version"].split(".")
    assert [int(part) for part in parts] >= [0, 6, 4]


def test_what_is_in_memory_is_told_until_when(client: Client) -> None:
    assert client.ask("GET", "/api/ps").json == {"models": []}
    client.ollama(keep_alive="10m")
    [running] = client.ask("GET", "/api/ps").json["models"]
    assert (running["name"], running["model"]) == ("tiny", "tiny:latest")
    assert (running["size"], running["size_vram"]) == (1000, 0)
    assert running["context_length"] == 512
    assert running["digest"].startswith("sha256:")
    assert running["details"]["family"] == "llama"
    assert running["expires_at"] == "2024-03-15T13:40:45.000000Z"
    client.ollama(messages=[], keep_alive=0)
    assert client.ask("GET", "/api/ps").json == {"models": []}


def test_a_model_that_stays_for_ever_is_told_to_expire_in_centuries(client: Client) -> None:
    client.ollama(keep_alive=-1)
    [running] = client.ask("GET", "/api/ps").json["models"]
    assert running["expires_at"].startswith("23")


@pytest.mark.parametrize("key", ["model", "name"])
def test_what_is_known_of_a_model_is_shown(client: Client, key: str) -> None:
    shown = client.ask("POST", "/api/show", {key: "tiny"}).json
    assert set(shown) == {
        "license",
        "modelfile",
        "parameters",
        "template",
        "details",
        "model_info",
        "capabilities",
        "modified_at",
    }
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["llama.context_length"] == 512
    assert shown["capabilities"] == ["completion"]
    assert "<|im_start|>" in shown["template"]


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/show"), ("DELETE", "/api/delete")])
def test_a_body_that_names_no_model_is_refused(client: Client, method: str, path: str) -> None:
    answer = client.ask(method, path, {})
    assert (answer.status, answer.json["error"]["param"]) == (400, "model")


def test_a_model_is_copied_and_deleted(tmp_path: Path, tiny_models: Path) -> None:
    shutil.copytree(tiny_models / "tests" / "tiny", tmp_path / "tests" / "tiny")
    client = Client(tmp_path)
    assert client.ask("POST", "/api/copy", {"source": "tiny", "destination": "mine"}).json == {"status": "success"}
    assert client.chat(model="mine").status == 200
    assert client.ask("DELETE", "/api/delete", {"model": "mine"}).status == 200
    assert client.worker.engine.unloads == ["local/mine"]
    assert client.chat(model="mine").status == 404
    assert client.chat(model="tiny").status == 200


def test_a_model_that_cannot_be_copied_is_named_by_its_field(client: Client) -> None:
    error = client.ask("POST", "/api/copy", {"source": "nope", "destination": "mine"}).json["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "source")


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings", "/api/push"]
)
def test_what_is_known_but_not_served_yet_says_so(client: Client, path: str) -> None:
    answer = client.ask("POST", path, {})
    assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
    assert "is not served" in answer.json["error"]["message"]


# Texts.


def test_a_text_is_continued(client: Client) -> None:
    answer = client.ask(
        "POST", "/v1/completions", {"model": "tiny", "prompt": ["ab", "cde"], "n": 2, "echo": True}
    ).json
    assert answer["object"] == "text_completion"
    assert [choice["text"] for choice in answer["choices"]] == ["abHello", "abHello", "cdeHello", "cdeHello"]
    assert answer["usage"]["prompt_tokens"] == 6


def test_tokens_are_continued_and_can_be_echoed(client: Client) -> None:
    answer = client.ask("POST", "/v1/completions", {"model": "tiny", "prompt": [97, 98], "echo": True}).json
    assert [choice["text"] for choice in answer["choices"]] == ["abHello"]


def test_a_text_streams(client: Client) -> None:
    *chunks, done = client.ask("POST", "/v1/completions", {"model": "tiny", "prompt": "a", "stream": True}).data
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello"
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


def test_generate_answers_with_text(client: Client) -> None:
    answer = client.ask("POST", "/api/generate", {"model": "tiny", "prompt": "hi"}).json
    assert (answer["response"], answer["done"], answer["done_reason"]) == ("Hello", True, "stop")
    lines = client.ask("POST", "/api/generate", {"model": "tiny", "prompt": "hi", "stream": True}).lines
    assert [line["response"] for line in lines] == ["Hel", "lo", ""]


def test_generate_without_a_prompt_loads_and_unloads(client: Client) -> None:
    loaded = client.ask("POST", "/api/generate", {"model": "tiny"}).json
    assert (loaded["response"], loaded["done_reason"]) == ("", "load")
    unloaded = client.ask("POST", "/api/generate", {"model": "tiny", "keep_alive": 0}).json
    assert unloaded["done_reason"] == "unload"
    assert client.worker.engine.unloads == ["tests/tiny"]


def test_a_stay_beyond_reason_is_without_end(client: Client) -> None:
    client.ollama(keep_alive="100000000h")
    [running] = client.ask("GET", "/api/ps").json["models"]
    assert running["expires_at"].startswith("23")


def test_requests_that_only_load_have_limits_as_well(tiny_models: Path) -> None:
    client = Client(tiny_models, requests_per_minute=1)
    assert client.ollama(messages=[]).status == 200
    assert client.ollama(messages=[]).status == 429


def test_what_asking_again_cannot_mend_says_so(client: Client) -> None:
    client.worker.engine.failure = ModelLoadFailed("its weights are damaged")
    answer = client.chat()
    assert (answer.status, answer.headers["x-should-retry"]) == (503, "false")
    client.worker.engine.failure = NoRoomYet("not now", retry_after=5)
    client.scheduler.stop()
    assert "x-should-retry" not in client.chat().headers
