"""`POST /pull`, as Ollama has it: in memory, and through real sockets from a hub on loopback."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from osaurus.serving.stream import LONGEST_PAUSE, LONGEST_QUIET

from .doubles import MemoryProcess
from .hub import FakeHub
from .server import Server, serving
from .test_api import Answer, Client

NAME = "mlx-community/Tiny-4bit"
FILE = {"status": "pulling 00", "digest": "sha256:00", "total": 10}


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


def begin(client: Client, **fields: Any) -> list[Any]:
    return client.begin("POST", "/api/pull", {"model": NAME, **fields})


def process(client: Client) -> MemoryProcess:
    return client.spawned.processes[-1]


def finish(client: Client, responses: list[Any]) -> Answer:
    """Return an answer whose pull is over."""
    client.stub.flush()
    [response] = responses
    content: list[bytes] = []
    response.content().addCallback(content.append)
    client.stub.flush()
    [body] = content
    headers = {name.decode().lower(): values[0].decode() for name, values in response.headers.getAllRawHeaders()}
    return Answer(response.code, headers, body)


def test_a_pull_is_told_line_by_line(client: Client) -> None:
    responses = begin(client)
    process(client).tell(status="pulling manifest")
    process(client).tell(**FILE, completed=3)
    process(client).tell(**FILE, completed=10)
    process(client).tell(status="success")
    process(client).end()
    answer = finish(client, responses)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.lines == [
        {"status": "pulling manifest"},
        {**FILE, "completed": 3},
        {**FILE, "completed": 10},
        {"status": "success"},
    ]


@pytest.mark.parametrize("key", ["model", "name"])
def test_without_a_stream_the_end_is_told(client: Client, key: str) -> None:
    responses = client.begin("POST", "/v1/pull/", {key: NAME, "stream": False, "insecure": True})
    process(client).tell(status="pulling manifest")
    process(client).tell(**FILE, completed=3)
    assert responses == []
    process(client).tell(status="success")
    answer = finish(client, responses)
    assert (answer.status, answer.json) == (200, {"status": "success"})


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_there_already_is_not_pulled(tiny_models: Path, stream: bool) -> None:
    client = Client(tiny_models)
    answer = client.ask("POST", "/api/pull", {"model": "tests/tiny", "stream": stream})
    if stream:
        assert answer.lines == [{"status": "pulling manifest"}, {"status": "success"}]
    else:
        assert answer.json == {"status": "success"}
    assert client.spawned.processes == []


@pytest.mark.parametrize("stream", [True, False])
def test_a_model_that_is_not_there_has_its_real_status(client: Client, stream: bool) -> None:
    responses = begin(client, stream=stream)
    process(client).tell(status="pulling manifest")
    process(client).tell(error="There is no such", kind="NoSuchRepository")
    process(client).end()
    answer = finish(client, responses)
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
    assert answer.json["error"]["message"] == "There is no such"


def test_an_error_on_the_way_is_the_last_line(client: Client) -> None:
    responses = begin(client)
    process(client).tell(**FILE, completed=3)
    process(client).tell(error="The disk is full", kind="PullError")
    process(client).end()
    answer = finish(client, responses)
    assert answer.status == 200
    assert answer.lines[-1]["error"] == "The disk is full"


def test_an_error_that_a_retry_cannot_mend_says_so(client: Client) -> None:
    responses = begin(client, stream=False)
    process(client).tell(error="The disk is full", kind="PullError")
    process(client).end()
    answer = finish(client, responses)
    assert (answer.status, answer.json["error"]["code"]) == (500, "pull_failed")
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "model"),
        ({"model": "http://evil.example/org/name"}, "model"),
        ({"model": "../../etc/passwd"}, "model"),
        ({"model": 7}, "model"),
        ({"model": NAME, "quantize": 7}, "quantize"),
        ({"model": NAME, "quantize": 16}, "quantize"),
        ({"model": NAME, "stream": "yes"}, "stream"),
    ],
)
def test_a_body_that_asks_for_nothing_is_refused(client: Client, body: Any, param: str) -> None:
    answer = client.ask("POST", "/api/pull", body)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert client.spawned.processes == []


def test_while_nothing_is_new_the_same_is_said_again(client: Client) -> None:
    responses = begin(client)
    process(client).tell(**FILE, completed=3)
    for _ in range(2):
        client.clock.advance(LONGEST_QUIET)
    process(client).tell(status="success")
    assert [line.get("completed") for line in finish(client, responses).lines] == [None, 3, 3, 3, None]


def test_a_client_that_does_not_read_is_told_the_latest_when_it_does() -> None:
    """The gate alone; through sockets it takes megabytes of progress."""
    from twisted.internet.defer import Deferred
    from twisted.internet.task import Clock

    from osaurus.web.pulling import Gate

    clock = Clock()
    dropped: list[str] = []

    class Transport:
        def abortConnection(self) -> None:
            dropped.append("dropped")

    class Request:
        transport = Transport()

    gate = Gate(Request(), clock)  # type: ignore[arg-type]  # of a request only its transport
    gate.pauseProducing()
    waiting = Deferred.fromCoroutine(gate.passed())
    assert not waiting.called
    gate.resumeProducing()
    assert waiting.called
    assert Deferred.fromCoroutine(gate.passed()).called
    clock.advance(LONGEST_PAUSE)
    assert dropped == []
    gate.pauseProducing()
    clock.advance(LONGEST_PAUSE)
    assert dropped == ["dropped"]


# Through sockets, from a hub.


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def server(tmp_path: Path, models: Path, hub: FakeHub, tiny_models: Path) -> Iterator[Server]:
    hub.add(NAME, tiny_models / "tests" / "tiny")
    with serving(tmp_path, models, HF_ENDPOINT=hub.endpoint) as running:
        yield running


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def under_way(models: Path) -> bool:
    """Whether something of a file is here already, and not all."""
    return any(path.stat().st_size for path in models.rglob("*.part"))


def test_the_ollama_package_pulls_a_model_and_uses_it(server: Server, hub: FakeHub) -> None:
    with ollama.Client(host=server.url) as client:
        hub.cuts["model.safetensors"] = [5000]
        told = list(client.pull(NAME, stream=True))
        assert (told[0].status, told[-1].status) == ("pulling manifest", "success")
        weights = [stage for stage in told if stage.digest and stage.total == stage.completed]
        assert weights
        assert [model.model for model in client.list().models] == ["tiny-4bit:latest"]
        answer = client.chat(NAME, [{"role": "user", "content": "Hello"}], options={"num_predict": 2})
        assert answer.message.content
        assert client.pull(NAME).status == "success"
        with pytest.raises(ollama.ResponseError) as missing:
            client.pull("org/nothing")
        assert missing.value.status_code == 404
        with pytest.raises(ollama.ResponseError) as missing:
            list(client.pull("org/nothing", stream=True))
        assert missing.value.status_code == 404


def test_two_watch_one_pull_and_the_last_to_leave_ends_it(server: Server, hub: FakeHub, models: Path) -> None:
    hub.held["model.safetensors"] = threading.Event()
    with httpx.Client(base_url=server.url, timeout=60) as http:
        body = {"model": NAME}
        with http.stream("POST", "/api/pull", json=body) as first:
            eventually(lambda: bool(hub.asked("model.safetensors")) and under_way(models))
            with http.stream("POST", "/api/pull", json=body) as second:
                assert json.loads(next(second.iter_lines())) == {"status": "pulling manifest"}
            # The first goes on.
            assert first.status_code == 200
        # Its process ends, and what it has fetched stays.
        eventually(lambda: "Nobody waits for mlx-community/Tiny-4bit" in server.log.read_text())
        eventually(lambda: not any(models.rglob("*.lock")))
        assert len(hub.asked("model.safetensors")) == 1
        assert under_way(models)
        assert http.get("/api/tags").json() == {"models": []}
        hub.held.pop("model.safetensors").set()
        assert http.post("/api/pull", json={**body, "stream": False}).json() == {"status": "success"}
        assert hub.asked("model.safetensors")[-1]["range"].startswith("bytes=")
    assert not (models / ".pulling").exists()


def test_all_who_ask_at_once_have_the_model_and_it_is_fetched_once(server: Server, hub: FakeHub) -> None:
    def ask(stream: bool) -> str:
        return httpx.post(f"{server.url}/api/pull", json={"model": NAME, "stream": stream}, timeout=60).text

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, [True, False, True, False]))
    assert all('"status":"success"' in answer for answer in answers)
    assert len(hub.asked("model.safetensors")) == 1


def test_a_server_that_stops_ends_its_pulls(server: Server, hub: FakeHub, models: Path) -> None:
    hub.held["model.safetensors"] = threading.Event()
    with (
        httpx.Client(base_url=server.url, timeout=60) as http,
        http.stream("POST", "/pull", json={"model": NAME}) as on,
    ):
        lines = on.iter_lines()
        next(lines)
        eventually(lambda: under_way(models))
        server.stop()
    assert not any(models.rglob("*.lock"))


@pytest.mark.parametrize("stream", [True, False])
def test_a_gated_model_is_refused_with_what_to_do(server: Server, hub: FakeHub, stream: bool) -> None:
    hub.repositories[NAME].gated = True
    answer = httpx.post(f"{server.url}/api/pull", json={"model": NAME, "stream": stream}, timeout=60)
    assert answer.status_code == 403
    assert "HF_TOKEN" in answer.json()["error"]["message"]


@pytest.mark.parametrize("place", ["environment", "file"])
def test_the_token_of_the_server_is_used(
    tmp_path: Path, models: Path, hub: FakeHub, tiny_models: Path, place: str
) -> None:
    hub.add(NAME, tiny_models / "tests" / "tiny", gated=True)
    # Where `hf auth login` puts it.
    (tmp_path / "face").mkdir()
    (tmp_path / "face" / "token").write_text(hub.token if place == "file" else "hf_wrong")
    variables = {"HF_HOME": str(tmp_path / "face"), **({"HF_TOKEN": hub.token} if place == "environment" else {})}
    with serving(tmp_path, models, HF_ENDPOINT=hub.endpoint, **variables) as running:
        answer = httpx.post(f"{running.url}/api/pull", json={"model": NAME, "stream": False}, timeout=60)
    assert answer.json() == {"status": "success"}


def test_what_lies_in_the_hub_cache_need_not_be_pulled(tmp_path: Path, models: Path, tiny_models: Path) -> None:
    snapshot = tmp_path / "face" / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots" / ("1" * 40)
    shutil.copytree(tiny_models / "tests" / "tiny", snapshot)
    with serving(tmp_path, models, HF_HOME=str(tmp_path / "face")) as running, ollama.Client(running.url) as client:
        assert client.pull(NAME).status == "success"
        assert [model.model for model in client.list().models] == ["tiny-4bit:latest"]
        with pytest.raises(ollama.ResponseError) as refused:
            client.delete(NAME)
        assert refused.value.status_code == 403
    assert snapshot.exists()
