"""A connection says why it takes no more, where a request cannot be read."""

import json
from functools import partial
from typing import Any

import pytest
from attrs import define, field
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from osaurus.web.channel import LONGEST_GOODBYE
from osaurus.web.guard import Guard
from osaurus.web.request import BoundedRequest, QuietSite

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
WHOLE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Echo(Resource):
    """Answers with the path, or later, when it begins with /later."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Request] = []

    def render(self, request: Request) -> bytes | int:
        self.asked.append(request)
        return NOT_DONE_YET if request.path.startswith(b"/later") else request.path


@define
class Connection:
    """One connection, whose answers are read as they come."""

    clock: Clock = field(factory=Clock)
    echo: Echo = field(factory=Echo)
    guard: Guard = field(factory=Guard)
    wire: StringTransport = field(factory=StringTransport)
    channel: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        request = partial(BoundedRequest, max_body=1000, clock=self.clock, begun=lambda _: None)
        options = {"requestFactory": request, "parsePOSTFormSubmission": False, "reactor": self.clock}
        site = QuietSite(self.echo, self.guard, **options)
        self.channel = site.buildProtocol(None)
        self.channel.makeConnection(self.wire)

    def say(self, data: bytes) -> bytes:
        """Send this in pieces of any size; return what came back by now."""
        for start in range(0, len(data), 1000):
            self.channel.dataReceived(data[start : start + 1000])
        return bytes(self.wire.value())


def answered(data: bytes) -> tuple[int, dict[str, str], Any]:
    """Take the one answer in this apart: its status, its headers, its body."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert len(body) == int(headers["content-length"])
    return int(status.split()[1]), headers, json.loads(body)


MALFORMED = [
    b"nonsense\r\n",
    b"GET / HTTP/9.9\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
    HEAD + b"Content-Length: five\r\n\r\nhello",
    HEAD + b"Content-Length: -1\r\n\r\n",
    HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nnone\r\nhello\r\n0\r\n\r\n",
    HEAD + b"a b: c\r\nd e: f\r\ng\r\nContent-Length: x\r\n\r\n",
]
TOO_LARGE = [
    b"GET /" + b"x" * 17_000 + b" HTTP/1.1\r\n",
    HEAD + b"X: " + b"y" * 17_000,
    HEAD + b"X: " + b"y" * 17_000 + b"\r\n\r\n",
    HEAD + b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(20)) + b"\r\n",
    HEAD + b"X: y\r\n" * 501 + b"\r\n",
    HEAD + b" folded\r\n" * 5000,
]


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [(data, 400, "invalid_request") for data in MALFORMED] + [(data, 431, "request_too_large") for data in TOO_LARGE],
)
def test_what_cannot_be_read_is_an_error_in_our_shape(data: bytes, status: int, code: str) -> None:
    connection = Connection()
    found, headers, body = answered(connection.say(data + WHOLE))
    assert found == status
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["type"], body["error"]["code"]) == ("invalid_request_error", code)
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert headers["access-control-allow-origin"] == "*"
    assert headers["access-control-allow-methods"] == "get, post, options"
    assert headers["access-control-allow-headers"] == "content-type, authorization"
    assert headers["x-request-id"].startswith("req_")
    assert connection.echo.asked == []


@pytest.mark.parametrize(("origin", "allowed"), [("https://a.example", True), ("https://b.example", False)])
def test_pages_of_origins_that_are_named_may_read_it_and_no_others(origin: str, allowed: bool) -> None:
    connection = Connection(guard=Guard(origins=("https://a.example",)))
    _, headers, _ = answered(connection.say(HEAD + f"Origin: {origin}\r\n".encode() + b"Content-Length: x\r\n\r\n"))
    assert headers.get("access-control-allow-origin") == (origin if allowed else None)
    assert headers["vary"] == "origin"
    _, headers, _ = answered(Connection(guard=Guard(origins=("https://a.example",))).say(b"nonsense\r\n"))
    assert "access-control-allow-origin" not in headers


def test_headers_within_the_limits_are_taken_request_after_request() -> None:
    connection = Connection()
    large = HEAD + b"X: " + b"y" * 16_000 + b"\r\nContent-Length: 2\r\n\r\n\r\n"
    many = HEAD + b"X: y\r\n" * 499 + b"\r\n"
    for data in (large, many, large, many):
        connection.say(data)
    assert connection.wire.value().count(b"HTTP/1.1 200 OK") == 4


def test_answers_to_what_came_before_are_whole() -> None:
    connection = Connection()
    assert connection.say(b"GET /later HTTP/1.1\r\n\r\n" + b"nonsense\r\n\r\n") == b""
    [request] = connection.echo.asked
    request.write(b"first")
    request.write(b"last")
    request.finish()
    first, _, second = connection.wire.value().partition(b"0\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 OK")
    assert first.endswith(b"5\r\nfirst\r\n4\r\nlast\r\n")
    assert answered(second)[0] == 400


def test_there_is_a_line_in_the_log_with_the_id_that_the_client_has() -> None:
    connection = Connection()
    with capturedLogs() as events:
        _, headers, _ = answered(connection.say(b"nonsense\r\n"))
    [event] = events
    assert formatEvent(event) == "A request could not be read: 400"
    assert (event["client"], event["request_id"]) == ("192.168.1.1", headers["x-request-id"])


def test_behind_what_is_no_http_the_connection_is_closed() -> None:
    connection = Connection()
    connection.say(MALFORMED[0])
    assert connection.wire.disconnecting


def test_one_that_sends_too_much_has_a_moment_to_take_the_answer_and_close() -> None:
    connection = Connection()
    connection.say(TOO_LARGE[0])
    connection.say(b"x" * 100_000)
    connection.clock.advance(LONGEST_GOODBYE - 1)
    assert not connection.wire.disconnecting
    connection.say(b"x")
    connection.clock.advance(1)
    assert connection.wire.disconnecting


def test_one_that_closes_leaves_nothing_to_wait_for() -> None:
    connection = Connection()
    connection.say(TOO_LARGE[-1])
    connection.channel.connectionLost(Failure(ConnectionDone()))
    assert connection.clock.getDelayedCalls() == []
