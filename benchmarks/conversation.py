"""Hold the same conversation with OpenAI-compatible servers, side by side: every turn resends all that was said.

    python benchmarks/conversation.py http://127.0.0.1:1337/v1=smollm2:135m [[NAME=]URL=MODEL …] --turns 20 --rounds 3

Servers take turns within each round, each with a whole conversation; ratios are to the first server, of the medians
over the rounds. A turn asks for an answer of a fixed length, streamed and greedy, and the next turn resends that answer
as the server gave it. Each round's conversation begins with a number of its own, so that what a server remembers, it
remembers of this conversation. The first token of a late turn tells how much of the conversation was read again.

A small model likes to say nothing after some turns, and a conversation of other length is another conversation: the
tokens named by `--ends` (the starter model's, unless told otherwise) are forbidden with a `logit_bias`, and llama.cpp's
server, which takes no bias in that form, knows `ignore_eos`. Tokens are counted as load.py counts them, and printed.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

from attrs import frozen
from load import Target, ask, new_numbers, percentile
from twisted.internet.task import react
from twisted.web.client import Agent, HTTPConnectionPool

# The starter model's context, and no less than what a question takes of it with the words of its template.
CONTEXT = 8192
QUESTION_TOKENS = 64

SHOWN = (1, 5, 10, 20)

QUESTIONS = [
    "What did the old sailor see when he came to the harbour that morning, and whom did he tell about it first?",
    "Describe the house at the end of the street in as much detail as you can, from the cellar to the roof.",
    "Why had nobody in the village spoken of the flood for so many years? Explain what each of them was afraid of.",
    "Go on with the story. Let somebody arrive whom we have met before, and tell what has changed about them.",
    "What does the letter say? Write all of it, as it would have been written in those days.",
]


@frozen
class Conversation:
    """What one conversation took. Times are in seconds."""

    first_tokens: list[float]
    total: float
    tokens: int
    gaps: list[float]


async def converse(agent: Any, target: Target, number: int, turns: int, tokens: int, ends: str) -> Conversation:
    """Hold one conversation."""
    messages = [{"role": "system", "content": f"Story number {number}. You tell a long story, bit by bit."}]
    bias = {token: -100 for token in ends.split(",") if token}
    answers = []
    began = monotonic()
    for turn in range(turns):
        question = f"Part {turn + 1}. {QUESTIONS[turn % len(QUESTIONS)]}"
        messages.append({"role": "user", "content": question})
        answer = await ask(agent, target, messages, tokens, temperature=0, logit_bias=bias)
        messages.append({"role": "assistant", "content": "".join(answer.pieces)})
        answers.append(answer)
    return Conversation(
        first_tokens=[answer.first for answer in answers],
        total=monotonic() - began,
        tokens=sum(answer.tokens for answer in answers),
        gaps=[gap for answer in answers for gap in answer.gaps],
    )


def row(target: Target, held: list[Conversation], first: list[Conversation]) -> str:
    """Return a server's row, from its conversations and the first server's."""

    def median(of: Callable[[Conversation], float], conversations: list[Conversation] = held) -> float:
        return statistics.median(map(of, conversations))

    total, of_first = median(lambda c: c.total), median(lambda c: c.total, first)
    shown = [turn for turn in SHOWN if turn <= len(held[0].first_tokens)]
    times = [median(lambda c, turn=turn: c.first_tokens[turn - 1]) for turn in shown]  # type: ignore[misc]
    return (
        f"{target.name:<32} {total:6.1f} s  ratio {total / of_first:5.2f}  "
        f"first token of turns {', '.join(map(str, shown))}: {', '.join(f'{time * 1000:.0f}' for time in times)} ms  "
        f"gap p50 {median(lambda c: percentile(c.gaps, 50)) * 1000:5.0f} ms  "
        f"p99 {median(lambda c: percentile(c.gaps, 99)) * 1000:5.0f} ms  "
        f"{median(lambda c: c.tokens):.0f} tokens"
    )


async def main(reactor: Any, options: argparse.Namespace) -> None:
    """Run all rounds."""
    targets: list[Target] = options.targets
    agent = Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))
    numbers = new_numbers()
    for target in targets:
        # This loads the model, and compiles what is compiled.
        await converse(agent, target, next(numbers), 2, 4, options.ends)
    rounds: list[list[Conversation]] = []
    for number, _ in zip(numbers, range(options.rounds), strict=False):
        rounds.append(
            [await converse(agent, target, number, options.turns, options.tokens, options.ends) for target in targets]
        )
    held = [list(of_one) for of_one in zip(*rounds, strict=True)]
    for target, conversations in zip(targets, held, strict=True):
        print(row(target, conversations, held[0]), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", metavar="[NAME=]URL=MODEL", type=Target.parse)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--ends", default="0,2", metavar="TOKEN,…", help="the tokens that end an answer")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args(sys.argv[1:])
    if chosen.turns * (chosen.tokens + QUESTION_TOKENS) > CONTEXT:
        parser.error(f"--turns {chosen.turns} of --tokens {chosen.tokens} may not fit the context of {CONTEXT} tokens")
    react(main, [chosen])
