"""Ask for `/health` again and again while many clients read streams, and tell how long that takes.

python benchmarks/latency.py http://127.0.0.1:1337 smollm2:135m --clients 16
"""

import argparse
import itertools
import sys
from time import monotonic
from typing import Any

import treq
from load import Target, measure, new_numbers, percentile
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from twisted.web.client import Agent, HTTPConnectionPool

BETWEEN = 0.05


async def main(reactor: Any, options: argparse.Namespace) -> None:
    """Run."""
    agent = Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))
    # A connection of its own, kept: what is measured is the server, not TCP.
    probe = Agent(reactor, pool=HTTPConnectionPool(reactor))
    target = Target(options.url, f"{options.url}/v1", options.model)
    numbers = new_numbers()
    await measure(agent, target, "story", [next(numbers)], 8)
    times: list[float] = []
    chosen = list(itertools.islice(numbers, options.clients))
    load = Deferred.fromCoroutine(measure(agent, target, "story", chosen, options.tokens))
    while not load.called:
        began = monotonic()
        response = await treq.get(f"{options.url}/health", agent=probe)
        await treq.content(response)
        times.append(monotonic() - began)
        await deferLater(reactor, BETWEEN, lambda: None)
    await load
    print(
        f"{options.clients} clients, {len(times)} times: "
        f"p50 {percentile(times, 50) * 1000:.0f} ms, p99 {percentile(times, 99) * 1000:.0f} ms, "
        f"worst {max(times) * 1000:.0f} ms"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    react(main, [parser.parse_args(sys.argv[1:])])
