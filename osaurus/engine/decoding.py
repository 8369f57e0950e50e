"""From tokens to whole characters, one token at a time.

`DecodeStream` of the tokenizers library does most of it: it holds back what is not a character yet. Two things it does
not. Where tokens are bytes, a character that was whole becomes several wrong ones when bytes follow that are none; the
library then refuses to go on, for good. Here it goes on behind what was said. And some decoders take a space from the
beginning of a text; a text that is continued begins with the text before it.
"""

from collections.abc import Sequence

from attrs import define, field
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# Tokens of the text before that are looked at: a character has four bytes at most.
LOOKED_AT = 8
WRONG = "\ufffd"


@define
class TokenDecoder:
    """The text of tokens that come one by one, `before` being those of the text that they continue, if they do."""

    _tokenizer: Tokenizer
    _before: Sequence[int] = ()
    _stream: DecodeStream = field(init=False)
    _untold: list[int] = field(factory=list, init=False)
    """The tokens whose text has not been returned yet."""

    @_stream.default
    def _begin(self) -> DecodeStream:
        before = list(self._before[-LOOKED_AT:])
        # What ends within a character has no text of its own to go on from.
        begun = bool(before) and not self._decoded(before).endswith(WRONG)
        return DecodeStream(ids=before if begun else None, skip_special_tokens=True)

    def step(self, token: int) -> str:
        """Take the next token; return the text that it completes, often none."""
        self._untold.append(token)
        try:
            text: str | None = self._stream.step(self._tokenizer, token)
        except Exception:  # noqa: BLE001 - the library raises nothing more particular
            text = self._begin_again()
        if text:
            self._untold.clear()
        return text or ""

    def _begin_again(self) -> str:
        """Return the text of what has not been told, and go on behind it."""
        # Any whole character will do for what comes before.
        before: list[int] = self._tokenizer.encode("a", add_special_tokens=False).ids
        self._stream = DecodeStream(ids=before, skip_special_tokens=True)
        text = self._decoded([*before, *self._untold]).removeprefix(self._decoded(before))
        self._untold.clear()
        return text

    def _decoded(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text
