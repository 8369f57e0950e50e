"""Load OpenAI-compatible servers with streaming clients, side by side, and compare them.

    python benchmarks/load.py http://127.0.0.1:1337/v1=smollm2:135m [URL=MODEL …] --clients 1,4,8,16 --rounds 3

Servers take turns within each round, so that a machine whose speed drifts slows each of them alike; ratios are to the
first server, of the medians over the rounds. Each client asks for one answer of a fixed length, with a prompt of its
own so that no cache helps: a story, or (`--task rewrite`) a text to be repeated. Tokens are counted by the pieces
received, which is what a reader sees.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

import treq
from attrs import define, field, frozen
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react
from twisted.web.client import Agent, HTTPConnectionPool

TOPICS = ["dinosaurs", "rivers", "clocks", "bread", "winter", "trains", "music", "the moon"]


REWRITTEN = """def total(items):
    result = 0
    for item in items:
        result += item.price * item.count
    return result

def average(items):
    if not items:
        return 0
    return total(items) / len(items)
"""


def story(number: int) -> str:
    """Return a prompt whose answer has never been read."""
    return f"Write a long story about {TOPICS[number % len(TOPICS)]}, number {number}."


def rewrite(number: int) -> str:
    """Return a prompt whose answer repeats it."""
    return f"Repeat the following code exactly, without any change:\n```python\n# Part {number}\n{REWRITTEN}```"


TASKS = {"story": (story, 0.7), "rewrite": (rewrite, 0.0)}


@frozen
class Target:
    """A server, by its base URL, and the model to ask it for."""

    url: str
    model: str


@define
class Arrivals:
    """When the pieces of one answer arrived, in seconds since it was asked for."""

    began: float = field(factory=monotonic)
    times: list[float] = field(factory=list)
    rest: bytes = b""

    def collect(self, data: bytes) -> None:
        """Take a part of the stream."""
        *events, self.rest = (self.rest + data).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: {"):
                choices = json.loads(event[len(b"data: ") :]).get("choices") or [{}]
                if choices[0].get("delta", {}).get("content"):
                    self.times.append(monotonic() - self.began)


@frozen
class Figures:
    """What one round of one server with so many clients gave. Times are in seconds."""

    tokens_per_second: float
    first_token: float
    gap_p50: float
    gap_p99: float


async def ask(agent: Any, target: Target, task: str, number: int, tokens: int) -> Arrivals:
    """Read one answer as it comes."""
    prompt, temperature = TASKS[task]
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": prompt(number)}],
        "max_tokens": tokens,
        "temperature": temperature,
        "stream": True,
    }
    arrivals = Arrivals()
    response = await treq.post(f"{target.url}/chat/completions", json=body, agent=agent)
    if response.code != 200:
        raise SystemExit(f"{target.url} answered {response.code}: {await response.text()}")
    await response.collect(arrivals.collect)
    return arrivals


async def measure(agent: Any, target: Target, task: str, clients: int, tokens: int) -> Figures:
    """Have so many clients ask at once."""
    began = monotonic()
    asked = [Deferred.fromCoroutine(ask(agent, target, task, number, tokens)) for number in range(clients)]
    answers: list[Arrivals] = await gatherResults(asked, consumeErrors=True)
    elapsed = monotonic() - began
    gaps = [later - earlier for a in answers for earlier, later in zip(a.times, a.times[1:], strict=False)]
    return Figures(
        tokens_per_second=sum(len(answer.times) for answer in answers) / elapsed,
        first_token=statistics.median(answer.times[0] for answer in answers),
        gap_p50=statistics.median(gaps),
        gap_p99=statistics.quantiles(gaps, n=100)[98],
    )


def report(targets: list[Target], clients: int, rounds: list[list[Figures]]) -> None:
    """Print a row for each server."""

    def median(index: int, of: Callable[[Figures], float]) -> float:
        return statistics.median(of(figures[index]) for figures in rounds)

    first = median(0, lambda figures: figures.tokens_per_second)
    for index, target in enumerate(targets):
        speed = median(index, lambda figures: figures.tokens_per_second)
        print(
            f"{clients:>3} clients  {target.url:<32} {speed:7.1f} tok/s  ratio {speed / first:5.2f}  "
            f"first token {median(index, lambda figures: figures.first_token) * 1000:6.0f} ms  "
            f"gap p50 {median(index, lambda figures: figures.gap_p50) * 1000:5.0f} ms  "
            f"p99 {median(index, lambda figures: figures.gap_p99) * 1000:5.0f} ms",
            flush=True,
        )


async def main(reactor: Any, options: argparse.Namespace) -> None:
    """Run all rounds."""
    targets = [Target(*text.rsplit("=", 1)) for text in options.targets]
    pool = HTTPConnectionPool(reactor, persistent=False)
    agent = Agent(reactor, pool=pool)
    for target in targets:
        await measure(agent, target, options.task, 1, 8)  # loads the model, compiles what is compiled
    for clients in map(int, options.clients.split(",")):
        rounds = [
            [await measure(agent, target, options.task, clients, options.tokens) for target in targets]
            for _ in range(options.rounds)
        ]
        report(targets, clients, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", metavar="URL=MODEL")
    parser.add_argument("--clients", default="1,4,8,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--task", choices=sorted(TASKS), default="story")
    parser.add_argument("--tokens", type=int, default=48)
    react(main, [parser.parse_args(sys.argv[1:])])
