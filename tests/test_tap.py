"""`twistd osaurus` as a process: starting, refusing to start, stopping."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from time import monotonic, sleep
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from .conftest import CACHE
from .server import SERVE, TWISTD, environment, free_port, run_twistd, serving, wait_for_port
from .test_store import install


def chat(url: str, stream: bool = False) -> Request:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": stream, "max_tokens": 400}
    return Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})


def test_a_taken_port_is_exit_status_1_and_one_line(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        done = run_twistd(tmp_path, *SERVE, "--port", str(holder.getsockname()[1]))
    assert done.returncode == 1
    [line] = [line for line in (done.stdout + done.stderr).splitlines() if "osaurus: " in line]
    assert "Address already in use" in line
    assert "Traceback" not in done.stdout + done.stderr


def test_an_option_that_nobody_knows_is_a_usage_error(tmp_path: Path) -> None:
    done = run_twistd(tmp_path, *SERVE, "--prot=80")
    assert done.returncode == 1
    assert "There is no option --prot; did you mean --port?" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "environ", "said"),
    [
        (["--listen", "carrier-pigeon:1337"], {}, "--listen 'carrier-pigeon:1337' will not do: "),
        # It is no question of who may ask, either.
        ([], {"OSU_LISTEN": "tpc:1337"}, "OSU_LISTEN 'tpc:1337' will not do: "),
        (["--port", "8080"], {"OSU_LISTEN": "unix:s"}, "--port would have no effect beside OSU_LISTEN"),
        (["--port", "seventy"], {}, "--port must be a port number"),
        ([], {"OSU_MAX_BODY": "plenty"}, "OSU_MAX_BODY must be a number of bytes"),
        (["--expose"], {}, "Other machines could reach "),
        (["--config=/dev/null/none"], {}, "The configuration file /dev/null/none cannot be read"),
        (["--models-dir=/dev/null"], {}, "models_dir: /dev/null is no folder"),
        (["--cache-dir=/dev/null"], {}, "cache_dir: /dev/null cannot be written to: Not a directory"),
        (["--cache-dir=/proc/none"], {}, "cache_dir: /proc/none cannot be written to: No such file or directory"),
    ],
)
def test_a_setting_that_cannot_be_is_exit_status_1_and_one_line(
    tmp_path: Path, options: list[str], environ: dict[str, str], said: str
) -> None:
    done = run_twistd(tmp_path, *SERVE, *options, **environ)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"osaurus: {said}")


def test_a_daemon_that_cannot_have_its_port_ends_too_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = run_twistd(tmp_path, "osaurus", f"--port={port}")
    assert done.returncode == 1
    # twistd passes on a hundred bytes.
    assert f"osaurus: Address already in use: cannot listen on tcp:{port}" in done.stderr
    # The daemon says what is wrong, then it tidies up.
    deadline = monotonic() + 30
    while (tmp_path / "twistd.pid").exists():
        assert monotonic() < deadline
        sleep(0.05)


def test_a_whole_url_in_the_place_of_the_path_is_understood(tmp_path: Path) -> None:
    with serving(tmp_path, tmp_path / "models") as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"GET http://x/v1/models?a=b HTTP/1.0\r\n\r\n")
            received = b""
            while data := client.recv(4096):
                received += data
        assert received.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200"))


def test_without_models_it_starts_and_tells_how_to_get_one(tmp_path: Path) -> None:
    with serving(tmp_path, tmp_path / "models") as server:
        with urlopen(f"{server.url}/v1/models", timeout=30) as answer:
            assert json.load(answer) == {"object": "list", "data": []}
        with pytest.raises(HTTPError) as refused:
            urlopen(chat(server.url), timeout=30)
        server.wait_for_line(f"There is no folder {tmp_path / 'models'} yet")
        server.wait_for_line("No model is installed: `osaurus pull smollm2:135m`")
        error = json.load(refused.value)["error"]
        assert (refused.value.code, error["code"]) == (404, "model_not_found")
        assert "osaurus pull smollm2:135m" in error["message"]
        assert server.stop() == -signal.SIGTERM


def test_what_deletions_left_that_were_cut_short_is_gone_soon_after_the_start(tmp_path: Path) -> None:
    left = tmp_path / "models" / "org" / ".deleting-0"
    left.mkdir(parents=True)
    with serving(tmp_path, tmp_path / "models"):
        deadline = monotonic() + 30
        while left.exists():
            assert monotonic() < deadline
            sleep(0.05)


def test_digests_are_kept_in_the_cache_folder(tmp_path: Path) -> None:
    folder = install(tmp_path / "models", "org/tiny", {"w": np.zeros(2**18, np.float32)})
    cache = tmp_path / "cache"
    cache.mkdir()
    (CACHE / "compiled").mkdir(parents=True, exist_ok=True)
    (cache / "compiled").symlink_to(CACHE / "compiled")
    with serving(tmp_path, tmp_path / "models", OSU_CACHE_DIR=str(cache)) as server:
        urlopen(f"{server.url}/api/tags", timeout=30).close()
    assert list(json.loads((cache / "digests.json").read_text())) == [str(folder / "model.safetensors")]


def test_it_listens_on_every_endpoint_it_was_given(tmp_path: Path) -> None:
    other = free_port()
    path = tmp_path / "a socket"
    # They are opened in this order: when the port is, so is the socket.
    endpoints = ("--listen", f"unix:{path}", "--listen", f"tcp:{other}:interface=127.0.0.1")
    process = subprocess.Popen(
        [TWISTD, "-n", "--pidfile=", "osaurus", *endpoints],
        cwd=tmp_path,
        env=environment(tmp_path, tmp_path, free_port()),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(other, process)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            received = b""
            while data := client.recv(4096):
                received += data
        assert received.endswith(b"Osaurus is running")
    finally:
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_a_drain_stopping_in_the_middle_of_a_stream_ends_it_with_an_error_event(
    tmp_path: Path, tiny_models: Path, number: int
) -> None:
    with serving(tmp_path, tiny_models, "--drain=0") as server:
        with urlopen(chat(server.url, stream=True), timeout=60) as answer:
            answer.readline()
            status = server.stop(number)
            events = answer.read().decode().strip().split("\n\n")
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "service_unavailable"
        assert events[-1] == "data: [DONE]"
        assert status == -number
        log = server.log.read_text()
        assert "Traceback" not in log
        assert "Server Shut Down" in log


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_a_client_that_hangs_up_leaves_no_trace_in_the_log(
    tmp_path: Path, tiny_models: Path, path: str, stream: bool
) -> None:
    body = chat("http://x", stream).data
    assert isinstance(body, bytes)
    with serving(tmp_path, tiny_models) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)))
            client.sendall(body)
            if stream:
                assert client.recv(64)
        with urlopen(chat(server.url), timeout=60) as answer:
            assert json.load(answer)["object"] == "chat.completion"
        server.stop()
        assert "Traceback" not in server.log.read_text()


def test_as_a_daemon_it_answers_and_stops(tmp_path: Path, tiny_models: Path) -> None:
    port = free_port()
    subprocess.run(
        [TWISTD, "osaurus"], cwd=tmp_path, env=environment(tmp_path, tiny_models, port), check=True, timeout=60
    )
    pid = int((tmp_path / "twistd.pid").read_text())
    try:
        wait_for_port(port)
        with urlopen(chat(f"http://127.0.0.1:{port}"), timeout=60) as answer:
            assert json.load(answer)["object"] == "chat.completion"
    finally:
        os.kill(pid, signal.SIGTERM)
        deadline = monotonic() + 30
        while (tmp_path / "twistd.pid").exists() and monotonic() < deadline:
            sleep(0.05)
    assert not (tmp_path / "twistd.pid").exists()
    assert "Traceback" not in (tmp_path / "twistd.log").read_text()


def status_of(url: str) -> int:
    try:
        with urlopen(f"{url}/v1/models", timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        error.close()
        return error.code


def write_settings(home: Path, text: str) -> None:
    folder = home / ".osaurus"
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(text)


def test_a_hang_up_has_the_settings_read_again(tmp_path: Path) -> None:
    with serving(tmp_path, tmp_path / "models", OSU_PROT="8080") as server:
        server.wait_for_line("OSU_PROT is no setting and has no effect; did you mean OSU_PORT?")
        server.wait_for_line("Osaurus is running")
        assert status_of(server.url) == 200
        write_settings(tmp_path, "api_keys = 'secret'\ncpu_threads = 1")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("api_keys is now 1 of them, not shown")
        server.wait_for_line("cpu_threads would be 1, but that takes a restart")
        assert status_of(server.url) == 401
        write_settings(tmp_path, "api_kyes = 'secret'")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("stay as they were")
        assert status_of(server.url) == 401
        write_settings(tmp_path, "")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("api_keys is now none")
        assert status_of(server.url) == 200
        assert server.stop() == -signal.SIGTERM
        assert "Traceback" not in server.log.read_text()
        assert "secret" not in server.log.read_text()


def test_a_daemon_hears_it_too_wherever_it_runs(tmp_path: Path) -> None:
    port = free_port()
    environ = environment(tmp_path, tmp_path / "models", port)
    (tmp_path / "mine.toml").write_text("drain = '1s'")
    (tmp_path / "elsewhere").mkdir()
    command = [str(TWISTD), "--rundir=elsewhere", "osaurus", "--config=mine.toml"]
    subprocess.run(command, cwd=tmp_path, env=environ, check=True, timeout=60)
    pid, log = int((tmp_path / "twistd.pid").read_text()), tmp_path / "twistd.log"
    try:
        wait_for_port(port)
        # Which is beside it, and not where the daemon is.
        (tmp_path / "keys").write_text("secret")
        (tmp_path / "mine.toml").write_text("api_keys = './keys'")
        os.kill(pid, signal.SIGHUP)
        deadline = monotonic() + 60
        while "api_keys is now" not in log.read_text():
            assert monotonic() < deadline
            sleep(0.05)
        assert status_of(f"http://127.0.0.1:{port}") == 401
    finally:
        os.kill(pid, signal.SIGTERM)
        deadline = monotonic() + 30
        while (tmp_path / "twistd.pid").exists() and monotonic() < deadline:
            sleep(0.05)
    assert "Traceback" not in log.read_text()


def test_it_ends_by_itself_when_nobody_asks_and_that_is_no_error(tmp_path: Path) -> None:
    with serving(tmp_path, tmp_path / "models", "--exit-when-idle=500ms") as server:
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.log.read_text()
