"""What Prometheus is told: its form, who may ask, and that the figures are true; once through sockets."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from osaurus.chat import NoRoomYet, Piece
from osaurus.web.guard import Guard

from .server import serving
from .test_api import HELLO, PREFIXES, Answer, Client


@pytest.fixture
def client(tiny_models: Path) -> Client:
    return Client(tiny_models)


Samples = dict[str, dict[tuple[str, ...], float]]


def samples(families: Iterable[Any]) -> Samples:
    """Each sample's name, and its values by its labels."""
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def read(answer: Answer) -> Samples:
    assert answer.status == 200
    return samples(plain(answer.body.decode()))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_metrics_are_under_every_prefix(client: Client, prefix: str) -> None:
    answer = client.ask("GET", f"{prefix}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert read(answer)["osaurus_engine_up"] == {(): 1.0}


def test_prometheus_may_ask_for_the_newer_form(client: Client) -> None:
    answer = client.ask("GET", "/metrics", Accept="application/openmetrics-text;version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert samples(openmetrics(answer.body.decode()))["osaurus_engine_up"] == {(): 1.0}


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=abc",
        "application/openmetrics-text; version=1.x",
        "text/plain; version=abc",
        "text/plain; version=1.0.0; escaping=nonsense",
        "application/openmetrics-text; version=1.0.0; escaping=",
        "text/plain;version",
        "=;=,;",
    ],
)
def test_who_asks_for_nonsense_is_told_all_the_same(client: Client, accept: str) -> None:
    assert b"osaurus_engine_up 1.0" in client.ask("GET", "/metrics", Accept=accept).body


# Who may ask.


def test_where_keys_are_set_one_is_needed(tiny_models: Path) -> None:
    client = Client(tiny_models, guard=Guard(api_keys=("key",)))
    assert client.ask("GET", "/metrics").status == 401
    assert client.ask("GET", "/metrics", Authorization="Bearer key").status == 200


@pytest.mark.parametrize("path", ["/metrics", "/v1/metrics/", "//metrics", "/%6detrics"])
def test_they_are_not_for_pages_of_others(client: Client, path: str) -> None:
    assert client.ask("GET", path, Origin="https://page.example").status == 403
    assert client.ask("GET", "/metrics", Origin="http://127.0.0.1:1337").status == 200


# What is counted.


def test_requests_are_counted_by_route_and_status(client: Client) -> None:
    client.chat()
    client.chat(stream=True)
    client.chat(model="nope")
    client.ask("GET", "/v1/models/tiny")
    client.ask("GET", "/api/models/other")
    assert read(client.ask("GET", "/metrics"))["osaurus_requests_total"] == {
        ("/v1/chat/completions", "200"): 2,
        ("/v1/chat/completions", "404"): 1,
        ("/v1/models/{name}", "200"): 2,
    }


def test_paths_that_nobody_serves_are_one(client: Client) -> None:
    for number in range(5):
        client.ask("GET", f"/nope/{number}")
    assert read(client.ask("GET", "/metrics"))["osaurus_requests_total"] == {("other", "404"): 5}


def test_a_client_that_left_is_counted(client: Client) -> None:
    client.begin_stream().leave()
    client.stub.flush()
    assert read(client.ask("GET", "/metrics"))["osaurus_requests_total"] == {("/v1/chat/completions", "200"): 1}


# How it stands.


def test_a_request_that_waits_for_memory_is_in_the_queue(client: Client) -> None:
    client.worker.engine.failure = NoRoomYet("full")
    client.begin("POST", "/v1/chat/completions", HELLO)
    assert read(client.ask("GET", "/metrics"))["osaurus_queue_depth"] == {(): 1}


def test_rows_are_told_by_what_they_do(client: Client) -> None:
    client.worker.engine.script = [Piece("x")] * 100
    client.begin_stream()
    assert read(client.ask("GET", "/metrics"))["osaurus_rows"] == {
        ("waiting",): 0,
        ("reading",): 0,
        ("writing",): 1,
        ("parked",): 0,
    }


def test_an_engine_that_cannot_generate_is_down(client: Client) -> None:
    client.begin_stream()
    client.worker.engine.failure = MemoryError("no more")
    client.worker.thread.run()
    [answer] = client.begin("GET", "/metrics")
    content: list[bytes] = []
    answer.content().addCallback(content.append)
    client.stub.flush()
    found = samples(plain(content[0].decode()))
    assert found["osaurus_engine_up"] == {(): 0}
    assert set(found["osaurus_rows"].values()) == {0}


def test_a_histogram_counts_what_is_below_each_bound(client: Client) -> None:
    tally = client.tally.of("tests/tiny")
    tally.wrote_first(1, 10**8)
    tally.wrote(2, 10**7)
    tally.wrote(1, 10**12)
    found = read(client.ask("GET", "/metrics"))
    first = found["osaurus_time_to_first_token_seconds_bucket"]
    assert [first[bound, "tests/tiny"] for bound in ("0.05", "0.1", "300.0", "+Inf")] == [0, 1, 1, 1]
    between = found["osaurus_inter_token_seconds_bucket"]
    assert [between[bound, "tests/tiny"] for bound in ("0.005", "0.01", "120.0", "+Inf")] == [2, 2, 2, 3]
    assert found["osaurus_inter_token_seconds_count"] == {("tests/tiny",): 3}
    assert found["osaurus_inter_token_seconds_sum"]["tests/tiny",] == pytest.approx(1000.01)
    assert found["osaurus_completion_tokens_total"] == {("tests/tiny",): 4}


# What the documentation says.


def rows(client: Client) -> list[str]:
    """The rows that docs/metrics.md should have."""
    client.chat()
    client.tally.of("tests/tiny").wrote_first(1, 1)
    found = []
    for family in client.registry.collect():
        if family.name.startswith("osaurus_"):
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels = [name for name in family.samples[0].labels if name != "le"]
            named = ", ".join(f"`{name}`" for name in labels)
            found.append(f"| `{family.name}{suffix}` | {family.type} | {named} | {family.documentation} |")
    return found


def test_the_page_has_every_metric_with_its_meaning_and_no_other(client: Client) -> None:
    page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text("utf-8")
    documented = [line for line in page.splitlines() if line.startswith("| `osaurus_")]
    assert documented == rows(client)
    for family in client.registry.collect():
        if family.name.startswith("process_"):
            assert f"`{family.name}" in page


# Through sockets.


def test_a_server_tells_what_its_answers_said(tmp_path: Path, tiny_models: Path) -> None:
    prompt = "a long prompt of which something will be found again, " * 3
    with serving(tmp_path, tiny_models) as server:

        def ask(path: str, **body: Any) -> list[Any]:
            data = {"model": "tiny", "messages": [{"role": "user", "content": prompt}], **body}
            headers = {"Content-Type": "application/json"}
            request = Request(f"{server.url}{path}", json.dumps(data).encode(), headers)
            with urlopen(request, timeout=60) as answer:
                lines = [line.removeprefix(b"data: ") for line in answer if line.strip()]
            return [json.loads(line) for line in lines if line.strip() != b"[DONE]"]

        def scrape() -> Samples:
            with urlopen(f"{server.url}/metrics", timeout=60) as answer:
                return samples(plain(answer.read().decode()))

        whole = ask("/v1/chat/completions", max_tokens=20)[-1]["usage"]
        *_, last = ask("/v1/chat/completions", max_tokens=20, stream=True, stream_options={"include_usage": True})
        streamed = last["usage"]
        ollama = ask("/api/chat", stream=True, options={"num_predict": 20})[-1]
        found = scrape()

    model = ("tests/tiny",)
    written = whole["completion_tokens"] + streamed["completion_tokens"] + ollama["eval_count"]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in (whole, streamed)]
    assert found["osaurus_requests_total"] == {("/v1/chat/completions", "200"): 2, ("/api/chat", "200"): 1}
    assert found["osaurus_prompt_tokens_total"][model] == 3 * whole["prompt_tokens"]
    # The third is the second again.
    assert found["osaurus_cached_tokens_total"][model] == cached[0] + 2 * cached[1] > 0
    assert found["osaurus_completion_tokens_total"][model] == written
    assert found["osaurus_time_to_first_token_seconds_count"][model] == 3
    assert found["osaurus_inter_token_seconds_count"][model] == written - 3
    assert found["osaurus_prefix_cache_hits_total"] == {(): 2}
    assert found["osaurus_prefix_cache_misses_total"] == {(): 1}
    assert found["osaurus_prefix_cache_bytes"]["memory",] > 0
    assert found["osaurus_model_bytes"][model] == found["osaurus_memory_bytes"]["models",] > 0
    assert found["osaurus_memory_bytes"]["limit",] > found["osaurus_memory_bytes"]["models",]
    assert set(found["osaurus_rows"].values()) == {0}
    assert found["osaurus_queue_depth"] == {(): 0}
    assert found["osaurus_engine_up"] == {(): 1}
