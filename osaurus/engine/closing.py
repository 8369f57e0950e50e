"""How a text is brought to an end that its grammar allows, in few tokens.

When the tokens that an answer may still have run out, what is open must be closed: strings, objects, the properties
that are required. The shortest way is a search without bound, and a good one is enough: tokens that close come first,
then the shortest values, then whatever is allowed, each time one that was used least, so that a pattern such as that of
an e-mail address is walked through and not written in one letter for ever.
"""

import re
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
from attrs import frozen
from llguidance import LLMatcher

# Tokens that bring a text nearer to its end, in the order in which they are tried: within a string, and elsewhere.
WITHIN = [re.compile(rb'"[\]}]*'), re.compile(rb"[a-z]{8}")]
ELSEWHERE = [
    re.compile(rb" ?[\]}]+"),
    re.compile(rb' ?(""|\[\]|\{\})[\]}]*'),
    re.compile(rb" ?(0|1|null|true|false)"),
    re.compile(rb' ?"'),
    # Last what may hold more of its own kind, and so on.
    re.compile(rb" ?(-|[2-9]|nu?l?|tr?u?|fa?l?s?)"),
    re.compile(rb" ?[\[{]"),
]
EVERYWHERE = [
    re.compile(rb"[@.:/T+-]"),
    re.compile(rb"[0-9]"),
    re.compile(rb"[a-zA-Z]"),
    # But for a backslash: an escape only makes a string longer.
    re.compile(rb'[ -\[\]-~]|[,:] ?"?'),
]
LONGEST = 8
# Two fillers will do: what is between them and what was not tried yet should be short.
MOST_OF_A_KIND = {WITHIN[1]: 2}

# These come so many times before they count as used more than others: what is nested closes often, a string is begun
# and ended with the same, and multiples often end in zeros.
OFTEN = [(re.compile(rb" ?[\]}]+"), 32), (re.compile(rb'"'), 4), (re.compile(rb"0"), 3)]

# What may come is asked anew for each token at first, and in a long string for so much of it at a time. Elsewhere an
# end would be passed by: a number may go on where it might end.
RUN = 8

# Where both of these may come a string is being written.
LETTERS = (b"q", b"z")


@frozen(eq=False)
class Closers:
    """The tokens of a vocabulary that are good for closing, in the order in which they are tried."""

    _within: npt.NDArray[np.int64]
    _elsewhere: npt.NDArray[np.int64]
    _letters: npt.NDArray[np.int64]
    _often: npt.NDArray[np.int64]
    _end_tokens: npt.NDArray[np.int64]

    @classmethod
    def of(cls, spellings: Sequence[bytes], end_tokens: Collection[int]) -> "Closers":
        """Return those of a vocabulary that spells its tokens so."""
        letters = [token for token, spelling in enumerate(spellings) if spelling in LETTERS]
        return cls(
            _ranked(spellings, [*WITHIN, *EVERYWHERE]),
            _ranked(spellings, [*ELSEWHERE, *EVERYWHERE]),
            np.array(letters, np.int64),
            np.array([_times(spelling) for spelling in spellings], np.int64),
            np.array(list(end_tokens), np.int64),
        )

    def close(self, matcher: LLMatcher, most: int) -> list[int] | None:
        """Return at most so many tokens that bring a matcher's text to an end, None if none were found.

        The matcher is left as it is.
        """
        matcher = matcher.deep_copy()
        tokens = self.walk(matcher, most)
        return tokens if matcher.is_accepting() else None

    def walk(self, matcher: LLMatcher, most: int) -> list[int]:
        """Have a matcher take at most so many tokens on the way to its text's end, and return them."""
        tokens: list[int] = []
        used = np.zeros_like(self._often)
        within = False
        while len(tokens) < most and not matcher.is_error() and not matcher.is_accepting():
            forced = matcher.compute_ff_tokens()
            if forced:
                used[:] = 0
            else:
                may = allowed(matcher)
                if within != (within := bool(may[self._letters].all())):
                    # What began a string ends it, too.
                    used[:] = 0
                chosen = self._choose(may, within, used, 1 + int(used.sum()) // RUN if within else 1)
                forced = chosen[: matcher.validate_tokens(chosen)]
                if not forced:
                    break
                used[forced] += 1
            forced = forced[: most - len(tokens)]
            if not matcher.consume_tokens(forced):
                break
            tokens += forced
        return tokens

    def _choose(
        self, allowed: npt.NDArray[np.bool_], within: bool, used: npt.NDArray[np.int64], count: int
    ) -> list[int]:
        """Return at most so many tokens, the first of which may come next, and the others perhaps behind it."""
        tokens = self._within if within else self._elsewhere
        good = tokens[allowed[tokens]]
        if not good.size:
            good = np.setdiff1d(np.flatnonzero(allowed)[:64], self._end_tokens)
        order = np.argsort(used[good] // self._often[good], kind="stable")
        return [int(token) for token in good[order[:count]]]


def _times(spelling: bytes) -> int:
    return next((times for kind, times in OFTEN if kind.fullmatch(spelling)), 1)


def _ranked(spellings: Sequence[bytes], kinds: Sequence[re.Pattern[bytes]]) -> npt.NDArray[np.int64]:
    """Return the tokens of these kinds, in their order; of one kind the longest first, which closes most."""
    found: list[list[tuple[int, int]]] = [[] for _ in kinds]
    for token, spelling in enumerate(spellings):
        if len(spelling) <= LONGEST:
            rank = next((rank for rank, kind in enumerate(kinds) if kind.fullmatch(spelling)), None)
            if rank is not None:
                found[rank].append((-len(spelling), token))
    ranked = [sorted(tokens)[: MOST_OF_A_KIND.get(kind)] for kind, tokens in zip(kinds, found, strict=True)]
    return np.array([token for tokens in ranked for _, token in tokens], np.int64)


def allowed(matcher: LLMatcher) -> npt.NDArray[np.bool_]:
    """Return which tokens may come next, shape (vocabulary,); a multiple of 32 wide."""
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    return np.unpackbits(bits, bitorder="little").view(np.bool_)
