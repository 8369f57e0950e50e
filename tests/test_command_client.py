"""Speaking with a server: what it says, and what is said when it is none, or breaks off."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from twisted.internet import reactor as twisted_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater

from osaurus.command.client import MOST_LINE, Client, http_client
from osaurus.command.errors import NoServer, Refused

from .server import free_port

reactor: Any = twisted_reactor
HEAD = b"HTTP/1.1 200 OK\r\nServer: osaurus/0.1.0\r\n"


@define(eq=False)
class Answering(Protocol):
    """Answers whatever is asked with these bytes, and then perhaps hangs up."""

    answer: bytes
    hangs_up: bool
    heard: list[bytes]
    left: Deferred[None]

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.heard.append(data)
        self.transport.write(self.answer)
        if self.hangs_up:
            self.transport.loseConnection()

    def connectionLost(self, reason: Any = None) -> None:
        if not self.left.called:
            self.left.callback(None)


@define
class Somebody:
    """Listens on a port of this machine."""

    answer: bytes
    hangs_up: bool = True
    heard: list[bytes] = field(factory=list)
    left: Deferred[None] = field(factory=Deferred)

    def buildProtocol(self, _: object) -> Answering:
        return Answering(self.answer, self.hangs_up, self.heard, self.left)

    def doStart(self) -> None: ...

    def doStop(self) -> None: ...

    @contextmanager
    def listening(self, key: str = "") -> Iterator[Client]:
        port = reactor.listenTCP(0, self, interface="127.0.0.1")
        try:
            yield Client(http_client(reactor), f"http://127.0.0.1:{port.getHost().port}", key)
        finally:
            port.stopListening()


@pytest_twisted.ensureDeferred
async def test_with_nobody_there_one_is_told_how_to_have_a_server() -> None:
    client = Client(http_client(reactor), f"http://127.0.0.1:{free_port()}")
    with pytest.raises(NoServer) as caught:
        await client.get("/api/ps")
    assert all(words in caught.value.message for words in (client.url, "osaurus serve", "--host", "OSU_PORT"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        HEAD + b"\r\n<html>",
        HEAD + b"Content-Length: 2\r\n\r\n[]",
        HEAD + b"Content-Length: 0\r\n\r\n",
        HEAD + b"\r\n" + b"[" * 100000,
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"HTTP/1.1 301 Moved\r\nLocation: http://example.org/\r\n\r\n",
    ],
)
@pytest_twisted.ensureDeferred
async def test_somebody_else_on_the_port_is_not_taken_for_a_server(answer: bytes) -> None:
    with Somebody(answer).listening() as client, pytest.raises(NoServer, match="is no Osaurus"):
        await client.health(30)


@pytest_twisted.ensureDeferred
async def test_a_server_that_says_nothing_in_time_is_none() -> None:
    with Somebody(b"", hangs_up=False).listening() as client, pytest.raises(NoServer, match="No server answers"):
        await client.health(0.01)


@pytest_twisted.ensureDeferred
async def test_health_comes_with_the_version_and_with_what_is_wrong() -> None:
    head = HEAD.replace(b"200 OK", b"503 Service Unavailable")
    with Somebody(head + b'\r\n{"status":"error","reason":"stuck"}').listening() as client:
        assert await client.health(30) == {"status": "error", "reason": "stuck", "version": "0.1.0"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error":{"message":"Model not found: x","type":"invalid_request_error"}}', "Model not found: x"),
        (b'{"error":"Model not found: x"}', "Model not found: x"),
        (b"<html>", "status 404"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_error_is_told_in_the_servers_words(body: bytes, said: str) -> None:
    answer = b"HTTP/1.1 404 Not Found\r\n\r\n" + body
    with Somebody(answer).listening() as client, pytest.raises(Refused) as caught:
        await client.get("/api/ps")
    assert said in caught.value.message
    assert caught.value.status == 404


@pytest_twisted.ensureDeferred
async def test_the_key_goes_along() -> None:
    somebody = Somebody(HEAD + b"\r\n{}")
    with somebody.listening("secret") as client:
        await client.post("/api/show", {"model": "x"})
    sent = b"".join(somebody.heard)
    assert b"Authorization: Bearer secret\r\n" in sent
    assert sent.startswith(b"POST /api/show HTTP/1.1\r\n")


@pytest_twisted.ensureDeferred
async def test_the_lines_of_a_stream_are_told_one_by_one_the_last_without_an_end_too() -> None:
    told: list[dict[str, Any]] = []
    with Somebody(HEAD + b'\r\n{"a":1}\n\n{"a":2}\n{"a":3}').listening() as client:
        await client.stream("/api/chat", {}, told.append)
    assert told == [{"a": 1}, {"a": 2}, {"a": 3}]


@pytest_twisted.ensureDeferred
async def test_an_error_in_a_stream_ends_it() -> None:
    told: list[dict[str, Any]] = []
    somebody = Somebody(HEAD + b'\r\n{"a":1}\n{"error":"out of memory"}\n{"a":2}\n')
    with somebody.listening() as client, pytest.raises(Refused, match="out of memory"):
        await client.stream("/api/chat", {}, told.append)
    assert told == [{"a": 1}]


@pytest_twisted.ensureDeferred
async def test_a_stream_that_breaks_off_is_an_error() -> None:
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    with Somebody(head + b'8\r\n{"a":1}\n\r\n').listening() as client, pytest.raises(NoServer, match="broke off"):
        await client.stream("/api/chat", {}, lambda _: None)


@pytest_twisted.ensureDeferred
async def test_a_line_without_end_is_not_collected_for_ever() -> None:
    somebody = Somebody(HEAD + b"\r\n" + b" " * (MOST_LINE + 1), hangs_up=False)
    with somebody.listening() as client, pytest.raises(NoServer, match="is no Osaurus"):
        await client.stream("/api/chat", {}, lambda _: None)
    await somebody.left


@pytest.mark.parametrize("answer", [b"", HEAD + b'\r\n{"a":1}\n'])
@pytest_twisted.ensureDeferred
async def test_whoever_cancels_hangs_up(answer: bytes) -> None:
    somebody = Somebody(answer, hangs_up=False)
    with somebody.listening() as client:
        streaming = Deferred.fromCoroutine(client.stream("/api/chat", {}, lambda _: None))
        while not somebody.heard:
            await deferLater(reactor, 0.01)
        await deferLater(reactor, 0.05)
        streaming.cancel()
        with pytest.raises(CancelledError):
            await streaming
        await somebody.left


@pytest.mark.parametrize("error", [BrokenPipeError("nobody reads"), ValueError("no such character")])
@pytest_twisted.ensureDeferred
async def test_an_error_of_whoever_is_told_ends_the_stream_and_is_theirs(error: Exception) -> None:
    def fail(said: Any) -> None:
        raise error

    somebody = Somebody(HEAD + b'\r\n{"a":1}\n', hangs_up=False)
    with somebody.listening() as client, pytest.raises(type(error), match=str(error)):
        await client.stream("/api/chat", {}, fail)
    await somebody.left
