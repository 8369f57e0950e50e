"""One answer while it is written: its text, its end, and the grammars that hold it.

A grammar holds all of an answer, from the end of the model's thoughts, or each call of a tool in it, from the mark that
begins the call. What the model draws goes through here: where a grammar leaves no choice other tokens may come of it,
and their text is what counts.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt
from attrs import define, field, frozen

from ..chat import ApiError, FinishReason, Piece, TokenScore
from .constraint import Constraint, ConstraintFailed
from .output import TextAssembler
from .shape import Shape


@frozen
class Written:
    """What came of a token that was drawn: the tokens written, what they say, and how the answer ends, if it does."""

    tokens: list[int]
    piece: Piece
    end: FinishReason | ApiError | None = None


@define(eq=False)
class Answer:
    """One answer. `encode` makes tokens of text.

    Where a grammar holds the answer and thoughts have been, `opening` is written between the two.

    What a model writes in the same token as a mark, and the grammar behind that does not allow, it reads but nobody is
    told. Where tokens are scored the model is asked for each, even if there is no choice; so `forces` is false then.
    """

    text: TextAssembler
    _end_tokens: Collection[int]
    _shape: Shape
    _encode: Callable[[str], list[int]]
    _forces: bool
    _opening: Sequence[int] = ()
    _constraint: Constraint | None = field(default=None, init=False)
    _held: bool = field(default=False, init=False)
    """Whether the grammar of the whole answer has begun to hold it."""
    _problem: ConstraintFailed | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._hold(Piece(""))

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        """Return which tokens may come next, a multiple of 32 wide; None if all may."""
        if self._constraint is None:
            return None
        try:
            return self._constraint.allowed()
        except ConstraintFailed as error:
            # It ends the answer, at the token that is drawn next.
            self._problem = error
            return None

    def take(self, token: int, score: TokenScore | None, room: int) -> Written:
        """Take a token that was drawn, where there is room for so many, it included."""
        tokens = [token]
        if self._constraint is not None and token not in self._end_tokens and self._problem is None:
            try:
                tokens = self._constraint.take(token, room)
            except ConstraintFailed as error:
                self._problem = error
        if self._problem is not None:
            return Written([], Piece(""), self._problem)
        piece, stopped, thinking = Piece(""), False, self.text.thinking
        for place, each in enumerate(tokens):
            # What is written in the place of what was drawn has no score.
            more, stopped = self.text.add(each, score if place == 0 and each == token else None)
            piece += more
        if self._shape.grammar is not None and thinking and not self.text.thinking:
            opening = list(self._opening[: room - len(tokens)])
            for each in opening:
                piece += self.text.add(each)[0]
            tokens += opening
        reason = "stop" if stopped else self._reason(tokens, room - len(tokens))
        if reason is None:
            piece = self._hold(piece)
        elif not stopped:
            piece += self.text.flush()
        if reason == "stop" and self.text.calls is not None and self.text.calls.complete:
            reason = "tool_calls"
        return Written(tokens, piece, reason)

    def _reason(self, tokens: list[int], room: int) -> FinishReason | None:
        """Return why the answer ends with these tokens, None if it goes on."""
        constraint, calls = self._constraint, self.text.calls
        if constraint is not None and constraint.closed and not self._held:
            # A call of the model's own accord is to be carried out: nobody is to take a part of a text for the whole.
            return "length"
        if (tokens and tokens[-1] in self._end_tokens) or (calls is not None and calls.full and not calls.calling):
            return "stop"
        if constraint is not None and (constraint.over or (room <= 0 and constraint.complete)):
            self._constraint = None
            if self._held or room <= 0:
                return "stop"
        return "length" if room <= 0 else None

    def _hold(self, piece: Piece) -> Piece:
        """Have a grammar hold what comes next, if it is time; return what is said by now."""
        shape, calls = self._shape, self.text.calls
        if self._constraint is not None:
            return piece
        if shape.grammar is not None and not self._held and not self.text.thinking:
            self._constraint, self._held = Constraint.of(shape.grammar, forces=self._forces), True
            if piece.text and not self._constraint.begin_with(self._encode(piece.text)):
                # It came in one token with the end of the thoughts, and is nothing that the answer may begin with.
                return Piece("", reasoning=piece.reasoning)
        elif shape.call_grammar is not None and calls is not None and calls.calling:
            self._constraint = Constraint.of(shape.call_grammar, forces=self._forces)
            if calls.held and not self._constraint.begin_with(self._encode(calls.held)):
                calls.begin_again()
        return piece
