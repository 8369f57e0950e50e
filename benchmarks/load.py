"""Load OpenAI-compatible servers with streaming clients, side by side, and compare them.

    python benchmarks/load.py http://127.0.0.1:1337/v1=smollm2:135m [[NAME=]URL=MODEL …] --clients 1,4,8,16 --rounds 3

Servers take turns within each round, so that a machine whose speed drifts slows each of them alike; ratios are to the
first server, of the medians over the rounds. Each client asks for one answer of a fixed length, with a prompt of its
own so that no cache helps: a story, (`--task greedy`) the same at temperature 0, (`--task rewrite`) a text to be
corrected, or (`--task reading`) one word about a thousand tokens.

Tokens are those of `usage.completion_tokens` where the server tells (it is asked to, with
`stream_options.include_usage`), else the pieces received: a server may send several tokens in a piece, or one without
text in none. Gaps are between pieces, which is what a reader sees. `ignore_eos` is sent for the servers that know it
(llama.cpp's, vLLM); with others an answer may end before its length and counts with the tokens it has. The tokens per
answer are printed, since servers whose answers differ much in length did not do the same work. With `--json FILE` a
line is added to the file for every server and number of clients; plot.py draws it.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import treq
from attrs import asdict, define, field, frozen
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.task import react
from twisted.web.client import Agent, HTTPConnectionPool

TOPICS = ["dinosaurs", "rivers", "clocks", "bread", "winter", "trains", "music", "the moon"]


PROSE = (
    "The harbour was quiet when the first boats came in. Two women waited on the wall with baskets, and a boy ran "
    "along the pier to catch the ropes. Nobody spoke much. The night had been cold, the nets were heavy, and the "
    "gulls were already fighting over what had fallen on the stones. By seven the fish lay in rows on wet tables, "
    "silver and grey, and the first buyers walked past them with their hands in their pockets. An old man with a "
    "pipe bought three mackerel and a crab. He asked the price twice, as he did every morning, and paid what he had "
    "paid the day before. Behind him the bells of the church began to ring, and the shops in the narrow street "
    "opened their shutters one after the other. The baker put a board with chalk letters in front of his door. The "
    "boy had finished with the ropes by then. He sat on a barrel, ate a piece of bread, and watched the big ferry "
    "turn slowly around the lighthouse, as if it had all the time in the world.\n"
)

CODE = '''\
class Basket:
    """What somebody is going to buy."""

    def __init__(self, owner):
        self.owner = owner
        self.items = []

    def add(self, item, count=1):
        if count < 1:
            raise ValueError("count must be at least 1")
        self.items.append((item, count))

    def remove(self, item):
        self.items = [pair for pair in self.items if pair[0] != item]

    def total(self):
        result = 0
        for item, count in self.items:
            result += item.price * count
        return result

    def average(self):
        if not self.items:
            return 0
        return self.total() / len(self.items)

    def weight(self):
        result = 0
        for item, count in self.items:
            result += item.weight * count
        return result


class Item:
    """Something that can be bought."""

    def __init__(self, name, price, weight):
        self.name = name
        self.price = price
        self.weight = weight

    def discounted(self, percent):
        return Item(self.name, self.price * (100 - percent) / 100, self.weight)


def report(baskets):
    for basket in sorted(baskets, key=lambda basket: basket.owner):
        print(f"{basket.owner}: {basket.total():.2f} for {len(basket.items)} items, {basket.weight()} kg")
'''


def story(number: int) -> str:
    """Return a prompt whose answer has never been read."""
    return f"Number {number}: write a long story about {TOPICS[number % len(TOPICS)]}."


def rewrite(number: int) -> str:
    """Return a prompt whose answer is its text, of about 210 tokens, or code of more, with hardly a change."""
    text = (PROSE, CODE)[number % 2]
    return f"Correct the spelling of the following text. Answer with the text only.\n\n# {number}\n{text}"


def reading(number: int) -> str:
    """Return a prompt of about a thousand tokens that has never been read, with little to say about it."""
    words = " ".join(f"{TOPICS[(number + place) % len(TOPICS)]} and" for place in range(420))
    return f"Number {number}: which of these comes last? {words} nothing else."


TASKS = {"story": (story, 0.7), "greedy": (story, 0.0), "rewrite": (rewrite, 0.0), "reading": (reading, 0.0)}


class NoAnswer(Exception):
    """A server did not answer as it should; the message says which, and what it said."""


@frozen
class Target:
    """A server, by a name and its base URL, and the model to ask it for."""

    name: str
    url: str
    model: str

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read `URL=MODEL` or `NAME=URL=MODEL`; without a name, the URL is one."""
        name, _, rest = text.partition("=") if not text.startswith(("http://", "https://")) else ("", "", text)
        url, _, model = rest.rpartition("=")
        if not url.startswith(("http://", "https://")) or not model:
            raise argparse.ArgumentTypeError(f"{text!r} is not [NAME=]URL=MODEL")
        return cls(name or url, url, model)


@define
class Arrivals:
    """When the pieces of one answer arrived, in seconds since it was asked for, and what they said."""

    began: float = field(factory=monotonic)
    times: list[float] = field(factory=list)
    pieces: list[str] = field(factory=list)
    counted: int | None = None
    lasted: float = 0
    rest: bytes = b""

    def collect(self, data: bytes) -> None:
        """Take a part of the stream."""
        *events, self.rest = (self.rest + data).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: {"):
                chunk = json.loads(event[len(b"data: ") :])
                choices = chunk.get("choices") or [{}]
                if text := choices[0].get("delta", {}).get("content"):
                    self.times.append(monotonic() - self.began)
                    self.pieces.append(text)
                if usage := chunk.get("usage"):
                    self.counted = usage["completion_tokens"]

    @property
    def tokens(self) -> int:
        """How many tokens the answer has: the server's count, else the pieces."""
        return len(self.times) if self.counted is None else self.counted

    @property
    def first(self) -> float:
        """When there was something to see; of an answer without a word, its end."""
        return self.times[0] if self.times else self.lasted

    @property
    def gaps(self) -> list[float]:
        """The seconds between the pieces."""
        return [later - earlier for earlier, later in pairwise(self.times)]


@frozen
class Figures:
    """What one round of one server with so many clients gave. Times are in seconds."""

    tokens_per_second: float
    tokens_per_answer: float
    first_token: float
    gap_p50: float
    gap_p99: float


def percentile(values: Iterable[float], percent: int) -> float:
    """Return a percentile that lies between the smallest and the largest value; of no values, not a number."""
    given = list(values)
    if len(given) < 2:
        return given[0] if given else float("nan")
    return statistics.quantiles(given, n=100, method="inclusive")[percent - 1]


def new_numbers() -> Iterator[int]:
    """Count from where no earlier run has been: servers remember prompts, some of them on disk."""
    return itertools.count(random.randrange(10**6, 9 * 10**6))  # noqa: S311 - no secret


async def ask(agent: Any, target: Target, messages: list[dict[str, str]], tokens: int, **sampling: Any) -> Arrivals:
    """Read one answer as it comes. Raises NoAnswer."""
    body = {
        "model": target.model,
        "messages": messages,
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        **sampling,
    }
    arrivals = Arrivals()
    response = await treq.post(f"{target.url}/chat/completions", json=body, agent=agent)
    if response.code != 200:
        raise NoAnswer(f"{target.name} answered {response.code}: {await response.text()}")
    await response.collect(arrivals.collect)
    arrivals.lasted = monotonic() - arrivals.began
    return arrivals


async def together(agent: Any, target: Target, task: str, numbers: Iterable[int], tokens: int) -> list[Arrivals]:
    """Have a client for each of the numbers, all asking at once. Raises NoAnswer."""
    prompt, temperature = TASKS[task]
    asked = [
        Deferred.fromCoroutine(
            ask(agent, target, [{"role": "user", "content": prompt(number)}], tokens, temperature=temperature)
        )
        for number in numbers
    ]
    try:
        answers: list[Arrivals] = await gatherResults(asked, consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()
    return answers


async def measure(agent: Any, target: Target, task: str, numbers: Iterable[int], tokens: int) -> Figures:
    """Have a client for each of the numbers, and tell how that went."""
    began = monotonic()
    answers = await together(agent, target, task, numbers, tokens)
    elapsed = monotonic() - began
    gaps = [gap for answer in answers for gap in answer.gaps]
    return Figures(
        tokens_per_second=sum(answer.tokens for answer in answers) / elapsed,
        tokens_per_answer=statistics.mean(answer.tokens for answer in answers),
        first_token=statistics.median(answer.first for answer in answers),
        gap_p50=percentile(gaps, 50),
        gap_p99=percentile(gaps, 99),
    )


def medians(rounds: list[Figures]) -> Figures:
    """Return what is in the middle of the rounds."""

    def median(of: Callable[[Figures], float]) -> float:
        return statistics.median(map(of, rounds))

    return Figures(
        tokens_per_second=median(lambda figures: figures.tokens_per_second),
        tokens_per_answer=median(lambda figures: figures.tokens_per_answer),
        first_token=median(lambda figures: figures.first_token),
        gap_p50=median(lambda figures: figures.gap_p50),
        gap_p99=median(lambda figures: figures.gap_p99),
    )


def row(clients: int, target: Target, figures: Figures, first: Figures) -> str:
    """Return a server's row; `first` is what the first server had."""
    return (
        f"{clients:>3} clients  {target.name:<32} {figures.tokens_per_second:7.1f} tok/s  "
        f"ratio {figures.tokens_per_second / first.tokens_per_second:5.2f}  "
        f"first token {figures.first_token * 1000:6.0f} ms  "
        f"gap p50 {figures.gap_p50 * 1000:5.0f} ms  p99 {figures.gap_p99 * 1000:5.0f} ms  "
        f"{figures.tokens_per_answer:5.1f} tokens per answer"
    )


def line(task: str, clients: int, target: Target, figures: Figures) -> str:
    """Return a server's line for `--json`."""
    record = {"task": task, "clients": clients, "server": target.name, "model": target.model, **asdict(figures)}
    return json.dumps(record) + "\n"


async def main(reactor: Any, options: argparse.Namespace) -> None:
    """Run all rounds."""
    targets: list[Target] = options.targets
    agent = Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))
    numbers = new_numbers()
    for target in targets:
        # This loads the model, and compiles what is compiled.
        await measure(agent, target, options.task, [next(numbers)], 8)
    for clients in map(int, options.clients.split(",")):
        rounds: list[list[Figures]] = []
        for _ in range(options.rounds):
            chosen = [next(numbers) for _ in range(clients)]
            rounds.append([await measure(agent, target, options.task, chosen, options.tokens) for target in targets])
        middle = [medians([figures[index] for figures in rounds]) for index in range(len(targets))]
        for target, figures in zip(targets, middle, strict=True):
            print(row(clients, target, figures, middle[0]), flush=True)
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(line(options.task, clients, target, figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", metavar="[NAME=]URL=MODEL", type=Target.parse)
    parser.add_argument("--clients", default="1,4,8,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--task", choices=sorted(TASKS), default="story")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--json", type=Path, metavar="FILE")
    react(main, [parser.parse_args(sys.argv[1:])])
