"""What a model thinks before it answers, apart from the answer.

Models that reason write their thoughts between two tags, `<think>` and `</think>` with most of them, then the answer.
Some templates open the tag in the prompt already, so that only its end is ever written. Tags may come in several
tokens, so text that may yet become one is held back. White space around thoughts is nobody's text.
"""

from typing import Literal

from attrs import define, field, frozen

from .marks import doubtful


@frozen
class ThoughtTags:
    """How a model marks its thoughts."""

    begin: str
    end: str


@define
class ThoughtScanner:
    """Tells thoughts from the answer. `inside` says that the prompt has opened the tag."""

    _tags: ThoughtTags
    _inside: bool
    _state: Literal["undecided", "thinking", "between", "answering"] = field(init=False)
    _begun: bool = field(default=False, init=False)
    held: str = field(default="", init=False)
    """What came and is neither thought nor answer yet."""

    @_state.default
    def _first_state(self) -> Literal["undecided", "thinking"]:
        return "thinking" if self._inside else "undecided"

    @property
    def thinking(self) -> bool:
        """Whether what comes next is thought."""
        return self._state == "thinking"

    @property
    def aside(self) -> bool:
        """Whether what comes next is none of the answer."""
        return self.thinking

    def feed(self, text: str) -> tuple[str, str]:
        """Take more text; return what of it is thought, and what is answer."""
        thought, text = "", self.held + text
        self.held = ""
        if self._state == "undecided":
            text = self._decide(text)
        if self._state == "thinking":
            thought, text = self._think(text)
        if self._state == "between":
            text = text.lstrip()
            self._state = "answering" if text else "between"
        return thought, text

    def flush(self) -> tuple[str, str]:
        """Return what was held back, once no more text can come."""
        held, self.held = self.held, ""
        return (held.rstrip(), "") if self.thinking else ("", held)

    def _decide(self, text: str) -> str:
        """See whether an answer begins with a thought; return what is behind the tag."""
        begun = text.lstrip()
        if begun.startswith(self._tags.begin):
            self._state = "thinking"
            return begun[len(self._tags.begin) :]
        if self._tags.begin.startswith(begun):
            self.held = text
            return ""
        self._state = "answering"
        return text

    def _think(self, text: str) -> tuple[str, str]:
        """Return what is thought, and what is behind its end."""
        thought, end, rest = text.partition(self._tags.end)
        if end:
            self._state = "between"
            thought = thought.rstrip()
        else:
            thought = text[: len(text) - doubtful(text, [self._tags.end])].rstrip()
            self.held = text[len(thought) :]
        if not self._begun:
            thought = thought.lstrip()
            self._begun = bool(thought)
            if not self._begun:
                self.held = self.held.lstrip()
        return thought, rest
