"""A real server in a process of its own, for the tests that go through sockets."""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

from .conftest import CACHE

TWISTD = Path(sys.executable).with_name("twistd")
SERVE = ("-n", "--pidfile=", "osaurus")


# Until a server listens its port is nobody's. So each process that runs tests has ports of its own, which it takes in
# turn, where systems take none for connections.
PORTS = 1000
FIRST_PORT = 20000 + PORTS * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_places = itertools.count(random.randrange(PORTS))


def free_port() -> int:
    while True:
        port = FIRST_PORT + next(_places) % PORTS
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment(folder: Path, models: Path, port: int) -> dict[str, str]:
    """Nothing of whoever runs the tests but the path, a home of its own, and no hub and no index to reach."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OSU_", "HF_", "PIP_"))}
    return {
        **kept,
        "HOME": str(folder),
        "OSU_PORT": str(port),
        "OSU_MODELS_DIR": str(models),
        "OSU_CACHE_DIR": str(CACHE),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PIP_NO_INDEX": "1",
    }


def run_twistd(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run twistd to its end, which is soon where it does not start."""
    return subprocess.run(
        [TWISTD, *arguments],
        cwd=folder,
        env={**environment(folder, folder / "models", free_port()), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def wait_for_port(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the server ended with status {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the server does not listen")


@frozen
class Server:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_for_line(self, text: str) -> str:
        """Wait until the log has a line with this text, and return it."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for line in self.log.read_text().splitlines():
                if text in line:
                    return line
            time.sleep(0.05)
        raise AssertionError(f"the log does not say {text!r}: {self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status; twistd stops in order and then ends by that same signal."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def serving(folder: Path, models: Path, *options: str, **variables: str) -> Iterator[Server]:
    """Run `twistd -n osaurus` for a while; `variables` are of its environment."""
    port, log = free_port(), folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [TWISTD, "-n", "--pidfile=", "osaurus", *options],
            cwd=folder,
            env={**environment(folder, models, port), **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for_port(port, process)
        yield Server(port, process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
