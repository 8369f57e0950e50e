"""A pull in a process of its own, for the server: what it tells goes to standard output, an object of JSON a line.

A pull blocks for as long as it takes, and ends at once when it is told to (SIGTERM) or when nobody reads what it tells:
the server has gone. What it has fetched stays for the next attempt, as after any end.
"""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import attrs

from .ending import ends_in_order
from .progress import PullError
from .pull import pull


def main(arguments: list[str]) -> None:
    """Pull, as the command line says."""
    parser = ArgumentParser(prog="python -m osaurus.library.pull_process")
    parser.add_argument("name")
    parser.add_argument("models", type=Path)
    parser.add_argument("--quantize", type=int)
    given = parser.parse_args(arguments)
    # Whatever else is printed is not for the server to read.
    channel, sys.stdout = sys.stdout, sys.stderr

    def write(told: dict[str, Any]) -> None:
        channel.write(json.dumps(told) + "\n")
        channel.flush()

    try:
        with ends_in_order():
            pull(given.name, given.models, lambda progress: write(attrs.asdict(progress)), quantize=given.quantize)
    except PullError as error:
        write({"error": str(error), "kind": type(error).__name__})


if __name__ == "__main__":
    main(sys.argv[1:])
