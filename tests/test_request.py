"""The limit of a body, byte by byte through Twisted's own HTTP channel."""

import json
from functools import partial
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Request

from osaurus.web.front import Front
from osaurus.web.guard import Guard
from osaurus.web.request import LONGEST_ARRIVAL, BoundedRequest, QuietSite

LIMIT = 1000


class Wire(StringTransport):
    """A transport that can be cut."""

    cut = False

    def abortConnection(self) -> None:
        self.cut = True


class Echo(Resource):
    """Answers with the length of the body."""

    isLeaf = True

    def render(self, request: Request) -> bytes:
        assert request.content is not None
        return str(len(request.content.read())).encode()


def connection(clock: Clock | None = None) -> tuple[Any, Wire]:
    clock = clock or Clock()
    factory = partial(BoundedRequest, max_body=LIMIT, clock=clock, begun=lambda _: None)
    guard = Guard()
    site = QuietSite(Front(Echo(), guard, clock), guard, requestFactory=factory, parsePOSTFormSubmission=False)
    channel = site.buildProtocol(None)
    transport = Wire()
    channel.makeConnection(transport)
    return channel, transport


def with_length(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def chunked(body: bytes) -> bytes:
    chunks = [body[start : start + 100] for start in range(0, len(body), 100)]
    return (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        + b"0\r\n\r\n"
    )


@pytest.mark.parametrize("framing", [with_length, chunked])
def test_a_body_at_the_limit_is_taken(framing: Any) -> None:
    channel, transport = connection()
    channel.dataReceived(framing(b"x" * LIMIT))
    assert b"200 OK" in transport.value()
    assert b"1000" in transport.value()


@pytest.mark.parametrize("framing", [with_length, chunked])
def test_a_body_beyond_the_limit_is_413_in_our_shape(framing: Any) -> None:
    channel, transport = connection()
    channel.dataReceived(framing(b"x" * (LIMIT + 1)))
    head, _, body = transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    assert b"Access-Control-Allow-Origin: *" in head
    assert json.loads(body)["error"]["code"] == "request_too_large"


def test_what_may_be_asked_of_the_server_as_a_whole_is_answered_like_any_preflight() -> None:
    channel, transport = connection()
    channel.dataReceived(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = transport.value()
    assert head.startswith(b"HTTP/1.1 204")
    assert b"Server: osaurus/" in head
    assert b"X-Request-Id: req_" in head
    assert b"Access-Control-Allow-Methods: GET, POST, OPTIONS" in head


def test_the_connection_serves_the_next_request_after_a_413() -> None:
    channel, transport = connection()
    channel.dataReceived(with_length(b"x" * (LIMIT + 1)))
    channel.dataReceived(with_length(b"x"))
    assert b"HTTP/1.1 200 OK" in transport.value()


def test_what_exceeds_the_limit_is_not_kept() -> None:
    channel, _ = connection()
    body = with_length(b"x" * LIMIT * 10)
    channel.dataReceived(body[:-1])
    [request] = channel.requests
    assert len(request.content.getvalue()) == 0


def test_a_client_that_never_stops_sending_is_cut_off() -> None:
    channel, transport = connection()
    channel.dataReceived(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    with capturedLogs() as events:
        for _ in range(19):
            channel.dataReceived(b"%x\r\n%s\r\n" % (LIMIT, b"x" * LIMIT))
    assert transport.disconnecting
    [event] = events
    assert formatEvent(event) == "A request was cut off: it goes on beyond 16000 bytes"
    assert event["client"] == "192.168.1.1"


def test_a_json_body_labelled_as_a_form_is_left_alone() -> None:
    channel, transport = connection()
    body = b"a=b&c"
    kind = b"Content-Type: application/x-www-form-urlencoded"
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\n" + kind + b"\r\nContent-Length: 5\r\n\r\n"
    channel.dataReceived(head + body)
    assert transport.value().endswith(b"\r\n5\r\n0\r\n\r\n") or b"\r\n\r\n5" in transport.value()


@pytest.mark.parametrize(
    "part", [b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nxxx"]
)
def test_a_request_that_is_never_complete_is_cut_off(part: bytes) -> None:
    clock = Clock()
    channel, transport = connection(clock)
    channel.dataReceived(part)
    clock.advance(LONGEST_ARRIVAL - 1)
    assert not transport.cut
    with capturedLogs() as events:
        clock.advance(1)
    assert transport.cut
    # Twisted has a line of its own.
    [event] = [event for event in events if event["log_namespace"] == "osaurus.web.request"]
    assert formatEvent(event) == "A request was cut off: it is not complete after 120 s"


def test_a_request_that_is_complete_may_take_its_time() -> None:
    clock = Clock()
    channel, transport = connection(clock)
    channel.dataReceived(with_length(b"x"))
    clock.advance(LONGEST_ARRIVAL)
    assert not transport.cut


def test_a_connection_that_is_lost_leaves_nothing_to_wait_for() -> None:
    clock = Clock()
    channel, _ = connection(clock)
    channel.dataReceived(b"POST / HTTP/1.1\r\n")
    channel.connectionLost(Failure(ConnectionDone()))
    assert clock.getDelayedCalls() == []
