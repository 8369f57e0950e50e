"""How late the server's reactor is while many clients' answers are computed.

    python benchmarks/lateness.py MODELS_FOLDER --clients 16 --tokens 96

The server is started with a clock beside it (lateness_service.py). Told are the lateness of the times that were due
while nothing was asked, from the first question to the last answer, and while all answers were being written at once.
The first of these is the floor: the reactor's own timers are due to the millisecond.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

from load import Target, measure, new_numbers, percentile, together
from run import BIN, HERE, free_port, settings, wait_for_port
from twisted.internet.task import deferLater, react
from twisted.web.client import Agent, HTTPConnectionPool

MODEL = "smollm2:135m"
QUIET = 3.0


async def load(reactor: Any, url: str, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Do nothing, then load the server; return when each part of that began and ended."""
    agent = Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))
    target = Target("Osaurus", f"{url}/v1", MODEL)
    numbers = new_numbers()
    await measure(agent, target, "story", [next(numbers)], 8)
    began = monotonic()
    await deferLater(reactor, QUIET, lambda: None)
    asked = monotonic()
    answers = await together(agent, target, "story", itertools.islice(numbers, options.clients), options.tokens)
    ended = monotonic()
    parts = {"nothing asked": (began, asked), "from the first question to the last answer": (asked, ended)}
    last_to_begin = max(answer.began + answer.first for answer in answers)
    first_to_end = min(answer.began + answer.lasted for answer in answers)
    if last_to_begin < first_to_end:
        parts["all being written"] = (last_to_begin, first_to_end)
    return parts


async def main(reactor: Any, options: argparse.Namespace) -> None:
    """Run."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lateness"
        chosen = settings(options.models, port=str(port), cache_dir=folder)
        environment = {f"OSU_{name.upper()}": value for name, value in chosen.items()}
        process = subprocess.Popen(  # noqa: S603 - our own
            [str(BIN / "twistd"), "-n", "--pidfile=", "-y", str(HERE / "lateness_service.py")],
            env={**os.environ, **environment, "LATENESS": str(file)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for_port(process, port)
            parts = await load(reactor, f"http://127.0.0.1:{port}", options)
        finally:
            process.terminate()
            process.wait(30)
        noted = [tuple(map(float, line.split())) for line in file.read_text().splitlines()]
    print(f"{options.clients} clients, how late the reactor was:")
    for part, (began, ended) in parts.items():
        late = [late for due, late in noted if began <= due < ended]
        print(
            f"  {part}, {ended - began:.1f} s: p50 {percentile(late, 50) * 1000:.1f} ms, "
            f"p99 {percentile(late, 99) * 1000:.1f} ms, worst {max(late, default=0) * 1000:.1f} ms"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    react(main, [parser.parse_args(sys.argv[1:])])
