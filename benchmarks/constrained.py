"""What answers held to a schema take, against free ones of the same length.

    python benchmarks/constrained.py http://127.0.0.1:1337 smollm2:135m --clients 1,4,8 --rounds 5

In each round so many clients ask at once for a JSON object of a schema, then as many, with prompts alike, for a story
of as many tokens as those objects had on average. Prompts are never the same twice. The ratio is of the medians of the
seconds that a token took, schema to free; below 1 the schema costs nothing.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from time import monotonic
from typing import Any
from urllib.request import Request, urlopen

from load import new_numbers, story

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 60},
        "category": {"enum": ["animals", "history", "nature", "technology", "everyday life"]},
        "audience": {"enum": ["children", "students", "everybody"]},
        "summary": {"type": "string", "maxLength": 120},
        "pages": {"type": "integer", "minimum": 1, "maximum": 999},
        "illustrated": {"type": "boolean"},
    },
    "required": ["title", "category", "audience", "summary", "pages", "illustrated"],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "story", "strict": True, "schema": SCHEMA}}


def ask(url: str, model: str, number: int, max_tokens: int, **fields: Any) -> int:
    """Return how many tokens an answer had."""
    messages = [{"role": "user", "content": story(number)}]
    body = {"model": model, "messages": messages, "max_tokens": max_tokens, **fields}
    request = Request(  # noqa: S310 - http
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request) as answer:  # noqa: S310 - the address is the operator's own
        return int(json.load(answer)["usage"]["completion_tokens"])


def together(
    url: str, model: str, clients: int, numbers: Iterator[int], max_tokens: int, **fields: Any
) -> tuple[float, float]:
    """Have so many clients ask at once; return the seconds that all took, and the tokens of an answer on average."""
    began = monotonic()
    with ThreadPoolExecutor(clients) as pool:
        counts = list(pool.map(lambda number: ask(url, model, number, max_tokens, **fields), islice(numbers, clients)))
    return monotonic() - began, statistics.mean(counts)


def main() -> None:
    """Run all rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--clients", default="1,4,8")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    numbers = new_numbers()
    ask(options.url, options.model, next(numbers), 1, response_format=FORMAT)  # loads the model
    for clients in map(int, options.clients.split(",")):
        held, free = [], []
        for _ in range(options.rounds):
            held.append(together(options.url, options.model, clients, numbers, 400, response_format=FORMAT))
            free.append(together(options.url, options.model, clients, numbers, round(held[-1][1])))
        paces = [statistics.median(seconds / tokens for seconds, tokens in rounds) for rounds in (held, free)]
        print(
            f"{clients:2} clients: {statistics.median(tokens for _, tokens in held):.0f} tokens an answer, "
            f"by the schema {paces[0] * 1000:.1f} ms a token, free {paces[1] * 1000:.1f} ms, "
            f"ratio {paces[0] / paces[1]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
