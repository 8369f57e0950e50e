"""The line for every exchange: what it has, and what is never in it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import LogEvent, LogLevel, capturedLogs

from osaurus.chat import NoRoomYet
from osaurus.logs.lines import human_line, json_line
from osaurus.web.guard import Guard

from .test_api import HELLO, Client

SECRET = "sk-quite-a-secret"


@pytest.fixture
def client(tiny_models: Path) -> Client:
    return Client(tiny_models)


@pytest.fixture
def events() -> Iterator[Sequence[LogEvent]]:
    with capturedLogs() as captured:
        yield captured


def lines(events: Sequence[LogEvent]) -> list[LogEvent]:
    return [event for event in events if event["log_namespace"] == "osaurus.web.access"]


def known(event: LogEvent) -> dict[str, Any]:
    return {name: value for name, value in event.items() if not name.startswith("log_")}


def test_an_exchange_is_one_line_with_everything(client: Client, events: Sequence[LogEvent]) -> None:
    answer = client.chat()
    [line] = lines(events)
    found = known(line)
    assert found.pop("client")
    times = {name for name in found if name.endswith("_seconds")}
    assert times == {"load_seconds", "queue_seconds", "prefill_seconds", "decode_seconds"}
    assert {name: value for name, value in found.items() if name not in times} == {
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "seconds": 0.0,
        "request_id": answer.headers["x-request-id"],
        "model": "tests/tiny",
        "prompt_tokens": 3,
        "cached_tokens": 0,
        "completion_tokens": 2,
        "finish_reason": "stop",
    }
    assert "] POST /v1/chat/completions 200 seconds=0.0 " in human_line(line)


def test_what_is_no_route_is_told_by_its_path_without_its_query(client: Client, events: Sequence[LogEvent]) -> None:
    client.ask("GET", f"/v1/nope?key={SECRET}")
    [line] = lines(events)
    assert (line["route"], line["status"], line["error"]) == ("/v1/nope", 404, "not_found")


def test_paths_are_bounded(client: Client, events: Sequence[LogEvent]) -> None:
    client.ask("GET", "/" + "x" * 10000)
    [line] = lines(events)
    assert len(line["route"]) == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/metrics", "/v1/health/", "/ps", "/ui", "/ui/main.js", "/v1/models", "/tags", "/api/version"],
)
def test_those_who_watch_are_told_at_debug_while_all_is_well(
    client: Client, events: Sequence[LogEvent], path: str
) -> None:
    client.ask("GET", path)
    client.ask("POST", path)
    assert [line["log_level"] for line in lines(events)] == [LogLevel.debug, LogLevel.info]


def test_a_client_that_left_is_told(client: Client, events: Sequence[LogEvent]) -> None:
    client.worker.engine.failure = NoRoomYet("full")
    sent = client.stub.request("POST", "http://127.0.0.1:1337/api/chat", data=b'{"model":"tiny","messages":[]}')
    client.stub.flush()
    sent.addErrback(lambda failure: None)
    sent.cancel()
    client.stub.flush()
    [line] = lines(events)
    assert (line["status"], line["gone"]) == (499, True)


def test_a_path_makes_no_line_of_its_own(client: Client, events: Sequence[LogEvent]) -> None:
    client.ask("GET", "/x%0A2026-01-01T00:00:00+0000%20[osaurus%23info]%20forged%1b[2J")
    [line] = lines(events)
    for text in (human_line(line), json_line(line)):
        assert text.count("\n") == 1
        assert "\x1b" not in text


@pytest.mark.parametrize(
    ("path", "said"),
    [("/x%20200%20client=8.8.8.8", '] GET "/x 200 client=8.8.8.8" 404 '), ("/a=b", '] GET "/a=b" 404 ')],
)
def test_a_path_makes_no_field_of_its_own(client: Client, events: Sequence[LogEvent], path: str, said: str) -> None:
    client.ask("GET", path)
    [line] = lines(events)
    assert said in human_line(line)


# What is never said.


class Failing:
    """Fails with what it was asked, as a bug might."""

    def encode(self, request: object) -> object:
        raise ValueError("a bug of ours")


@pytest.mark.parametrize("body", [HELLO, {**HELLO, "stream": True}, {**HELLO, "temperature": SECRET}, b"{" * 9])
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("keys", [(), (SECRET,), ("another",)])
def test_keys_and_prompts_are_in_no_line_of_any_level(
    tiny_models: Path, events: Sequence[LogEvent], body: Any, broken: bool, keys: tuple[str, ...]
) -> None:
    client = Client(tiny_models, guard=Guard(api_keys=keys))
    if broken:
        client.worker.engine.model.prompt = Failing()
    if isinstance(body, dict):
        body = {**body, "messages": [{"role": "user", "content": f"My key is {SECRET}"}], "user": SECRET}
    client.ask("POST", f"/v1/chat/completions?api_key={SECRET}", body, Authorization=f"Bearer {SECRET}", Cookie=SECRET)
    client.ask("POST", "/api/generate", {"model": "tiny", "prompt": SECRET, "system": SECRET}, X_Api_Key=SECRET)
    if not broken:
        client.worker.engine.failure = RuntimeError("the engine broke")
        client.chat(messages=[{"role": "user", "content": SECRET}])
    assert lines(events)
    for event in events:
        assert SECRET not in human_line(event) + json_line(event)


def test_what_was_said_is_told_where_the_operator_asked_for_it(tiny_models: Path, events: Sequence[LogEvent]) -> None:
    client = Client(tiny_models, log_content=True)
    client.chat()
    [line] = lines(events)
    assert (line["prompt"], line["answer"]) == ("user: hi", "Hello")
    assert 'prompt="user: hi" answer=Hello' in human_line(line)


def test_a_bug_that_concerns_a_request_names_it(client: Client, events: Sequence[LogEvent]) -> None:
    client.worker.engine.model.prompt = Failing()
    request_id = client.chat().headers["x-request-id"]
    [failure] = [event for event in events if "log_failure" in event]
    assert failure["request_id"] == request_id
    assert f"request_id={request_id}" in human_line(failure)
