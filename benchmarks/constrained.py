"""What answers held to a schema take, against free ones of the same length.

    python benchmarks/constrained.py http://127.0.0.1:1337 smollm2:135m --clients 1,4,8 --rounds 5

In each round so many clients ask at once for a JSON object of a schema, then as many, with prompts alike, for stories
of as many tokens as those objects had, one by one. The schema is told in the prompt, so the others are told it too, as
something to ignore. Prompts are never the same twice. The ratio is of the medians of the
seconds that a round took, schema to free; below 1 the schema costs nothing.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from time import monotonic
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


IGNORED = f"Write in plain words, and pay no attention to this: {json.dumps(SCHEMA)}"


def ask(url: str, model: str, number: int, max_tokens: int, *, held: bool) -> int:
    """Return how many tokens an answer had."""
    told = [] if held else [{"role": "system", "content": IGNORED}]
    messages = [*told, {"role": "user", "content": story(number)}]
    fields = {"response_format": FORMAT} if held else {}
    body = {"model": model, "messages": messages, "max_tokens": max_tokens, **fields}
    request = Request(  # noqa: S310 - http
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request) as answer:  # noqa: S310 - the address is the operator's own
        return int(json.load(answer)["usage"]["completion_tokens"])


def together(
    url: str, model: str, lengths: list[int], numbers: Iterator[int], *, held: bool
) -> tuple[float, list[int]]:
    """Have clients ask at once for answers of at most so many tokens; return the seconds, and the tokens of each."""
    began = monotonic()
    with ThreadPoolExecutor(len(lengths)) as pool:
        asked = islice(numbers, len(lengths))
        counts = list(pool.map(lambda number, most: ask(url, model, number, most, held=held), asked, lengths))
    return monotonic() - began, counts


def main() -> None:
    """Run all rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--clients", default="1,4,8")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    numbers = new_numbers()
    ask(options.url, options.model, next(numbers), 1, held=True)  # loads the model
    for clients in map(int, options.clients.split(",")):
        held, free = [], []
        for _ in range(options.rounds):
            held.append(together(options.url, options.model, [400] * clients, numbers, held=True))
            free.append(together(options.url, options.model, held[-1][1], numbers, held=False))
        times = [statistics.median(seconds for seconds, _ in rounds) for rounds in (held, free)]
        tokens = [statistics.mean(count for _, counts in rounds for count in counts) for rounds in (held, free)]
        print(
            f"{clients:2} clients: {tokens[0]:.0f} tokens an answer by the schema in {times[0] * 1000:.0f} ms, "
            f"{tokens[1]:.0f} free in {times[1] * 1000:.0f} ms, ratio {times[0] / times[1]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
