"""The worst gap in one client's stream while another's long prompt is read, in that stream's own median gaps.

python benchmarks/interference.py http://127.0.0.1:1337 smollm2:135m --words 500 --rounds 3
"""

import argparse
import json
import statistics
from itertools import pairwise
from threading import Timer
from time import monotonic
from typing import Any
from urllib.request import Request, urlopen


def chat(url: str, model: str, content: str, tokens: int, stream: bool) -> Any:
    """Ask for an answer; return the open response."""
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": tokens, "stream": stream}
    headers = {"Content-Type": "application/json"}
    return urlopen(Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers))  # noqa: S310 - http


def gaps(url: str, model: str, words: int, number: int) -> list[float]:
    """Return the gaps between the pieces of a stream, in seconds, a long prompt arriving after three of them."""
    prompt = f"{number} " + " ".join(f"word{n % 97}" for n in range(words))
    times: list[float] = []
    intruder = Timer(0, lambda: chat(url, model, prompt, 1, False).read())
    with chat(url, model, f"Tell a long story, number {number}.", 120, True) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                times.append(monotonic())
            if len(times) == 4 and not intruder.ident:
                intruder.start()
    intruder.join()
    return [later - earlier for earlier, later in pairwise(times[1:])]


def main() -> None:
    """Run all rounds and print the worst gaps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--words", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    chat(options.url, options.model, "Hello", 1, False).read()
    quiet = statistics.median(gaps(options.url, options.model, 0, 0))
    for number in range(1, options.rounds + 1):
        worst = max(gaps(options.url, options.model, options.words, number))
        print(f"undisturbed median gap {quiet * 1000:.0f} ms, worst {worst * 1000:.0f} ms: {worst / quiet:.1f} times")


if __name__ == "__main__":
    main()
