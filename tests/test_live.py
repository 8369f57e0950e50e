"""Every setting that may change while the server runs reaches whoever has to know."""

import math
from pathlib import Path
from typing import Any

import attrs
import pytest
from attrs import define
from twisted.internet.task import Clock
from twisted.web.resource import Resource

from osaurus.live import PATIENCE_BEHIND_A_SOCKET, Live, patience, rules
from osaurus.serving.idleness import Idleness
from osaurus.serving.limits import Limits
from osaurus.serving.residency import Residency
from osaurus.settings import Settings, table
from osaurus.web.connections import Connections
from osaurus.web.generating import Generating
from osaurus.web.guard import Guard

# What each has to change in: by the attribute that holds it. The service looks at the first two when they matter.
HELD = {
    "drain": None,
    "no_auth": None,
    "max_body": ("connections", "_max_body"),
    "max_connections": ("connections", "maxConnectionCount"),
    "keep_alive": ("residency", "_keep_alive"),
    "exit_when_idle": ("idleness", "_patience"),
    "max_concurrent": ("limits", "_concurrent"),
    "requests_per_minute": ("limits", "_per_minute"),
    "api_keys": ("guard", "_api_keys"),
    "read_only": ("guard", "_read_only"),
    "hosts": ("guard", "_hosts"),
    "origins": ("guard", "_origins"),
    "log_content": ("generating", "_logs_content"),
    "log_level": ("log_output", "level"),
}
OTHER: dict[str, Any] = {
    "max_body": 1,
    "max_connections": 2,
    "keep_alive": 3.0,
    "exit_when_idle": 4.0,
    "max_concurrent": 5,
    "requests_per_minute": 6,
    "api_keys": ("key",),
    "read_only": True,
    "hosts": ("mac",),
    "origins": ("https://a.example",),
    "log_content": True,
    "log_level": "debug",
}


@define
class Output:
    """A log that knows how much it is to have."""

    level: str = "info"

    def apply(self, level: str) -> None:
        self.level = level


@pytest.fixture
def parts() -> dict[str, Any]:
    clock = Clock()
    idleness = Idleness(clock, lambda: None, math.inf)
    return {
        "guard": Guard(),
        "limits": Limits(clock, 10, 100),
        "residency": Residency(clock, lambda _: None, 300.0),
        "connections": Connections(Resource(), Guard(), clock, idleness, most=512, max_body=2**25),
        "idleness": idleness,
        "generating": Generating(None, None, None, clock),  # type: ignore[arg-type]  # nothing is asked of it
        "log_output": Output(),
    }


def test_the_table_above_has_every_one() -> None:
    assert set(HELD) == {setting.name for setting in table() if setting.live}


@pytest.mark.parametrize("name", OTHER)
def test_it_is_passed_on(parts: dict[str, Any], name: str) -> None:
    place = HELD[name]
    assert place is not None
    part, attribute = place
    Live(**parts).apply(attrs.evolve(Settings(), **{name: OTHER[name]}))
    assert getattr(parts[part], attribute) == OTHER[name]


def test_who_is_reached_by_others_and_has_keys_answers_to_any_name() -> None:
    exposed = Settings(listen=("tcp:1337",), api_keys=("key",))
    assert rules(exposed)["hosts"] == ("*",)
    assert rules(attrs.evolve(exposed, hosts=("mac",)))["hosts"] == ("mac",)
    # Without keys it must be as strict as on loopback.
    assert rules(attrs.evolve(exposed, api_keys=(), no_auth=True))["hosts"] == ()


def test_a_server_behind_a_socket_ends_when_idle_and_others_do_not(tmp_path: Path) -> None:
    assert patience(Settings()) == math.inf
    socket = Settings(listen=("systemd:domain=INET:index=0",))
    assert patience(socket) == PATIENCE_BEHIND_A_SOCKET
    assert patience(attrs.evolve(socket, exit_when_idle=math.inf)) == math.inf
    assert patience(Settings(exit_when_idle=60.0)) == 60.0
