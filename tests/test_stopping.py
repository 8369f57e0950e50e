"""Stopping a real server that answers with the starter model: by signals, and by the command."""

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from attrs import define, field

from .server import Server, serving
from .test_command import osaurus

pytestmark = pytest.mark.starter


# Patience for answers, which are not to come quickly.
LONG = ("--drain=1h", "--speculation=off")


def counting(url: str, tokens: int, stream: bool = True) -> Request:
    """Have the model count, without end: the tokens that end its answers may not come."""
    body = {
        "model": "smollm2:135m",
        "prompt": "1 2 3 4 5 6 7 8",
        "max_tokens": tokens,
        "temperature": 0,
        "logit_bias": {"0": -100, "2": -100},
    }
    return Request(
        f"{url}/v1/completions",
        json.dumps({**body, "stream": stream}).encode(),
        {"Content-Type": "application/json"},
    )


@define
class Stream:
    """An answer that has begun to come."""

    answer: HTTPResponse
    events: list[Any] = field(factory=list)

    def rest(self) -> list[Any]:
        """Read it to its end; return all its events."""
        for line in self.answer:
            text = line.decode().strip().removeprefix("data: ")
            if text and not text.startswith(":"):
                self.events.append(text if text == "[DONE]" else json.loads(text))
        return self.events


@contextmanager
def streaming(server: Server, tokens: int) -> Iterator[Stream]:
    with urlopen(counting(server.url, tokens), timeout=120) as answer:
        lines = (line.decode() for line in iter(answer.readline, b""))
        # Where the model takes long to load there are comments first.
        begun = next(line for line in lines if line.startswith("data: "))
        yield Stream(answer, [json.loads(begun.removeprefix("data: "))])


def said(events: list[Any]) -> str:
    return "".join(event["choices"][0]["text"] for event in events if event != "[DONE]")


def test_what_is_being_written_is_written_to_its_end(tmp_path: Path, starter_models: Path) -> None:
    cache = tmp_path / "cache"
    with serving(tmp_path, starter_models, OSU_CACHE_DIR=str(cache)) as server:
        with urlopen(counting(server.url, 120, stream=False), timeout=120) as answer:
            whole = json.load(answer)["choices"][0]["text"]
        before = set(cache.glob("prefixes/[0-9a-f]*"))
        with streaming(server, 240) as stream:
            server.process.send_signal(signal.SIGTERM)
            events = stream.rest()
        assert server.process.wait(60) == -signal.SIGTERM
        assert (events[-1], events[-2]["choices"][0]["finish_reason"]) == ("[DONE]", "length")
        assert said(events).startswith(whole)
        assert "Traceback" not in server.log.read_text()
        # What the prefix cache had still to write is on the disk.
        assert set(cache.glob("prefixes/[0-9a-f]*")) > before
        assert list(cache.glob("prefixes/.*")) == []


def test_after_its_time_it_ends_with_an_error(tmp_path: Path, starter_models: Path) -> None:
    with serving(tmp_path, starter_models, "--drain=200ms") as server, streaming(server, 4000) as stream:
        server.process.send_signal(signal.SIGTERM)
        events = stream.rest()
        assert (events[-1], events[-2]["error"]["code"]) == ("[DONE]", "service_unavailable")
        assert server.process.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, starter_models: Path, second: int) -> None:
    with serving(tmp_path, starter_models, *LONG) as server, streaming(server, 4000) as stream:
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_line("The server stops")
        server.process.send_signal(second)
        events = stream.rest()
        assert (events[-1], events[-2]["error"]["code"]) == ("[DONE]", "service_unavailable")
        assert server.process.wait(60) == -signal.SIGTERM
        assert "Traceback" not in server.log.read_text()


def test_meanwhile_nobody_new_is_let_in(tmp_path: Path, starter_models: Path) -> None:
    with serving(tmp_path, starter_models, *LONG) as server:
        kept = [HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(2)]
        for connection in kept:
            connection.request("GET", "/health")
            assert connection.getresponse().read()
        with streaming(server, 4000):
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_line("The server stops")
            asked = counting(server.url, 1)
            assert isinstance(asked.data, bytes)
            kept[0].request("POST", "/v1/completions", asked.data, {"Content-Type": "application/json"})
            kept[1].request("GET", "/health")
            refused, health = (connection.getresponse() for connection in kept)
            assert (refused.status, refused.headers["Retry-After"], refused.headers["Connection"]) == (
                503,
                "5",
                "close",
            )
            assert (health.status, json.load(health)["reason"]) == (503, "The server is stopping")
            with pytest.raises(ConnectionRefusedError):
                HTTPConnection("127.0.0.1", server.port).connect()
            for connection in kept:
                connection.close()
            server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == -signal.SIGTERM


# The command.


def test_stop_waits_until_the_answer_is_complete(tmp_path: Path, starter_models: Path) -> None:
    with serving(tmp_path, starter_models) as server:
        server.wait_for_line("Osaurus is running")
        with streaming(server, 240) as stream:
            stopped = osaurus(tmp_path, "stop")
            events = stream.rest()
        assert (events[-1], events[-2]["choices"][0]["finish_reason"]) == ("[DONE]", "length")
        assert stopped.stdout == f"Stopped the server at {server.url}, process {server.process.pid}\n"
        assert re.search(r"completes what it is answering, until \d\d:\d\d:\d\d at the latest", stopped.stderr)
        assert server.process.wait(60) == -signal.SIGTERM


def test_stop_now_does_not(tmp_path: Path, starter_models: Path) -> None:
    with serving(tmp_path, starter_models, *LONG) as server:
        server.wait_for_line("Osaurus is running")
        with streaming(server, 4000) as stream:
            assert osaurus(tmp_path, "stop", "--now").returncode == 0
            assert stream.rest()[-2]["error"]["code"] == "service_unavailable"
        assert server.process.wait(60) == -signal.SIGTERM


def test_one_that_is_stopping_is_no_server_to_ask_but_can_be_hurried(tmp_path: Path, starter_models: Path) -> None:
    with serving(tmp_path, starter_models, *LONG) as server:
        server.wait_for_line("Osaurus is running")
        with streaming(server, 4000):
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_line("The server stops")
            assert server.url not in osaurus(tmp_path, "status").stderr
            assert osaurus(tmp_path, "stop", "--now").returncode == 0
        assert server.process.wait(60) == -signal.SIGTERM
