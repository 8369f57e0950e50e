"""How long a long prompt takes to its first token: cold, and after the server was killed and started again.

    python benchmarks/restart.py MODELS_FOLDER --rounds 3

Each round has a cache folder of its own and kills the server with SIGKILL.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic, sleep
from urllib.request import Request, urlopen

from run import osaurus, wait_for_port

MODEL = "smollm2:135m"


def ask(port: int, system: str, question: str) -> tuple[float, int]:
    """Return the seconds to a first token and how many tokens of the prompt had been read before."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    body = json.dumps({"model": MODEL, "messages": messages, "max_tokens": 1}).encode()
    request = Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, {"Content-Type": "application/json"})
    began = monotonic()
    with urlopen(request) as response:  # noqa: S310 - our own server
        usage = json.load(response)["usage"]
    return monotonic() - began, usage["prompt_tokens_details"]["cached_tokens"]


def life(models: Path, cache: str, system: str) -> tuple[float, int]:
    """Start a server, load the model, ask, and kill it once the disk has had a moment."""
    command, port = osaurus(models, cache_dir=cache)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - our own
    try:
        wait_for_port(process, port)
        ask(port, "Be brief.", "Hello")
        result = ask(port, system, "What is this about?")
        sleep(2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return result


def main(options: argparse.Namespace) -> None:
    """Run."""
    system = " ".join(f"Rule {number}: be kind to number {number}." for number in range(options.rules))
    cold, warm, cached = [], [], 0
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(life(options.models, cache, system)[0])
            seconds, cached = life(options.models, cache, system)
            warm.append(seconds)
    before, after = statistics.median(cold), statistics.median(warm)
    print(
        f"{cached} tokens read before: cold {before * 1000:.0f} ms, after a restart {after * 1000:.0f} ms, "
        f"ratio {after / before:.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rules", type=int, default=80)
    main(parser.parse_args(sys.argv[1:]))
