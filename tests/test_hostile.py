"""A real server among clients that do not keep to anything: it answers or hangs up, and goes on."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from osaurus.engine.backend import Backend

from .conftest import write_tiny_model
from .server import Server, serving

MOST_CONNECTIONS = 40
MIB = 2**20
LOOPING = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

LINES = [
    b"GET / HTTP/1.1",
    b"GET /health HTTP/1.0",
    b"POST /v1/chat/completions HTTP/1.1",
    b"DELETE /api/delete HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"CONNECT evil.example:443 HTTP/1.1",
    b"GET http://evil.example/ HTTP/1.1",
    b"GET http://[ HTTP/1.1",
    b"GET http://\xff[/ HTTP/1.1",
    b"POST /%2e%2e/%00 HTTP/1.1",
    b"BREW /pot HTCPCP/1.0",
    b"GET",
    b"",
]
HEADERS = [
    b"Host: localhost",
    b"Host: evil.example",
    b"Host:",
    b"Content-Length: 5",
    b"Content-Length: 5, 6",
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity, chunked",
    b"Expect: 100-continue",
    b"Connection: Upgrade, HTTP2-Settings",
    b"Upgrade: h2c",
    b"Content-Encoding: gzip",
    b"X: " + b"y" * 20_000,
    b" folded",
    b"no colon",
    b"\xff\xfe: \x00",
]
BODIES = [b"", b"hello", b"{}", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b"\x00" * 100]
requests = st.builds(
    lambda line, headers, body, end: line + end + b"".join(header + end for header in headers) + end + body,
    st.sampled_from(LINES) | st.binary(max_size=40),
    st.lists(st.sampled_from(HEADERS), max_size=5),
    st.sampled_from(BODIES) | st.binary(max_size=64),
    st.sampled_from([b"\r\n", b"\n"]),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "models").mkdir()
    with serving(folder, folder / "models", "--max-connections", str(MOST_CONNECTIONS)) as started:
        yield started


def say(server: Server, data: bytes) -> bytes:
    """Send this, and nothing more; return what comes back."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        with suppress(ConnectionError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionError):
            while part := connection.recv(2**16):
                answer += part
        return answer


def post(server: Server, body: bytes) -> bytes:
    """Ask for a chat completion with this body; return the status line of the answer."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(head + body)
        return connection.recv(2**16).partition(b"\r\n")[0]


def healthy(server: Server) -> bool:
    with urlopen(f"{server.url}/health", timeout=10) as answer:
        return bool(json.load(answer)["status"] == "ok")


def memory(server: Server) -> int:
    """What the server's process takes, in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=requests)
def test_whatever_comes_is_answered_or_hung_up_on(server: Server, data: bytes) -> None:
    answer = say(server, data)
    if answer:
        version, status = answer.split(b" ", 2)[:2]
        assert version in (b"HTTP/1.1", b"HTTP/1.0")
        assert int(status) < 500
    assert b"Traceback" not in answer


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"GET / HTTP/1.1\r\nX: " + b"y" * MIB + b"\r\n\r\n", 431), (b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400)],
)
def test_what_cannot_be_read_is_told_so(server: Server, data: bytes, status: int) -> None:
    head, _, body = say(server, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_after_all_that_it_is_well(server: Server) -> None:
    assert healthy(server)
    assert server.process.poll() is None
    assert "Traceback" not in server.log.read_text("utf-8", "replace")


@pytest.mark.skipif(not Path("/proc").exists(), reason="what a process takes is read from /proc")
def test_large_bodies_that_are_refused_leave_no_memory_behind(server: Server) -> None:
    before = memory(server)
    for _ in range(4):
        assert b" 413 " in post(server, b"[" * (33 * MIB))
        assert b" 400 " in post(server, b"[" * MIB)
    assert healthy(server)
    assert memory(server) - before < 100 * MIB


def test_idle_connections_keep_no_one_out_for_long_and_the_server_stands(server: Server) -> None:
    with ExitStack() as held:
        connections = [
            held.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            for _ in range(MOST_CONNECTIONS + 20)
        ]
        for connection in connections[:3]:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(15).startswith(b"HTTP/1.1 200")
        # Those beyond are closed, so that reading from them ends at once.
        connections[-1].settimeout(10)
        with suppress(ConnectionError):
            assert connections[-1].recv(1) == b""
    assert healthy(server)


def asked(server: Server, model: str) -> tuple[int, str]:
    """Ask for an answer; return its status, and what it says."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    request = Request(f"{server.url}/v1/chat/completions", json.dumps(body).encode())
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_templates_that_loop_for_ever_keep_nobody_waiting_for_another_model(
    tmp_path: Path, tiny_tokenizer: Tokenizer, backend: Backend
) -> None:
    for name in ("looping", "honest"):
        write_tiny_model(tmp_path / "models" / "tests" / name, tiny_tokenizer)
    config = tmp_path / "models" / "tests" / "looping" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": LOOPING}))
    with serving(tmp_path, tmp_path / "models") as server, ThreadPoolExecutor(10) as pool:
        assert asked(server, "honest")[0] == 200
        # More than there are threads, each for two seconds.
        looping = [pool.submit(asked, server, "looping") for _ in range(10)]
        status, said = next(as_completed(looping)).result()
        assert (status, "it takes too long" in said) == (400, True)
        began = time.monotonic()
        assert [asked(server, "honest")[0] for _ in range(5)] == [200] * 5
        assert time.monotonic() - began < 5
        assert not all(future.done() for future in looping)
        assert healthy(server)
        server.process.kill()
