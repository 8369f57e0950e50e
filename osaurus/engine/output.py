"""From the tokens of one answer to its text: whole characters only, and nothing of a stop string.

The difficulty is that neither characters nor stop strings respect token boundaries. A byte-level token may hold part
of a character; a stop string may begin in one token and end three later, or begin and turn out not to be one. So text
is held back as long as it may yet become something else: incomplete characters by `TokenDecoder`, and by `StopScanner`
the longest end of the text that is the beginning of a stop string. Stopping on token sequences was rejected: the same
text has many tokenisations.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence

from attrs import define, field
from tokenizers import Tokenizer

from ..chat import CallPiece, Piece, TokenScore
from .decoding import TokenDecoder
from .harmony import HarmonyScanner, Mark
from .marks import doubtful
from .thoughts import ThoughtScanner
from .tool_calls import CallScanner


@define
class StopScanner:
    """Lets text through until one of `stops` appears in it."""

    _stops: tuple[str, ...]
    held: str = field(default="", init=False)

    def feed(self, text: str) -> tuple[str, bool]:
        """Take more text; return what may be said now, and whether a stop string was reached just behind it."""
        text = self.held + text
        found = [(index + len(stop), index) for stop in self._stops if (index := text.find(stop)) >= 0]
        if found:
            self.held = ""
            return text[: min(found)[1]], True
        keep = doubtful(text, self._stops)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """Return what was held back, once no more text can come."""
        held, self.held = self.held, ""
        return held


@define
class TextAssembler:
    """The text of one answer, token by token. `silent` tokens end sequences and have no text.

    Where `thoughts` and `calls` are told from the text, stop strings are looked for in the text alone. `marks` are
    tokens that those are told by, and what they spell even where the tokeniser says nothing. `before` are the tokens
    of a text that goes on.
    The score of a token comes out with the first of its text. Those of a stop string's tokens never do.
    """

    _tokenizer: Tokenizer
    _silent: Collection[int]
    _scanner: StopScanner
    _thoughts: ThoughtScanner | HarmonyScanner | None = None
    calls: CallScanner | None = None
    _marks: Mapping[int, str] = field(factory=dict)
    _before: Sequence[int] = ()
    _decoder: TokenDecoder = field(init=False)
    _decoded: int = field(default=0, init=False)
    _said: int = field(default=0, init=False)
    _scores: deque[tuple[int, TokenScore]] = field(factory=deque, init=False)

    @_decoder.default
    def _make_decoder(self) -> TokenDecoder:
        return TokenDecoder(self._tokenizer, self._before)

    def add(self, token: int, score: TokenScore | None = None) -> tuple[Piece, bool]:
        """Take the next token; return the text it completes (often none), and whether a stop string was reached."""
        if token in self._silent:
            return Piece(""), False
        if score is not None:
            self._scores.append((self._decoded, score))
        text = self._decoder.step(token)
        text = self._marks.get(token) or text
        if not text:
            return Piece(""), False
        self._decoded += len(text)
        of_message = self._marks.get(token)
        if isinstance(of_message, Mark):
            # What was no whole character before it is none behind it.
            text, self._decoder = of_message, TokenDecoder(self._tokenizer)
        thought = ""
        calls: tuple[CallPiece, ...] = ()
        if self._thoughts is not None:
            before = self._thoughts.aside
            thought, text = self._thoughts.feed(text)
            if before or self._thoughts.aside:
                # Scores are of the answer.
                self._scores.clear()
        if self.calls is not None:
            before = self.calls.calling
            text, calls = self.calls.feed(text)
            if before or calls or self.calls.calling:
                # The mark that ends a call is no more of the answer than the call.
                self._scores.clear()
        text, stopped = self._scanner.feed(text)
        self._said = self._said + len(thought) + len(text) if stopped else self._decoded - self._held
        return Piece(text, self._scored(self._said), reasoning=thought, calls=calls), stopped

    @property
    def thinking(self) -> bool:
        """Whether what comes next is thought, not answer."""
        return self._thoughts is not None and self._thoughts.thinking

    def flush(self) -> Piece:
        """Return what was held back, at the end; an incomplete character is dropped."""
        thought, text = self._thoughts.flush() if self._thoughts is not None else ("", "")
        calls: tuple[CallPiece, ...] = ()
        if self.calls is not None:
            text, calls = self.calls.feed(text)
            more, others = self.calls.flush()
            text, calls = text + more, calls + others
        text, stopped = self._scanner.feed(text)
        if not stopped:
            text += self._scanner.flush()
        return Piece(text, self._scored(self._decoded + 1), reasoning=thought, calls=calls)

    @property
    def _held(self) -> int:
        """How many characters came that are not said yet."""
        return sum(len(part.held) for part in (self._scanner, self._thoughts, self.calls) if part is not None)

    def _scored(self, end: int) -> tuple[TokenScore, ...]:
        """Return the scores of the tokens whose text begins before this character."""
        scores = []
        while self._scores and self._scores[0][0] < end:
            scores.append(self._scores.popleft()[1])
        return tuple(scores)
