"""From tokens to whole characters, one token at a time.

`DecodeStream` of the tokenizers library does most of it: it holds back what is not a character yet. Three things it
does not. Where tokens are bytes, a character that was whole becomes several wrong ones when bytes follow that are none;
the library then refuses to go on, for good. Here it goes on behind what was said. Bytes that are no character it holds
back as well, and decodes all of them again with each that follows; here there is an end to that. And some decoders take
a space from the beginning of a text; a text that is continued begins with the text before it.
"""

from collections.abc import Sequence

from attrs import define, field
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# A character has so many bytes at most, each of which may be a token.
CHARACTER = 4
# Tokens of the text before that are looked at.
LOOKED_AT = 2 * CHARACTER
WRONG = "\ufffd"
# Of tokens without a text so many are held back; no character has as many.
MOST_UNTOLD = 16


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
            return self._begin_again(len(self._untold))
        if text:
            self._untold.clear()
            return text
        return self._begin_again(self._wrong()) if len(self._untold) == MOST_UNTOLD else ""

    def _wrong(self) -> int:
        """Return how many of the tokens that have not been told are wrong whatever follows.

        Behind them a character may have begun. What is wrong may be told as one for several tokens: it is not cut.
        Decoders that take bytes for wrong because others beside them are would find no character among those to come;
        here there may be one.
        """
        untold = self._untold
        text = self._decoded(untold)
        for count in range(len(untold) - CHARACTER, len(untold) - 2 * CHARACTER, -1):
            if self._decoded(untold[:count]) + self._decoded(untold[count:]) == text:
                return count
        return len(untold)

    def _begin_again(self, count: int) -> str:
        """Return the text of so many tokens that have not been told, and go on behind it."""
        # Any whole character will do for what comes before.
        before: list[int] = self._tokenizer.encode("a", add_special_tokens=False).ids
        self._stream = DecodeStream(ids=before, skip_special_tokens=True)
        told, rest = self._untold[:count], self._untold[count:]
        self._untold = []
        text = self._decoded([*before, *told]).removeprefix(self._decoded(before))
        return text + "".join(map(self.step, rest))

    def _decoded(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text
