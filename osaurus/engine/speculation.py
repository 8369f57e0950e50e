"""Drafts of what a row may write next, looked up in what it has read and written.

Answers often repeat their prompt: code is rewritten, text is quoted, fields are extracted. Where the last few tokens
occurred before, what followed then is a draft for what follows now. The model checks a whole draft in one pass, which
costs less than a pass for each token, and the row goes on behind the last token that was right.

The draws are what they are without drafts: at each place of the draft a token is drawn from the model's logits, with
the row's own sampler, and the rest of the draft is used only as long as that token is the drafted one. So no output
changes, for greedy and for sampled rows; a bad draft only costs time.

The difficulty is how much to draft. A pass over many tokens is dear where each costs a good part of a step, and cheap
where it does not; text is copied in runs, with changes between them. So a draft has the length that is worth most, by
what passes cost here (`Pace`) and by how well this row was foretold lately. That is known of every token that was
written, drafted or not: what would have been the draft is looked up for each. So nothing need be tried out, and a row
that begins to copy after a long free text is drafted soon.

Rejected: a draft model, which needs memory and a partner with the same vocabulary for each model; drafts of one length,
with pauses after bad ones, which waste half of a pass wherever a copy differs; looking for more than eight tokens: it
drafted no better.
"""

from collections.abc import Sequence

from attrs import define, field

# Tokens that must have occurred before, the more the better: in code that is copied the same few stand in many places,
# and the latest of them is seldom the one that is being copied.
NGRAMS = (8, 4, 2)
# With the row's own token these are sixteen: with AVX-512 products take eight rows at a time.
MOST_DRAFTED = 15
# Tokens of a prompt that are taken note of at a time: all of a very long one would be a gap in everybody's stream.
MOST_LEARNT = 4096
# How much of what was known stays with each token that is foretold.
MEMORY = 0.8


@define
class _Record:
    """How often tokens of one kind were foretold rightly, the latest counting most; at first a guess."""

    _right: float
    _all: float

    @property
    def rate(self) -> float:
        """The part of them that was right."""
        return self._right / self._all

    def add(self, right: bool) -> None:
        """Take another into account."""
        self._right = MEMORY * self._right + right
        self._all = MEMORY * self._all + 1


@define
class Drafter:
    """The drafts of one row, and how well it was foretold."""

    _places: dict[tuple[int, ...], int] = field(factory=dict, init=False)
    _known: int = field(default=0, init=False)
    _given: int = field(default=0, init=False)
    """How long the sequence was at first: of these tokens it is not asked how they could have been foretold."""
    _running: bool = field(default=False, init=False)
    _length: int = field(default=0, init=False)
    """How many tokens occurred before of those that the latest draft follows; 0 where it is empty."""
    _records: dict[tuple[int, bool], _Record] = field(init=False)

    @_records.default
    def _make_records(self) -> dict[tuple[int, bool], _Record]:
        # By how many tokens occurred before, and whether the last one was foretold. To begin with, a copy is likely.
        return {
            (NGRAMS[0], True): _Record(1.8, 2.0),
            (NGRAMS[0], False): _Record(1.6, 2.0),
            (NGRAMS[1], True): _Record(1.7, 2.0),
            (NGRAMS[1], False): _Record(1.4, 2.0),
            (NGRAMS[2], True): _Record(1.2, 2.0),
            (NGRAMS[2], False): _Record(0.8, 2.0),
        }

    def draft(self, sequence: Sequence[int], most: int) -> list[int]:
        """Return up to `most` tokens that may follow the sequence, which has grown since the last time.

        Behind a very long prompt there are none at first.
        """
        self._learn(sequence)
        if self._known < len(sequence):
            self._length = 0
            return []
        self._length, place = self._find(sequence, len(sequence))
        if not place:
            return []
        # A draft that reaches the end goes on with its own beginning: what repeats, repeats again.
        period = len(sequence) - place
        return [sequence[place + index % period] for index in range(min(most, MOST_DRAFTED))]

    def expected(self, drafted: int) -> float:
        """Return how many tokens a pass is likely to yield with so many of the latest draft."""
        if not drafted or not self._length:
            return 1.0
        first, further = self._records[self._length, self._running].rate, self._records[self._length, True].rate
        # The first, and each as long as all before it are right.
        return 1.0 + first * (drafted if further == 1 else (1 - further**drafted) / (1 - further))

    def _learn(self, sequence: Sequence[int]) -> None:
        """Take note of what stands where, and of how the tokens that are new could have been foretold."""
        self._given = self._given or len(sequence)
        last = min(len(sequence), self._known + MOST_LEARNT)
        for end in range(max(self._known, NGRAMS[-1]), last):
            if end >= self._given:
                length, place = self._find(sequence, end)
                right = bool(place) and sequence[place] == sequence[end]
                if place:
                    self._records[length, self._running].add(right)
                self._running = right
            for length in NGRAMS:
                if end >= length:
                    self._places[tuple(sequence[end - length : end])] = end
        self._known = last

    def _find(self, sequence: Sequence[int], end: int) -> tuple[int, int]:
        """Return how many of the tokens before a place stood elsewhere, and the place behind them; 0 if nowhere."""
        for length in NGRAMS:
            place = self._places.get(tuple(sequence[end - length : end]), 0) if end >= length else 0
            if place:
                return length, place
        return 0, 0
