"""What systemd is told, over a real datagram socket."""

import socket
from pathlib import Path

import pytest
from twisted.logger import LogLevel, capturedLogs

from osaurus.notify import READY, notify, stopping


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_at_the_socket_that_it_names(tmp_path: Path, abstract: bool) -> None:
    name = f"osaurus-test-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name}" if abstract else name)
        notify(READY, {"NOTIFY_SOCKET": f"@{name}" if abstract else name})
        notify(stopping(55.5), {"NOTIFY_SOCKET": f"@{name}" if abstract else name})
        assert systemd.recv(100) == b"READY=1"
        assert systemd.recv(100) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=55500000"


def test_without_systemd_nobody_is_told() -> None:
    with capturedLogs() as events:
        notify(READY, {})
    assert events == []


def test_one_that_does_not_listen_costs_a_line_in_the_log(tmp_path: Path) -> None:
    with capturedLogs() as events:
        notify(READY, {"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert [event["log_level"] for event in events] == [LogLevel.warn]
