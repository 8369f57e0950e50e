"""What of an answer is calls of tools, and what is text.

The difficulty is to say as much as can be said as early as it can: text at once, the name of a call when it is known,
its arguments bit by bit. What a grammar enforces has one form only, down to the spaces, and can be passed on as it
comes. In the forms of other families a call is parsed when it is complete; the mark that ends one may stand in a value
of it, and does not end it then. What looks like the beginning of a mark, or like an answer that is a call without
marks, is held back until it is clear.
"""

import json
import re
from collections.abc import Sequence
from typing import Literal

from attrs import define, field

from ..chat import CallPiece, Tool, ToolCall
from .marks import doubtful
from .tool_formats import MOST_CALLS, MOST_CHARACTERS, ToolFormat, bare_calls_in

# How a call under a grammar begins: its name is a JSON string.
HEAD = re.compile(r'\s*\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')

# The fences around an answer that is a call without marks, and where its name must have been said, in characters.
FENCES = ("```json", "```")
NAME = re.compile(r'"(?:tool_)?name"\s{0,8}:\s{0,8}"((?:[^"\\]|\\.){0,128})"')
NAME_WITHIN = 256

# As many marks that end calls are looked at for the end of one.
MOST_ENDS = 16


@define
class ArgumentsScanner:
    """Finds the end of a JSON object in text that comes bit by bit."""

    _depth: int = 0
    _quoted: bool = False
    _escaped: bool = False
    over: bool = False

    def feed(self, text: str) -> tuple[str, str]:
        """Take more text; return what belongs to the object, and what comes behind it."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.over = True
                    return text[: place + 1], text[place + 1 :]
        return text, ""


@define
class CallScanner:
    """Tells calls from text. `marked` says that all calls stand between marks; there may be `most` of them."""

    _format: ToolFormat
    _tools: Sequence[Tool]
    _marked: bool
    _most: int = MOST_CALLS
    _state: Literal["beginning", "speaking", "calling"] = field(default="beginning", init=False)
    _forms: Sequence[ToolFormat] = field(init=False)
    """The form of the calls, with and without the mark that begins one."""
    _called: ToolFormat = field(init=False)
    _ends: int = field(default=0, init=False)
    _looked: int = field(default=0, init=False)
    _unmarked: bool = field(default=False, init=False)
    _arguments: ArgumentsScanner | None = field(default=None, init=False)
    _pieces: list[CallPiece] = field(factory=list, init=False)
    held: str = field(default="", init=False)
    """What came and is neither text nor call yet."""
    begun: int = field(default=0, init=False)
    """How many calls have been begun, as far as anybody was told."""
    complete: int = field(default=0, init=False)
    """How many of them are complete."""

    @_forms.default
    def _forms_of_calls(self) -> Sequence[ToolFormat]:
        unmarked = self._format.unmarked
        return [self._format] if unmarked is None else [self._format, unmarked]

    @_called.default
    def _first_called(self) -> ToolFormat:
        return self._format

    @property
    def full(self) -> bool:
        """Whether there are as many calls as there may be."""
        return self.complete >= self._most

    @property
    def calling(self) -> bool:
        """Whether what comes next is part of a call."""
        return self._state == "calling"

    def feed(self, text: str) -> tuple[str, tuple[CallPiece, ...]]:
        """Take more text; return what of it is text, and what is calls."""
        said = ""
        rest: str | None = self.held + text
        self.held = ""
        while rest is not None:
            before = self._state
            more, rest = self._call(rest) if self.calling else self._speak(rest)
            said += more
            if rest == "" and self._state == before:
                break
        return said, self._told()

    def flush(self) -> tuple[str, tuple[CallPiece, ...]]:
        """Return what was held back, once no more text can come."""
        held, self.held = self.held, ""
        if self.calling:
            self._state = "speaking"
            if self._arguments is not None:
                # What is cut off was told as far as it went.
                return "", ()
            marked = self._called.whole or self._called.needs_end
            if not marked and self._parsed(self._called.calls_in(held, self._tools) or ()):
                return "", self._told()
            # What looks like calls in it may be part of a value that did not end.
            return self._called.begin + held, ()
        if self._state == "beginning" and self._parsed(bare_calls_in(held, self._tools)):
            return "", self._told()
        return held if held.strip() or not self.complete else "", ()

    def begin_again(self) -> None:
        """Forget what came since a call began; what comes next is its beginning."""
        self.held = ""

    def _told(self) -> tuple[CallPiece, ...]:
        pieces, self._pieces = tuple(self._pieces), []
        return pieces

    def _speak(self, text: str) -> tuple[str, str | None]:
        """Return what is text, and what is to be looked at again; None if nothing is."""
        if self._unmarked:
            # A call that began without its mark may end with one.
            behind, end = text.lstrip(), self._format.end
            if behind != end and end.startswith(behind):
                self.held = text
                return "", None
            self._unmarked = False
            if behind.startswith(end):
                text = behind.removeprefix(end)
        begun = [(place, form) for form in self._forms if (place := text.find(form.begin)) >= 0]
        if begun:
            place, self._called = min(begun, key=lambda one: one[0])
            self._state = "calling"
            self._arguments = None
            self._ends = self._looked = 0
            # White space between calls is nobody's text.
            before = text[:place].rstrip() if self.complete else text[:place]
            return before, text[place + len(self._called.begin) :]
        if self._state == "beginning":
            if not self._marked and self._may_be_bare(text):
                self.held = text
                return "", None
            self._state = "speaking"
        keep = doubtful(text, [form.begin for form in self._forms])
        if self.complete and not text[: len(text) - keep].strip():
            keep = len(text)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def _may_be_bare(self, text: str) -> bool:
        """Whether an answer that begins so may be nothing but a call of a tool that is known."""
        begun = text[: 2 * NAME_WITHIN].lstrip()
        if any(fence.startswith(begun) for fence in FENCES):
            return True
        begun = next((begun.removeprefix(fence) for fence in FENCES if begun.startswith(fence)), begun).lstrip()
        if begun and begun[0] not in "{[":
            return False
        name = NAME.search(begun)
        if name is None:
            return len(begun) < NAME_WITHIN
        return len(text) <= MOST_CHARACTERS and name[1] in (tool.name for tool in self._tools)

    def _call(self, text: str) -> tuple[str, str | None]:
        """Take what is part of a call; return what turned out to be text, and what is behind the call."""
        if self._format.parse is not None:
            return self._call_in_other_form(text)
        if self._arguments is None:
            head = HEAD.match(text)
            if head is None:
                self.held = text
                return "", None
            self._arguments = ArgumentsScanner()
            self._pieces.append(CallPiece(self.begun, name=json.loads(head[1])))
            self.begun += 1
            text = text[head.end() :]
        if not self._arguments.over:
            arguments, text = self._arguments.feed(text)
            if arguments:
                self._pieces.append(CallPiece(self.begun - 1, arguments=arguments, last=self._arguments.over))
            self.complete += self._arguments.over
            if not self._arguments.over:
                return "", None
        _, mark, behind = text.partition(self._format.end)
        if not mark:
            self.held = text
            return "", None
        self._state = "speaking"
        return "", behind

    def _call_in_other_form(self, text: str) -> tuple[str, str | None]:
        called = self._called
        if called.whole and not self._may_be_named(text):
            self._state = "speaking"
            return called.begin, text
        while called.end and (end := text.find(called.end, self._looked)) >= 0:
            inside, behind = text[:end], end + len(called.end)
            calls = called.calls_in(inside, self._tools)
            if calls:
                self._parsed(calls)
                self._state = "speaking"
                self._unmarked = called.whole
                return "", text[behind:]
            self._ends += 1
            if self._ends > MOST_ENDS or len(inside) > MOST_CHARACTERS:
                # Nobody knows where it ends, so what is behind may be part of a value.
                self._forms = ()
            if calls is not None or not self._forms:
                self._state = "speaking"
                return called.begin + text[:behind], text[behind:]
            self._looked = behind
        self._looked = max(self._looked, len(text) - len(called.end) + 1)
        self.held = text
        return "", None

    def _may_be_named(self, text: str) -> bool:
        """Whether a tool that is known is named at the beginning of a text, as far as it has come."""
        heads = [f"{tool.name}>" for tool in self._tools]
        return any(text.startswith(head) or head.startswith(text) for head in heads)

    def _parsed(self, calls: Sequence[ToolCall]) -> bool:
        """Tell of whole calls, as many as there may be; return whether there were any."""
        for call in calls[: self._most - self.begun]:
            last = CallPiece(self.begun, arguments=call.arguments, last=True)
            self._pieces += [CallPiece(self.begun, name=call.name), last]
            self.begun += 1
            self.complete += 1
        return bool(calls)
