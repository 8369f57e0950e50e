"""How long: durations as people and Ollama's clients write them, `5m`, `1h30m`, `300`, in seconds."""

import math
import re
from datetime import timedelta

import durationpy

SECONDS = re.compile(r"-?[0-9]+(\.[0-9]*)?")
LONGEST_TEXT = 64
CENTURY = 100 * 365.25 * 86400


def seconds(text: str) -> float:
    """Return a duration in seconds: a number of them, or Go's notation; a negative one is without end.

    Raises ValueError.
    """
    if len(text) > LONGEST_TEXT or (not text.isascii() and "µ" not in text):
        raise ValueError("is no duration")
    return without_end(float(text) if SECONDS.fullmatch(text) else durationpy.from_str(text).total_seconds())


def without_end(number: float) -> float:
    """Return this many seconds; infinitely many for a negative number, as Ollama has it, or beyond a century."""
    return math.inf if number < 0 or number > CENTURY else number


def text(number: float) -> str:
    """Return how a number of seconds is written: `1h30m`; `-1` for infinitely many."""
    return "-1" if math.isinf(number) else durationpy.to_str(timedelta(seconds=number))
