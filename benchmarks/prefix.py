"""How long the first token takes when a long system prompt was read before, against when it was not.

    python benchmarks/prefix.py http://127.0.0.1:1337 smollm2:135m --words 800 --rounds 5

Each round makes up a new system prompt, asks one question (cold) and then another behind the same prompt (warm). The
times are the whole request's, with one token of answer; the ratio is of the medians.
"""

import argparse
import json
import random
import statistics
from time import monotonic
from urllib.request import Request, urlopen

WORDS = [
    "stone",
    "river",
    "cloud",
    "paper",
    "green",
    "seven",
    "window",
    "table",
    "music",
    "bread",
    "winter",
    "garden",
    "silver",
    "morning",
]


def ask(url: str, model: str, system: str, question: str) -> tuple[float, int, int]:
    """Return the seconds that one token took, the prompt's tokens, and those of them that had been read before."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": 1, "temperature": 0}).encode()
    request = Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})  # noqa: S310 - http
    began = monotonic()
    with urlopen(request) as answer:  # noqa: S310 - the address is the operator's own
        usage = json.load(answer)["usage"]
    return monotonic() - began, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def main() -> None:
    """Run all rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--words", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ask(options.url, options.model, "You are brief.", "Hello")  # loads the model
    cold, warm = [], []
    for number in range(options.rounds):
        system = " ".join(random.Random(number).choices(WORDS, k=options.words))  # noqa: S311 - no secret
        cold.append(ask(options.url, options.model, f"{number} {system}", "What is the first word?"))
        warm.append(ask(options.url, options.model, f"{number} {system}", "Which word comes last?"))
    medians = [statistics.median(seconds for seconds, *_ in rounds) for rounds in (cold, warm)]
    print(
        f"prompt {cold[0][1]} tokens, of the second {warm[0][2]} read before: "
        f"cold {medians[0] * 1000:.0f} ms, warm {medians[1] * 1000:.0f} ms, ratio {medians[1] / medians[0]:.2f}"
    )


if __name__ == "__main__":
    main()
