"""Started by a socket that somebody else listens on, with systemd's protocol: real sockets, real processes.

`activated` does what systemd does: it waits for a client, and starts the server with the socket as descriptor 3.
"""

import json
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from osaurus import inherited
from osaurus.settings import Settings

from .programs import program
from .server import TWISTD, environment, free_port, run_twistd

LISTEN = ("-n", "--pidfile=", "osaurus", "--listen", "systemd:domain=INET:index=0")
# LISTEN_PID is that of the process itself, which is known once it is there.
BECOME = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
environ = dict(os.environ, LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="osaurus.socket")
os.execve(sys.argv[2], sys.argv[2:], environ)
"""


@contextmanager
def listening(address: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen()
        yield listener


@contextmanager
def activated(
    listener: socket.socket, folder: Path, *options: str, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the server when somebody connects."""
    assert select.select([listener], [], [], 60)[0]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", BECOME, str(listener.fileno()), str(TWISTD), *LISTEN, *options],
            cwd=folder,
            env={**environment(folder, folder / "models", free_port()), **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[listener.fileno()],
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def ask(connection: socket.socket) -> bytes:
    """Send a request on a connection that was accepted by nobody yet, and return the answer."""
    connection.settimeout(60)
    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    received = b""
    while data := connection.recv(4096):
        received += data
    return received


def connect(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname(), 60)


def test_the_client_who_wakes_it_is_answered(tmp_path: Path) -> None:
    with listening() as listener, connect(listener) as client, activated(listener, tmp_path) as process:
        assert ask(client).endswith(b"Osaurus is running")
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM


def test_it_ends_when_nobody_asks_and_the_next_client_finds_another(tmp_path: Path) -> None:
    with listening() as listener:
        with connect(listener) as first, activated(listener, tmp_path, "--exit-when-idle=1s") as process:
            assert ask(first).endswith(b"Osaurus is running")
            # Of its own accord, and without an error: whoever started it starts it no more.
            assert process.wait(60) == 0
        # Nobody is there, but nobody is refused.
        with connect(listener) as second, activated(listener, tmp_path) as another:
            assert ask(second).endswith(b"Osaurus is running")
            another.terminate()
            another.wait(30)
    assert "Traceback" not in (tmp_path / "server.log").read_text()


def test_where_it_is_stopped_clients_wait_for_the_next(tmp_path: Path) -> None:
    with listening() as listener:
        with connect(listener) as first, activated(listener, tmp_path) as process:
            ask(first)
            process.terminate()
            assert process.wait(30) == -signal.SIGTERM
        with connect(listener) as second, activated(listener, tmp_path) as another:
            assert ask(second).endswith(b"Osaurus is running")
            another.terminate()
            another.wait(30)


def test_it_tells_where_it_is_and_systemd_that_it_is_ready(tmp_path: Path) -> None:
    with listening() as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with (
            connect(listener),
            activated(listener, tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")) as process,
        ):
            assert systemd.recv(100) == b"READY=1"
            [file] = tmp_path.glob(".osaurus/runtime/*/configuration.json")
            told = json.loads(file.read_text())
            assert (told["url"], told["exposeToNetwork"]) == (url, False)
            process.terminate()
            assert systemd.recv(100).startswith(b"STOPPING=1\n")
            process.wait(30)


def test_one_that_others_can_reach_needs_keys(tmp_path: Path) -> None:
    with listening("0.0.0.0") as listener:
        with connect(listener), activated(listener, tmp_path) as process:
            assert process.wait(60) == 1
            assert "Other machines could reach systemd:" in (tmp_path / "server.log").read_text()
        with connect(listener) as client, activated(listener, tmp_path, OSU_API_KEYS="secret") as process:
            ask(client)
            with pytest.raises(HTTPError) as refused:
                urlopen(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/models", timeout=60)
            assert refused.value.code == 401
            refused.value.close()
            process.terminate()
            process.wait(30)


def test_without_a_socket_it_does_not_start(tmp_path: Path) -> None:
    done = run_twistd(tmp_path, *LISTEN, OSU_NO_AUTH="1")
    assert done.returncode == 1
    assert "systemd:domain=INET:index=0" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.system
def test_systemds_own_program_starts_it(tmp_path: Path) -> None:
    activate = program("systemd-socket-activate")
    port = free_port()
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [
                activate,
                f"--listen=127.0.0.1:{port}",
                # As systemd itself always has it.
                "--fdname=osaurus.socket",
                *(f"--setenv={name}" for name in environment(tmp_path, tmp_path / "models", port)),
                str(TWISTD),
                *LISTEN,
            ],
            cwd=tmp_path,
            env=environment(tmp_path, tmp_path / "models", port),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                client = socket.create_connection(("127.0.0.1", port), 60)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with client:
            assert ask(client).endswith(b"Osaurus is running")
        # It has become the server.
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)


# What is known of such a socket before the server listens.


@pytest.mark.parametrize(("endpoint", "inherits"), [("systemd:domain=INET:index=0", True), ("tcp:1337", False)])
def test_without_systemd_there_is_no_such_socket(endpoint: str, inherits: bool) -> None:
    assert inherited.is_inherited(endpoint) is inherits
    assert not inherited.is_local(endpoint)
    assert Settings(listen=(endpoint,)).exposed == (endpoint,)
