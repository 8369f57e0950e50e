"""Holds what a row writes to a grammar: which tokens may come next, which must, and when it has to come to an end.

Where the grammar leaves no choice, its tokens are appended without asking the model. Where the tokens that the row may
still write run out, the shortest end is: at each step there is one that fits, and a token that would leave none is not
taken. If not even the first fits, the answer is cut like any other.

A grammar that fails while it is used (some do) ends its row with an error, and nobody else's.
"""

import numpy as np
import numpy.typing as npt
from attrs import define, field
from llguidance import LLMatcher

from ..chat import ApiError
from .closing import Closers, allowed
from .grammars import Grammar

# An end is looked for when a row may write less than this many tokens more, or twice as many as the shortest text has.
# Where there was none, it is looked for again after so many.
CLOSING_WINDOW = 256
CLOSING_PAUSE = 8
# A known end may be of use yet behind so many tokens that are sought anew, without so many at its beginning.
MOST_ANEW = 4
MOST_SKIPPED = 32


class ConstraintFailed(ApiError):
    """The schema became too complex while the answer was written."""

    mendable = False


@define(eq=False)
class Constraint:
    """What one text of one row may be. `forces` says whether tokens without an alternative are appended unasked.

    Where there is room for less than `window` tokens, the end is looked for.
    """

    _matcher: LLMatcher
    _closers: Closers
    _forces: bool
    _window: int
    _closing: list[int] | None = field(default=None, init=False)
    """How the text may end from here, if that was looked for and found."""
    _sought: int = field(default=2**62, init=False)
    """How much room there was when an end was last looked for in vain."""
    closed: bool = field(default=False, init=False)
    """Whether the text was brought to its end in the place of what was drawn."""

    @classmethod
    def of(cls, grammar: Grammar, *, forces: bool) -> "Constraint":
        """Return the constraint at the beginning of a text."""
        return cls(grammar.begin(), grammar.closers, forces, max(CLOSING_WINDOW, 2 * grammar.shortest))

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return which tokens may come next; a multiple of 32 wide. Raises ConstraintFailed."""
        mask = allowed(self._matcher)
        _check(self._matcher)
        if not mask.any():
            raise ConstraintFailed("The schema allows nothing here")
        return mask

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return self._matcher.is_accepting()

    @property
    def over(self) -> bool:
        """Whether the text ends here."""
        return self.closed or self._matcher.is_stopped()

    def begin_with(self, tokens: list[int]) -> bool:
        """Take what was written already, if the text may begin so; return whether it may."""
        tried = self._matcher.deep_copy()
        fits = tried.consume_tokens(tokens)
        if fits:
            self._matcher = tried
        return fits

    def take(self, token: int, room: int) -> list[int]:
        """Take a token that was drawn, where there is room for so many, it included; return those that are written.

        They are others where the grammar leaves no choice, or where the text has to come to its end; then there may be
        none at all. Raises ConstraintFailed.
        """
        if room > self._window:
            return self._consume(self._matcher, token, room)
        self._closing = self._end_after([], self._matcher, room)
        after = self._matcher.deep_copy()
        taken = self._consume(after, token, room)
        closing = self._end_after(taken, after, room - len(taken))
        if closing is None and self._closing is not None:
            self.closed = True
            self._matcher.consume_tokens(self._closing)
            return self._closing
        self._matcher, self._closing = after, closing
        return taken

    def _consume(self, matcher: LLMatcher, token: int, room: int) -> list[int]:
        """Have a matcher take what comes next, at most so many tokens; return it."""
        taken = self._forced(matcher, room)
        if not taken:
            matcher.consume_token(token)
            taken = [token, *self._forced(matcher, room - 1)]
        _check(matcher)
        return taken

    def _forced(self, matcher: LLMatcher, room: int) -> list[int]:
        forced: list[int] = []
        # What is cut off must not count: the text would seem complete.
        while self._forces and len(forced) < room and (more := matcher.compute_ff_tokens()):
            more = more[: room - len(forced)]
            forced += more
            matcher.consume_tokens(more)
        return forced

    def _end_after(self, taken: list[int], matcher: LLMatcher, room: int) -> list[int] | None:
        """Return how the text may end in so many tokens, where these came after what is known to end it."""
        known = self._closing
        if known is not None and known[: len(taken)] == taken:
            return known[len(taken) :]
        if known is not None and (still := self._still(known, matcher, room)) is not None:
            return still
        if known is None and room > self._sought - CLOSING_PAUSE:
            return None
        closing = self._closers.close(matcher, room)
        if closing is None and known is None:
            self._sought = room
        return closing

    def _still(self, known: list[int], matcher: LLMatcher, room: int) -> list[int] | None:
        """Return how the text may end in so many tokens, by how it could have ended before; None if that is no help."""
        tried = matcher.deep_copy()
        fits = matcher.validate_tokens(known)
        begun = known[: min(fits, room)]
        if len(known) // 2 < fits < len(known) and tried.consume_tokens(begun):
            # It has become too long, in a string of so many letters, say.
            rest = self._closers.walk(tried, room - len(begun))
            return begun + rest if tried.is_accepting() else None
        # In a string what ended it before ends it still; or what was begun or ended differently is brought to where
        # something of the known end fits.
        begun = []
        while len(begun) < MOST_ANEW:
            for skipped in range(min(len(known), MOST_SKIPPED)):
                rest = known[skipped:]
                if len(begun) + len(rest) <= room and _ends(tried, rest):
                    return begun + rest
            more = self._closers.walk(tried, 1)
            if not more:
                break
            begun += more
        return None


def _ends(matcher: LLMatcher, tokens: list[int]) -> bool:
    """Return whether these tokens bring the text to its end."""
    if matcher.validate_tokens(tokens) < len(tokens):
        return False
    tried = matcher.deep_copy()
    return tried.consume_tokens(tokens) and tried.is_accepting()


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise ConstraintFailed(f"The schema became too complex while the answer was written: {matcher.get_error()}")
