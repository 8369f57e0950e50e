"""Marks in text that comes bit by bit: stop strings, tags of thoughts, beginnings of calls."""

from collections.abc import Sequence


def doubtful(text: str, marks: Sequence[str]) -> int:
    """Return how many characters at the end of a text begin a mark, as many as do; a whole mark does not count."""
    longest = min(max(map(len, marks), default=1) - 1, len(text))
    for length in range(longest, 0, -1):
        end = text[-length:]
        if any(mark.startswith(end) for mark in marks):
            return length
    return 0
