"""Where a server can be reached: every kind of endpoint string, at a real server.

One server listens on all of them at once; what one kind has of its own is tried at servers for that alone.
"""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from stat import S_IMODE
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
import pytest_twisted
import treq
import trustme
from attrs import frozen
from twisted.internet import reactor as twisted_reactor
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.web.client import Agent
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from osaurus.discovery import running

from .programs import program
from .server import SERVE, TWISTD, environment, free_port, run_twistd

reactor: Any = twisted_reactor

DOCS = Path(__file__).parent.parent / "docs"
# As the page has it.
PATH = "/run/osaurus/socket"

KINDS = ["tcp", "tcp6", "ssl", "tls", "unix", "systemd: TCP", "systemd: Unix"]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "seed": 3, "max_tokens": 40}


@frozen
class Listening:
    """A server that runs, and where it says what it does."""

    process: subprocess.Popen[bytes]
    home: Path
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@frozen
class Certificates:
    """An authority of the tests' own, and what it made for 127.0.0.1 and localhost, with one in between."""

    authority: Path
    key: Path
    certificate: Path
    chain: Path

    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    made = authority.create_child_ca().issue_cert("localhost", "127.0.0.1")
    paths = Certificates(*(folder / name for name in ("authority.pem", "key.pem", "certificate.pem", "chain.pem")))
    authority.cert_pem.write_to_path(str(paths.authority))
    made.private_key_pem.write_to_path(str(paths.key))
    made.cert_chain_pems[0].write_to_path(str(paths.certificate))
    made.cert_chain_pems[1].write_to_path(str(paths.chain))
    return paths


@contextmanager
def listening(
    folder: Path, models: Path, *endpoints: str, options: tuple[str, ...] = (), sockets: tuple[socket.socket, ...] = ()
) -> Iterator[Listening]:
    """Run a server on some endpoints; it inherits `sockets` as a service of systemd's does, named 0, 1 and so on."""
    log = folder / "server.log"
    command = [str(TWISTD), "-n", "--pidfile=", "osaurus", *options]
    command += [word for endpoint in endpoints for word in ("--listen", endpoint)]
    if sockets:
        # What systemd does: descriptors from 3 on, and the process they are for. Moved out of their own way first.
        moves = [f"exec {7 + place}<&{each.fileno()};" for place, each in enumerate(sockets)]
        moves += [f"exec {3 + place}<&{7 + place} {7 + place}<&-;" for place in range(len(sockets))]
        names = ":".join(map(str, range(len(sockets))))
        told = f"LISTEN_PID=$$ LISTEN_FDS={len(sockets)} LISTEN_FDNAMES={names}"
        command = ["bash", "-c", f'{" ".join(moves)} {told} exec "$@"', "bash", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(folder, models, free_port()),
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[each.fileno() for each in sockets],
        )
    try:
        deadline = monotonic() + 30
        while "Osaurus is running" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert monotonic() < deadline
            sleep(0.02)
        yield Listening(process, folder, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def refused(folder: Path, endpoint: str, **variables: str) -> str:
    """Have a server refuse to start, and return the line that it ends with."""
    done = run_twistd(folder, *SERVE, "--no-auth", "--listen", endpoint, **variables)
    said = (done.stdout + done.stderr).strip()
    assert done.returncode == 1, said
    assert "Traceback" not in said
    return said.splitlines()[-1]


def short_folder(stack: ExitStack) -> Path:
    """A folder for Unix sockets: some systems give their paths 104 bytes, which pytest's folders may take alone."""
    return Path(stack.enter_context(TemporaryDirectory(prefix="osu")))


@frozen
class Everywhere:
    """A server on endpoints of all kinds, and a client for each."""

    server: Listening
    clients: dict[str, httpx.Client]
    port: int

    def client(self, kind: str) -> httpx.Client:
        if kind not in self.clients:
            pytest.skip("this machine has no IPv6")
        return self.clients[kind]


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


@pytest.fixture(scope="module")
def everywhere(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: Path, certificates: Certificates
) -> Iterator[Everywhere]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("everywhere")
        unix, inherited = (short_folder(stack) / "a socket" for _ in range(2))
        both = folder / "pem"
        both.mkdir()
        for path in (certificates.key, certificates.certificate, certificates.chain):
            shutil.copy(path, both)
        tcp, tcp6, tls_1, tls_2 = (free_port() for _ in range(4))
        sockets = (socket.socket(), socket.socket(socket.AF_UNIX))
        sockets[0].bind(("127.0.0.1", 0))
        sockets[1].bind(str(inherited))
        for each in sockets:
            stack.enter_context(each)
            each.listen()
        endpoints = {
            "tcp": f"tcp:{tcp}:interface=127.0.0.1",
            "tcp6": rf"tcp6:{tcp6}:interface=\:\:1",
            "ssl": f"ssl:{tls_1}:interface=127.0.0.1:privateKey={certificates.key}"
            f":certKey={certificates.certificate}:extraCertChain={certificates.chain}",
            "tls": f"tls:{both}:{tls_2}:interface=127.0.0.1",
            "unix": f"unix:{unix}:mode=660",
            "systemd: TCP": "systemd:domain=INET:index=0",
            "systemd: Unix": "systemd:domain=UNIX:name=1",
        }
        if not has_ipv6():
            del endpoints["tcp6"]
        served = listening(folder, tiny_models, *endpoints.values(), options=("--no-auth",), sockets=sockets)
        server = stack.enter_context(served)
        urls = {
            "tcp": f"http://127.0.0.1:{tcp}",
            "tcp6": f"http://[::1]:{tcp6}",
            "ssl": f"https://127.0.0.1:{tls_1}",
            "tls": f"https://localhost:{tls_2}",
            "systemd: TCP": f"http://127.0.0.1:{sockets[0].getsockname()[1]}",
        }
        paths = {"unix": unix, "systemd: Unix": inherited}
        trusted = certificates.trusted()
        clients = {
            kind: httpx.Client(
                base_url=urls.get(kind, "http://localhost"),
                transport=httpx.HTTPTransport(verify=trusted, uds=str(paths[kind]) if kind in paths else None),
                timeout=60,
            )
            for kind in endpoints
        }
        for client in clients.values():
            stack.enter_context(client)
        yield Everywhere(server, clients, tls_1)
        server.stop()
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_on_every_one_of_several_endpoints(everywhere: Everywhere, kind: str) -> None:
    assert everywhere.client(kind).get("/").text == "Osaurus is running"


@pytest.mark.parametrize("kind", KINDS)
def test_server_sent_events_come_through(everywhere: Everywhere, kind: str) -> None:
    client = everywhere.client(kind)
    whole = client.post("/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]["content"]
    with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]
    assert len(list(filter(None, pieces))) > 1
    assert "".join(pieces) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_lines_of_json_come_through(everywhere: Everywhere, kind: str) -> None:
    body = {"model": "tiny", "messages": CHAT["messages"], "options": {"seed": 3, "num_predict": 40}}
    client = everywhere.client(kind)
    whole = client.post("/api/chat", json=body).json()["message"]["content"]
    with client.stream("POST", "/api/chat", json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert [line["done"] for line in lines[-2:]] == [False, True]
    assert len(lines) > 2
    assert "".join(line["message"]["content"] for line in lines) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_others_may_own_are_answered_on_none(everywhere: Everywhere, kind: str) -> None:
    refusal = everywhere.client(kind).get("/v1/models", headers={"Host": "chat.example.org"})
    assert refusal.status_code == 403
    assert "`hosts` can have it do so" in refusal.json()["error"]["message"]


def test_programs_are_told_of_the_plain_port_on_this_machine(everywhere: Everywhere) -> None:
    [instance] = running(everywhere.server.home / ".osaurus" / "runtime")
    assert instance.url == str(everywhere.client("tcp").base_url).rstrip("/")


# TLS.


def test_who_asks_for_http_2_as_well_gets_1_1(everywhere: Everywhere, certificates: Certificates) -> None:
    context = certificates.trusted()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", everywhere.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        assert client.selected_alpn_protocol() == "http/1.1"
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"


def test_who_does_not_trust_or_speaks_no_tls_does_no_harm(everywhere: Everywhere) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://127.0.0.1:{everywhere.port}/")
    with socket.create_connection(("127.0.0.1", everywhere.port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(100) == b""
    assert everywhere.client("ssl").get("/").status_code == 200


def test_a_connection_too_many_is_closed_on_tls_as_well(
    tmp_path: Path, tiny_models: Path, certificates: Certificates
) -> None:
    port = free_port()
    endpoint = f"ssl:{port}:interface=127.0.0.1:privateKey={certificates.key}:certKey={certificates.certificate}"
    with listening(tmp_path, tiny_models, endpoint, options=("--max-connections=1",)) as server:
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)) as second:
            second.settimeout(30)
            with suppress(ConnectionResetError):
                assert second.recv(1) == b""
        server.stop()
        assert "Traceback" not in server.log.read_text()


def command(server: Listening, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the `osaurus` command as whoever runs the server."""
    return subprocess.run(
        [sys.executable, "-c", "from osaurus.command.main import main; main(prog_name='osaurus')", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(server.home), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_command_checks_certificates_and_says_what_is_wrong(
    everywhere: Everywhere, certificates: Certificates
) -> None:
    url = f"https://localhost:{everywhere.port}"
    trusting = {"SSL_CERT_FILE": str(certificates.authority)}
    done = command(everywhere.server, "status", "--host", url, **trusting)
    assert (done.returncode, done.stdout.split()[-1]) == (0, url)
    done = command(everywhere.server, "status", "--host", url)
    assert done.returncode == 1
    assert "SSL_CERT_FILE" in done.stderr


def test_the_command_refuses_a_certificate_for_another_name(tmp_path: Path) -> None:
    authority, port = trustme.CA(), free_port()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    pem = tmp_path / "server.pem"
    authority.issue_cert("chat.example.org").private_key_and_cert_chain_pem.write_to_path(str(pem))
    with listening(tmp_path, tmp_path / "models", f"ssl:{port}:interface=127.0.0.1:privateKey={pem}") as server:
        trusting = {"SSL_CERT_FILE": str(tmp_path / "authority.pem")}
        done = command(server, "status", "--host", f"https://127.0.0.1:{port}", **trusting)
    assert (done.returncode, "for another name" in done.stderr) == (1, True)


def test_a_server_without_a_plain_port_has_to_be_named_to_the_command(tmp_path: Path) -> None:
    with ExitStack() as stack:
        path = short_folder(stack) / "socket"
        server = stack.enter_context(listening(tmp_path, tmp_path / "models", f"unix:{path}"))
        done = command(server, "status")
        assert done.returncode == 1
        assert f"process {server.process.pid}) listens on no plain TCP port" in done.stderr
        assert "--host" in done.stderr
        assert command(server, "stop").stdout.startswith("Stopped the server at its socket")


# Unix sockets.


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        yield short_folder(stack) / "socket"


def ask(path: Path) -> str:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        return client.get("http://localhost/").text


@pytest.mark.parametrize(("given", "mode"), [("", 0o666), (":mode=660", 0o660), (":mode=600", 0o600)])
def test_a_unix_socket_is_open_to_whom_its_mode_says_and_needs_no_keys(
    tmp_path: Path, unix: Path, given: str, mode: int
) -> None:
    with listening(tmp_path, tmp_path / "models", f"unix:{unix}{given}") as server:
        assert S_IMODE(unix.stat().st_mode) == mode
        assert ask(unix) == "Osaurus is running"
        server.stop()
    assert list(unix.parent.iterdir()) == []


def test_the_socket_of_a_server_that_was_killed_is_taken_over(tmp_path: Path, unix: Path) -> None:
    with listening(tmp_path, tmp_path / "models", f"unix:{unix}") as server:
        server.stop(signal.SIGKILL)
    assert unix.is_socket()
    with listening(tmp_path, tmp_path / "models", f"unix:{unix}"):
        assert ask(unix) == "Osaurus is running"


@pytest.mark.parametrize("socket_left", [True, False])
@pytest.mark.parametrize("number", [1, os.getpid()], ids=["init", "ours"])
def test_so_is_one_whose_process_has_a_namesake_by_now(
    tmp_path: Path, unix: Path, number: int, socket_left: bool
) -> None:
    unix.with_name("socket.lock").symlink_to(str(number))
    if socket_left:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(unix))
    with listening(tmp_path, tmp_path / "models", f"unix:{unix}") as server:
        assert ask(unix) == "Osaurus is running"
        server.stop()
    assert list(unix.parent.iterdir()) == []


def test_a_file_in_the_place_of_the_socket_is_left_alone(tmp_path: Path, unix: Path) -> None:
    unix.with_name("socket.lock").symlink_to(str(os.getpid()))
    unix.write_text("a text")
    assert "another process does already" in refused(tmp_path, f"unix:{unix}")
    assert unix.read_text() == "a text"


def test_the_socket_of_a_server_that_lives_is_not(tmp_path: Path, unix: Path) -> None:
    with listening(tmp_path, tmp_path / "models", f"unix:{unix}"):
        line = refused(tmp_path, f"unix:{unix}")
        assert f"osaurus: another process does already: cannot listen on unix:{unix}" in line
        assert ask(unix) == "Osaurus is running"


@implementer(IAgentEndpointFactory)
@frozen
class Through:
    """Has an agent connect through a Unix socket, whatever the URL says."""

    path: Path

    def endpointForURI(self, uri: object) -> UNIXClientEndpoint:
        return UNIXClientEndpoint(reactor, str(self.path))


@pytest_twisted.ensureDeferred
async def test_treq_asks_through_a_unix_socket(tmp_path: Path, tiny_models: Path, unix: Path) -> None:
    with listening(tmp_path, tiny_models, f"unix:{unix}"):
        agent = Agent.usingEndpointFactory(reactor, Through(unix))
        answer = await treq.post("http://localhost/v1/chat/completions", json=CHAT, agent=agent)
        assert (await answer.json())["object"] == "chat.completion"


def test_the_program_of_the_page_asks_through_a_unix_socket(tmp_path: Path, tiny_models: Path, unix: Path) -> None:
    [program] = re.findall(r"```python\n(.*?)```", (DOCS / "endpoints.md").read_text("utf-8"), re.DOTALL)
    assert PATH in program
    names: dict[str, Any] = {}
    with listening(tmp_path, tiny_models, f"unix:{unix}"):
        exec(program.replace(PATH, str(unix)), names)
        with names["client"] as client:
            assert [model.id for model in client.models.list()] == ["other", "tiny"]


@pytest.mark.system
def test_curl_asks_through_a_unix_socket(tmp_path: Path, unix: Path) -> None:
    curl = program("curl")
    with listening(tmp_path, tmp_path / "models", f"unix:{unix}"):
        done = subprocess.run(
            [curl, "-sS", "--unix-socket", str(unix), "http://localhost/"], capture_output=True, text=True, timeout=30
        )
    assert (done.stdout, done.stderr) == ("Osaurus is running", "")


# What cannot be.


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("unix:/nowhere/socket", "osaurus: No such file or directory: cannot listen on unix:/nowhere/socket"),
        ("ssl:0:privateKey=/nowhere.pem", "will not do: [Errno 2] No such file or directory: '/nowhere.pem'"),
        ("systemd:domain=INET:index=0", "will not do: systemd has handed over no such socket"),
        ("systemd:domain=INET:name=web", "will not do: systemd has handed over no such socket"),
        ("tcp:none", "--listen 'tcp:none' will not do: 'none' is no number"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused_with_the_reason(tmp_path: Path, endpoint: str, said: str) -> None:
    assert said in refused(tmp_path, endpoint)


def test_where_tls_is_not_installed_one_is_told_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "OpenSSL.py").write_text("raise ImportError(\"No module named 'OpenSSL'\")")
    said = refused(tmp_path, "ssl:0:privateKey=server.pem", PYTHONPATH=str(tmp_path))
    assert "No module named 'OpenSSL'. `pip install 'Twisted[tls]'` brings what TLS needs" in said
