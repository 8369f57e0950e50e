"""Start the servers and run the comparisons that docs/performance.md quotes; what `make bench` does.

    python benchmarks/run.py MODELS_FOLDER [URL=MODEL …]

Osaurus, the same without speculation, and mlx_lm.server with the same BLAS and weights, on ports of their own; other
OpenAI-compatible servers that run already can be named. They take turns; nothing else should run on the machine.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
STARTER = "HuggingFaceTB/SmolLM2-135M-Instruct"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a process listens. Ends this one if that one ends."""
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise SystemExit(f"a server ended with status {process.returncode}")
        time.sleep(0.1)
    raise SystemExit("a server does not listen")


@contextmanager
def server(command: list[str], port: int) -> Iterator[str]:
    """Run a server until the end; its log goes nowhere."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - our own
    try:
        wait_for_port(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def osaurus(models: Path, *options: str) -> tuple[list[str], int]:
    """Return how Osaurus is started, and its port."""
    port = free_port()
    twistd = [str(BIN / "twistd"), "-n", "--pidfile=", "osaurus", "--port", str(port), "--models-dir", str(models)]
    return [*twistd, "--keep-alive", "-1", *options], port


def run(script: str, *arguments: str) -> None:
    """Run a benchmark, its output being ours."""
    print(f"\n$ {script} {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, HERE / script, *arguments], check=True)  # noqa: S603 - our own


def main() -> None:
    """Run everything."""
    models, others = Path(sys.argv[1]), sys.argv[2:]
    os.environ["PYTHONUNBUFFERED"] = "1"
    peer_port = free_port()
    peer = [sys.executable, str(HERE / "tuned_mlx_lm.py"), str(models / STARTER), "--port", str(peer_port)]
    with ExitStack() as stack:
        ours = stack.enter_context(server(*osaurus(models)))
        plain = stack.enter_context(server(*osaurus(models, "--speculation", "off")))
        theirs = stack.enter_context(server(peer, peer_port))
        model = "smollm2:135m"
        run("load.py", f"{theirs}/v1=default_model", f"{plain}/v1={model}", *others, "--rounds", "3")
        run("load.py", f"{plain}/v1={model}", f"{ours}/v1={model}", "--task", "rewrite", "--clients", "1,2,4")
        run("load.py", f"{plain}/v1={model}", f"{ours}/v1={model}", "--task", "story", "--clients", "1,4")
        run("latency.py", ours, model)
        run("prefix.py", ours, model, "--rounds", "3")
        run("interference.py", ours, model, "--words", "500", "--rounds", "3")
    run("restart.py", str(models))


if __name__ == "__main__":
    main()
