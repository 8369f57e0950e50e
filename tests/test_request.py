"""The limit of a body, byte by byte through Twisted's own HTTP channel."""

import json
from functools import partial

import pytest
from twisted.internet.testing import StringTransport
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from osaurus.web.request import BoundedRequest

LIMIT = 1000


class Echo(Resource):
    """Answers with the length of the body."""

    isLeaf = True

    def render(self, request: Request) -> bytes:
        assert request.content is not None
        return str(len(request.content.read())).encode()


def connection() -> tuple[object, StringTransport]:
    site = Site(Echo(), requestFactory=partial(BoundedRequest, max_body=LIMIT), parsePOSTFormSubmission=False)
    channel = site.buildProtocol(None)
    transport = StringTransport()
    channel.makeConnection(transport)
    return channel, transport


def with_length(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def chunked(body: bytes) -> bytes:
    chunks = [body[start : start + 100] for start in range(0, len(body), 100)]
    return (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        + b"0\r\n\r\n"
    )


@pytest.mark.parametrize("framing", [with_length, chunked])
def test_a_body_at_the_limit_is_taken(framing: object) -> None:
    channel, transport = connection()
    channel.dataReceived(framing(b"x" * LIMIT))  # type: ignore[attr-defined, operator]
    assert b"200 OK" in transport.value()
    assert b"1000" in transport.value()


@pytest.mark.parametrize("framing", [with_length, chunked])
def test_a_body_beyond_the_limit_is_413_in_our_shape(framing: object) -> None:
    channel, transport = connection()
    channel.dataReceived(framing(b"x" * (LIMIT + 1)))  # type: ignore[attr-defined, operator]
    head, _, body = transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    assert b"Access-Control-Allow-Origin: *" in head
    assert json.loads(body)["error"]["code"] == "request_too_large"


def test_the_connection_serves_the_next_request_after_a_413() -> None:
    channel, transport = connection()
    channel.dataReceived(with_length(b"x" * (LIMIT + 1)))  # type: ignore[attr-defined]
    channel.dataReceived(with_length(b"x"))  # type: ignore[attr-defined]
    assert b"HTTP/1.1 200 OK" in transport.value()


def test_what_exceeds_the_limit_is_not_kept() -> None:
    channel, _ = connection()
    body = with_length(b"x" * LIMIT * 10)
    channel.dataReceived(body[:-1])  # type: ignore[attr-defined]
    [request] = channel._channel.requests  # type: ignore[attr-defined]
    assert len(request.content.getvalue()) == 0


def test_a_client_that_never_stops_sending_is_cut_off() -> None:
    channel, transport = connection()
    channel.dataReceived(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")  # type: ignore[attr-defined]
    for _ in range(17):
        channel.dataReceived(b"%x\r\n%s\r\n" % (LIMIT, b"x" * LIMIT))  # type: ignore[attr-defined]
    assert transport.disconnecting


def test_a_json_body_labelled_as_a_form_is_left_alone() -> None:
    channel, transport = connection()
    body = b"a=b&c"
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 5\r\n\r\n"
    channel.dataReceived(head + body)  # type: ignore[attr-defined]
    assert transport.value().endswith(b"\r\n5\r\n0\r\n\r\n") or b"\r\n\r\n5" in transport.value()
