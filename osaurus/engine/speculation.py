"""Drafts of what a row may write next, looked up in what it has read and written.

Answers often repeat their prompt: code is rewritten, text is quoted, fields are extracted. Where the last few tokens
occurred before, what followed then is a draft for what follows now. The model checks a whole draft in one pass, which
costs little more than a single token, and the row goes on behind the last token that was right.

The draws are what they are without drafts: at each place of the draft a token is drawn from the model's logits, with
the row's own sampler, and the rest of the draft is used only as long as that token is the drafted one. So no output
changes, for greedy and for sampled rows; a bad draft only costs time. Rows whose drafts are bad pause drafting, longer
each time.

Rejected: a draft model, which needs memory and a partner with the same vocabulary for each model.
"""

from collections.abc import Sequence

from attrs import define, field

# Tokens that must have occurred before, the most tokens of a draft, and the steps of the shortest and longest pause.
NGRAM = 3
MOST_DRAFTED = 16
SHORTEST_PAUSE = 4
LONGEST_PAUSE = 64
# A row pauses when less than this part of what was drafted lately was right.
LEAST_RATE = 0.3


@define
class Drafter:
    """The drafts of one row, and how good they were."""

    _places: dict[tuple[int, ...], int] = field(factory=dict, init=False)
    _known: int = field(default=NGRAM, init=False)
    _rest: int = field(default=0, init=False)
    _pause: int = field(default=SHORTEST_PAUSE, init=False)
    rate: float = field(default=0.6, init=False)
    """What part of the drafts was right lately."""

    def draft(self, sequence: Sequence[int], most: int) -> list[int]:
        """Return up to `most` tokens that may follow the sequence, which has grown since the last time."""
        for end in range(self._known, len(sequence)):
            self._places[tuple(sequence[end - NGRAM : end])] = end
        self._known = max(self._known, len(sequence))
        if self._rest:
            self._rest -= 1
            return []
        place = self._places.get(tuple(sequence[-NGRAM:]))
        if place is None:
            return []
        # A draft that reaches the end goes on with its own beginning: what repeats, repeats again.
        period = len(sequence) - place
        return [sequence[place + index % period] for index in range(min(most, MOST_DRAFTED))]

    def checked(self, drafted: int, right: int) -> None:
        """Learn that so many of the drafted tokens were right."""
        self.rate = 0.7 * self.rate + 0.3 * right / drafted
        if self.rate >= LEAST_RATE:
            self._pause = SHORTEST_PAUSE
        elif not right:
            self._rest = self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
