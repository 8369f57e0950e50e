"""Connections: how many, how large what comes on them, and how they end; through Twisted's own HTTP channel."""

import math
from typing import Any

import pytest
from attrs import define, field
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from osaurus.serving.idleness import Idleness
from osaurus.web.connections import Connections
from osaurus.web.exchange import OTHER, WATCHING, Exchange, IExchange
from osaurus.web.guard import Guard

ADDRESS = IPv4Address("TCP", "127.0.0.1", 1)


class Wire(StringTransport):
    """A transport whose client takes what is sent when the test says so; only then does it close."""

    protocol: Any = None
    slow = False

    def abortConnection(self) -> None:
        self.close()

    def loseConnection(self) -> None:
        super().loseConnection()
        if not self.slow:
            self.close()

    def close(self) -> None:
        if self.connected:
            self.connected = False
            self.protocol.connectionLost(Failure(ConnectionDone()))


class Later(Resource):
    """Answers when the test says so; /begun has its headers sent by then."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.route = "/v1/chat/completions"

    def render(self, request: Request) -> int:
        self.requests.append(request)
        request.setComponent(IExchange, Exchange(method="POST", client="127.0.0.1", route=self.route))
        if request.path == b"/begun":
            request.write(b"first")
        return NOT_DONE_YET


@define
class House:
    """Connections with a limit of two, and bodies of four bytes."""

    clock: Clock = field(factory=Clock)
    later: Later = field(factory=Later)
    ends: list[int] = field(factory=list)
    idleness: Idleness = field(init=False)
    connections: Connections = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.idleness = Idleness(self.clock, lambda: self.ends.append(1), math.inf)
        self.connections = Connections(self.later, Guard(), self.clock, self.idleness, most=2, max_body=4)

    def connect(self, path: str = "", body: bytes = b"", slow: bool = False) -> Wire:
        wire = Wire()
        wire.slow = slow
        wire.protocol = self.connections.buildProtocol(ADDRESS)
        wire.protocol.makeConnection(wire)
        if path:
            ask(wire, path, body)
        return wire

    def answer(self) -> None:
        request = self.later.requests.pop(0)
        request.write(b"done")
        request.finish()


def ask(wire: Wire, path: str, body: bytes = b"") -> None:
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    wire.protocol.dataReceived(b"POST %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n%s" % (path.encode(), length, body))


@pytest.fixture
def house() -> House:
    return House()


def test_one_beyond_the_limit_is_closed(house: House) -> None:
    house.connect()
    house.connect()
    assert not house.connect().connected
    house.connections.apply(most=3, max_body=4)
    assert house.connect().connected


def test_a_limit_below_what_is_there_closes_nothing(house: House) -> None:
    there = [house.connect(), house.connect()]
    house.connections.apply(most=1, max_body=4)
    assert [wire.connected for wire in there] == [True, True]
    assert not house.connect().connected


def test_the_limit_of_bodies_is_that_of_when_the_request_began(house: House) -> None:
    wire = house.connect("/", b"12345")
    assert getattr(house.later.requests.pop(), "refusal") is not None  # noqa: B009 - a BoundedRequest has it
    wire.close()
    house.connections.apply(most=2, max_body=5)
    house.connect("/", b"12345")
    assert getattr(house.later.requests.pop(), "refusal") is None  # noqa: B009 - the same


# The end.


def test_with_nothing_to_answer_the_end_waits_for_nothing(house: House) -> None:
    wire = house.connect()
    assert house.connections.drain().called
    assert wire.connected


def test_the_end_waits_until_an_answer_is_complete(house: House) -> None:
    wire = house.connect("/")
    drained = house.connections.drain()
    assert (drained.called, house.connections.answering) == (False, 1)
    house.answer()
    assert (drained.called, wire.connected) == (True, False)
    assert b"Connection: close" in wire.value()
    assert b"done" in wire.value()


def test_it_waits_until_the_client_has_taken_it(house: House) -> None:
    wire = house.connect("/begun", slow=True)
    drained = house.connections.drain()
    house.answer()
    assert not drained.called
    wire.close()
    assert drained.called


def test_it_waits_for_no_client_that_has_gone(house: House) -> None:
    wire = house.connect("/begun")
    drained = house.connections.drain()
    wire.close()
    assert drained.called


def test_what_still_comes_is_answered_and_the_last_on_its_connection(house: House) -> None:
    idle, busy = house.connect(), house.connect("/")
    drained = house.connections.drain()
    ask(idle, "/")
    house.answer()
    assert (busy.connected, drained.called) == (False, False)
    house.answer()
    assert (idle.connected, drained.called) == (False, True)
    assert b"Connection: close" in idle.value()


def test_another_request_in_the_same_breath_is_not_begun(house: House) -> None:
    wire = house.connect("/")
    ask(wire, "/second")
    house.connections.drain()
    house.answer()
    assert (house.later.requests, wire.connected) == ([], False)


def test_to_give_up_waiting_ends_nothing(house: House) -> None:
    wire = house.connect("/")
    drained: Deferred[None] = house.connections.drain()
    drained.addErrback(lambda _: None)
    drained.cancel()
    assert wire.connected
    again = house.connections.drain()
    house.answer()
    assert again.called


# What has begun to arrive.


def test_the_end_waits_for_what_has_begun_to_arrive_and_answers_it(house: House) -> None:
    wire = house.connect()
    wire.protocol.dataReceived(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n12")
    drained = house.connections.drain()
    assert (drained.called, house.connections.answering) == (False, 1)
    wire.protocol.dataReceived(b"34")
    assert (drained.called, house.connections.answering) == (False, 1)
    house.answer()
    assert (drained.called, wire.connected) == (True, False)
    assert b"Connection: close" in wire.value()


@pytest.mark.parametrize("part", [b"POST / HTTP/1.1\r\n", b"nonsense\r\n", b"GET / HTTP/1.1\r\nno header\r\n\r\n"])
def test_it_waits_for_none_that_will_never_be_complete(house: House, part: bytes) -> None:
    wire = house.connect()
    wire.protocol.dataReceived(part)
    drained = house.connections.drain()
    wire.close()
    assert (drained.called, house.connections.answering) == (True, 0)


# Idleness.


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/models/{name}", "/openapi.json"])
def test_a_request_holds_up_idleness(house: House, route: str) -> None:
    house.idleness.apply(10)
    house.idleness.start()
    house.later.route = route
    house.connect("/")
    house.clock.advance(11)
    house.answer()
    house.clock.advance(9)
    assert house.ends == []
    house.clock.advance(1)
    assert house.ends == [1]


@pytest.mark.parametrize("route", [*WATCHING, OTHER])
def test_watching_is_no_use(house: House, route: str) -> None:
    house.idleness.apply(10)
    house.idleness.start()
    house.later.route = route
    for _ in range(3):
        house.clock.advance(3)
        wire = house.connect("/")
        house.answer()
        wire.close()
    assert house.ends == []
    house.clock.advance(1)
    assert house.ends == [1]


PART = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n12"


def test_a_request_that_still_arrives_holds_up_idleness(house: House) -> None:
    house.idleness.apply(10)
    house.idleness.start()
    wire = house.connect()
    wire.protocol.dataReceived(PART)
    house.clock.advance(11)
    wire.protocol.dataReceived(b"34")
    house.answer()
    assert house.ends == []
    house.clock.advance(10)
    assert house.ends == [1]


def test_one_that_never_becomes_complete_is_no_use(house: House) -> None:
    house.idleness.apply(10)
    house.idleness.start()
    wire = house.connect()
    wire.protocol.dataReceived(PART)
    house.clock.advance(11)
    assert house.ends == []
    wire.close()
    house.clock.advance(0)
    assert house.ends == [1]
