"""The end in order, in memory: what goes on, for how long, and what a second signal does to it."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from osaurus.chat import Event, Piece
from osaurus.discovery import Announcement, running
from osaurus.engine.runner import LONGEST_STOP
from osaurus.reload import Reload
from osaurus.service import LAST_PULLS, LAST_WORDS, LAST_WRITES, OsaurusService
from osaurus.serving.idleness import Idleness
from osaurus.settings import BEYOND_DRAIN, Settings
from osaurus.web.connections import Connections

from .doubles import MemoryWorker, ScriptedEngine, finished, inline
from .test_api import HELLO, Client
from .test_connections import ADDRESS

LONG: list[Event] = [*(Piece(f"{number} ") for number in range(50)), finished()]


class Wire(StringTransport):
    """A transport that closes when it is told to, if its client takes everything by then."""

    protocol: Any = None
    takes = True

    def loseConnection(self) -> None:
        super().loseConnection()
        if self.takes:
            self.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def events(self) -> list[Any]:
        """What was sent of a stream so far."""
        lines = self.value().decode().splitlines()
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


@define
class Pool:
    """A pool of threads that has none."""

    stopped: bool = False

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        self.stopped = True


@define
class Signals:
    """Signals that never come: the test calls the service itself."""

    ended: int = 0
    given_back: bool = False

    def watch(self, reload: object, hurry: object) -> None:
        """Do nothing."""

    def ending(self) -> None:
        self.ended += 1

    def stop(self) -> None:
        self.given_back = True


@define
class House:
    """A server whose answers are 50 steps long, and which has 30 seconds to end."""

    folder: Path
    client: Client
    told: list[str] = field(factory=list)
    signals: Signals = field(factory=Signals)
    engine_pool: Pool = field(factory=Pool)
    blocking_pool: Pool = field(factory=Pool)
    writing_pool: Pool = field(factory=Pool)
    stuck: Deferred[None] | None = None
    """What a thread waits for that is to end the pools; None if it waits for nothing."""
    connections: Connections = field(init=False)
    reload: Reload = field(init=False)
    service: OsaurusService = field(init=False)

    def __attrs_post_init__(self) -> None:
        client = self.client
        idleness = Idleness(client.clock, lambda: None, math.inf)
        self.connections = Connections(client.front, client.guard, client.clock, idleness, most=10, max_body=2**20)
        self.reload = Reload(Settings(), lambda: None, lambda _: None, inline)  # type: ignore[arg-type,return-value]
        announcement = Announcement(self.folder, exposed=False, models_dir=client.models)
        announcement.publish(("127.0.0.1", 1337))
        # It was started when the engine was made.
        self.service = OsaurusService(
            client.clock,
            [],
            self.connections,
            client.scheduler,
            client.pulls,
            client.worker.runner,
            self.engine_pool,  # type: ignore[arg-type]
            self.blocking_pool,  # type: ignore[arg-type]
            self.writing_pool,  # type: ignore[arg-type]
            self.elsewhere,
            [],
            lambda: None,
            announcement,
            self.reload,
            self.signals,  # type: ignore[arg-type]
            idleness,
            self.told.append,
        )
        self.service.running = True

    def elsewhere(self, function: Callable[[], object]) -> Deferred[None]:
        """Run what takes a thread of its own."""
        if self.stuck is not None:
            return self.stuck
        function()
        return succeed(None)

    def connect(self) -> Wire:
        wire = Wire()
        wire.protocol = self.connections.buildProtocol(ADDRESS)
        wire.protocol.makeConnection(wire)
        return wire

    def ask(self, wire: Wire | None = None, path: str = "/v1/chat/completions", **changes: Any) -> Wire:
        """Begin to have an answer streamed."""
        wire = wire or self.connect()
        body = json.dumps({**HELLO, "stream": True, **changes}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        wire.protocol.dataReceived(head.encode() + body)
        self.client.worker.turn(3)
        return wire

    def stop(self) -> list[str]:
        """Begin to stop; the list has a word when that is over."""
        over: list[str] = []
        stopped: Deferred[None] = self.service.stopService()
        stopped.addCallback(lambda _: over.append("over"))
        return over


@pytest.fixture
def house(tmp_path: Path, tiny_models: Path) -> House:
    worker = MemoryWorker(ScriptedEngine(script=list(LONG)))
    return House(tmp_path, Client(tiny_models, worker=worker))


def test_with_nothing_to_do_the_end_waits_for_the_engine_only(house: House) -> None:
    over = house.stop()
    assert over == []
    house.client.worker.thread.run()
    assert over == ["over"]
    assert house.client.worker.engine.closed
    assert (house.engine_pool.stopped, house.blocking_pool.stopped, house.writing_pool.stopped) == (True, True, True)
    assert running(house.folder) == []
    assert (house.signals.ended, house.signals.given_back) == (1, True)


def test_an_answer_under_way_becomes_complete(house: House) -> None:
    wire = house.ask()
    over = house.stop()
    house.client.worker.thread.run()
    assert over == ["over"]
    assert wire.events[-1] == "[DONE]"
    assert json.loads(wire.events[-2])["choices"][0]["finish_reason"] == "stop"
    assert "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in wire.events[:-1]) == (
        "".join(piece.text for piece in LONG[:-1] if isinstance(piece, Piece))
    )


def test_when_its_time_is_over_it_ends_with_an_error_that_says_why(house: House) -> None:
    wire = house.ask()
    over = house.stop()
    house.client.clock.advance(29.9)
    assert wire.connected
    house.client.clock.advance(0.1)
    assert json.loads(wire.events[-2])["error"]["code"] == "service_unavailable"
    assert (wire.events[-1], wire.disconnecting) == ("[DONE]", True)
    house.client.worker.thread.run()
    assert over == ["over"]


def test_its_time_is_what_the_setting_says_by_then(house: House) -> None:
    wire = house.ask()
    house.reload.settings = attrs.evolve(house.reload.settings, drain=5.0)
    house.stop()
    # What was told of the end stays true.
    house.reload.settings = attrs.evolve(house.reload.settings, drain=50.0)
    house.reload.begin()
    house.client.clock.advance(5)
    assert wire.disconnecting


def test_without_any_it_ends_at_once(house: House) -> None:
    wire = house.ask()
    house.reload.settings = attrs.evolve(house.reload.settings, drain=0.0)
    house.stop()
    house.client.clock.advance(0)
    assert wire.disconnecting


def test_a_second_signal_ends_everything_at_once(house: House) -> None:
    wire = house.ask()
    over = house.stop()
    house.service.hurry()
    assert json.loads(wire.events[-2])["error"]["code"] == "service_unavailable"
    # Neither the engine's step nor what is on its way to the disk is waited for.
    assert over == ["over"]
    assert (house.engine_pool.stopped, house.blocking_pool.stopped, house.writing_pool.stopped) == (False, False, False)
    assert running(house.folder) == []


def test_a_second_signal_while_the_engine_ends_is_heard_too(house: House) -> None:
    over = house.stop()
    assert over == []
    house.service.hurry()
    assert over == ["over"]


def test_a_second_signal_is_heard_while_threads_are_stuck(house: House) -> None:
    house.stuck = Deferred()
    over = house.stop()
    house.client.worker.thread.run()
    [instance] = running(house.folder)
    assert (over, instance.pid) == ([], os.getpid())
    house.service.hurry()
    assert (over, running(house.folder)) == (["over"], [])


def test_threads_that_are_stuck_are_left_behind_after_a_while(house: House) -> None:
    house.stuck = Deferred()
    over = house.stop()
    house.client.worker.thread.run()
    house.client.clock.advance(LAST_WRITES - 0.1)
    assert over == []
    with capturedLogs() as events:
        house.client.clock.advance(0.1)
    assert (over, running(house.folder)) == (["over"], [])
    assert [event["log_format"].format(**event) for event in events] == [
        "Threads that have not ended after 8 s are left behind"
    ]


def test_a_second_signal_kills_pulls_and_waits_for_none(house: House) -> None:
    house.ask(path="/api/pull", model="organisation/model")
    [process] = house.client.spawned.processes
    over = house.stop()
    house.service.hurry()
    assert process.signals == ["TERM", "KILL"]
    house.client.clock.advance(LAST_WORDS)
    assert over == ["over"]


def test_a_client_that_takes_nothing_does_not_hold_up_the_end_for_long(house: House) -> None:
    wire = house.ask()
    wire.takes = False
    assert wire.producer is not None
    wire.producer.pauseProducing()
    over = house.stop()
    house.client.clock.advance(30)
    house.client.clock.advance(LAST_WORDS)
    house.client.worker.thread.run()
    assert over == ["over"]


def test_new_work_is_refused_and_the_connection_closed(house: House) -> None:
    house.ask()
    idle = house.connect()
    house.stop()
    house.ask(idle, stream=False)
    said = idle.value()
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 5" in said
    assert b"Connection: close" in said
    assert idle.disconnecting


def test_health_tells_that_the_server_is_stopping(house: House) -> None:
    house.ask()
    idle = house.connect()
    house.stop()
    idle.protocol.dataReceived(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head, _, body = idle.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert json.loads(body)["reason"] == "The server is stopping"


def test_pulls_end_at_once_while_answers_go_on(house: House) -> None:
    wire, pull = house.ask(), house.ask(path="/api/pull", model="organisation/model")
    [process] = house.client.spawned.processes
    house.stop()
    assert process.signals == ["TERM"]
    process.end(1)
    assert b"The server is stopping" in pull.value()
    assert (pull.disconnecting, wire.disconnecting) == (True, False)


def test_whoever_started_it_is_told_that_it_stops_and_for_how_long(house: House) -> None:
    house.ask()
    house.stop()
    assert house.told == [f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round((30 + BEYOND_DRAIN) * 1e6)}"]
    [instance] = running(house.folder)
    assert instance.pid == os.getpid()
    assert instance.ends_by is not None


def test_the_log_says_what_is_waited_for(house: House) -> None:
    house.ask()
    with capturedLogs() as events:
        house.stop()
        house.client.clock.advance(30)
    said = [event["log_format"].format(**event) for event in events if event["log_namespace"] == "osaurus.service"]
    assert said == [
        "The server stops. Answers under way: 1; they have 30 s to become complete, unless a second signal ends them",
        "Answers that are not complete, and end now: 1",
    ]


def test_what_is_said_of_the_longest_end_is_enough_for_its_parts() -> None:
    assert BEYOND_DRAIN >= LONGEST_STOP + LAST_PULLS + LAST_WORDS + LAST_WRITES
