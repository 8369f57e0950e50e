"""Harmony, the format of OpenAI's open models: an answer is several messages, each on a channel.

A message is a header, the mark `<|message|>`, and what it says; it ends with `<|end|>`, the last of an answer with
`<|return|>`, or with `<|call|>` if it calls a tool. The header names the channel behind `<|channel|>`: `analysis` is
thought, `final` is the answer, and `commentary` what is said on the way to it. With `to=functions.NAME`, in front of
the channel or behind it, the message is the arguments of a call, on whatever channel. The prompt ends with
`<|start|>assistant`, so that the first message begins behind its role. The format is described in docs/format.md of
https://github.com/openai/harmony.

Marks are told by their tokens: text that spells one is text. What is no message of this kind goes out as text, as it
was written, marks included; it is never a call.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from attrs import define, field

from ..chat import CallPiece, Thinking
from ..model_config import HARMONY_MARKS
from .tool_calls import CallScanner
from .tool_formats import ToolFormat, calls_in, from_json

START, CHANNEL, MESSAGE, END = HARMONY_MARKS
CONSTRAIN = "<|constrain|>"
# They end a message, and the answer with it.
LAST = ("<|return|>", "<|call|>")

ROLE = "assistant"
CHANNELS = ("analysis", "commentary", "final")
ANALYSIS, FINAL = f"{CHANNEL}analysis{MESSAGE}", f"{CHANNEL}final{MESSAGE}"
# The header of the answer, where a message stands before it.
ANSWER = f"{START}{ROLE}{FINAL}"

# What is longer is no header, in characters.
MOST_HEADER = 256
# Between two messages that are both thought, or both text.
GAP = "\n\n"

# Its calls are told by tokens, so that it has no marks that are looked for in text; a parser says that no grammar holds
# them.
HARMONY = ToolFormat("", "", from_json)

# The models know `low`, `medium` and `high`.
EFFORTS = {"minimal": "low", "xhigh": "high"}


class Mark(str):
    """A mark that is a token; text that spells one is none."""

    __slots__ = ()


def marks_of(vocabulary: Mapping[str, int]) -> dict[int, str]:
    """Return the marks by their tokens; none if the tokenizer is not made for this format."""
    if not all(mark in vocabulary for mark in HARMONY_MARKS):
        return {}
    return {vocabulary[mark]: Mark(mark) for mark in (*HARMONY_MARKS, CONSTRAIN) if mark in vocabulary}


def end_tokens_of(vocabulary: Mapping[str, int], given: frozenset[int]) -> frozenset[int]:
    """Return the tokens that end an answer: a call does, and a message does not, whatever the configuration says."""
    return (given | {vocabulary[mark] for mark in LAST if mark in vocabulary}) - {vocabulary[END]}


def effort_told(thinking: Thinking | None) -> dict[str, Any]:
    """Return what the template is told of how much to think."""
    if thinking is None or (thinking.wanted and thinking.effort is None):
        return {}
    effort = thinking.effort or "low"
    return {"reasoning_effort": EFFORTS.get(effort, effort)}


def opening(thinking: Thinking | None, *, held: bool, tools: bool) -> str:
    """Return the header that the prompt ends with, none if the model is to write its own.

    A grammar that holds all of the answer begins behind one. And nothing else keeps the model from thinking; but
    behind the header of the answer it would call no tools.
    """
    if held:
        return ANALYSIS if thinking is not None and thinking.wanted else FINAL
    return FINAL if thinking is not None and not thinking.wanted and not tools else ""


@define
class HarmonyCalls(CallScanner):
    """The calls of an answer, a message each, which come whole."""

    def knows(self, recipient: str) -> bool:
        """Whether a message to this recipient calls a tool that was given."""
        return _tool_name(recipient) in {tool.name for tool in self._tools}

    def take(self, recipient: str, arguments: str) -> bool:
        """Take a message to a tool; return whether it is a call."""

        def parsed(text: str, _: object) -> dict[str, Any]:
            return {"name": _tool_name(recipient), "arguments": json.loads(text)}

        return self._parsed(calls_in(arguments, parsed, self._tools))

    def feed(self, text: str) -> tuple[str, tuple[CallPiece, ...]]:
        """Return text, which has no calls in it, and the calls that were taken."""
        return text, self._told()

    def flush(self) -> tuple[str, tuple[CallPiece, ...]]:
        """Return the calls that were taken."""
        return "", self._told()


@define
class Strand:
    """What several messages say, thoughts or text, with a gap between them."""

    _begun: bool = field(default=False, init=False)
    _gap: bool = field(default=False, init=False)
    _untold: str = field(default="", init=False)

    def write(self, text: str) -> None:
        """Go on."""
        if text:
            self._untold += GAP + text if self._gap else text
            self._begun, self._gap = True, False

    def part(self) -> None:
        """End a message."""
        self._gap = self._begun

    def told(self) -> str:
        """Return what was written since the last time."""
        told, self._untold = self._untold, ""
        return told


@define
class HarmonyScanner:
    """Tells thoughts from text, and hands calls to `calls`, if there may be any.

    `inside` says that the prompt has opened a thought. What is fed is text, or a single Mark.
    """

    _calls: HarmonyCalls | None
    _inside: bool
    _state: Literal["undecided", "heading", "thinking", "speaking", "calling"] = field(init=False)
    _header: list[str] = field(factory=list, init=False)
    """The parts of a header, as far as it came; of that of a call until the call is complete."""
    _recipient: str = field(default="", init=False)
    _arguments: str = field(default="", init=False)
    _thoughts: Strand = field(factory=Strand, init=False)
    _text: Strand = field(factory=Strand, init=False)

    @_state.default
    def _first_state(self) -> Literal["undecided", "thinking"]:
        return "thinking" if self._inside else "undecided"

    @property
    def thinking(self) -> bool:
        """Whether what comes next is thought."""
        return self._state == "thinking"

    @property
    def aside(self) -> bool:
        """Whether what comes next is none of the text: a thought, a call, or a header."""
        return self._state not in ("undecided", "speaking")

    @property
    def held(self) -> str:
        """What came and is neither thought nor text yet."""
        return "".join(self._header) + self._arguments

    def feed(self, text: str) -> tuple[str, str]:
        """Take more text, or a mark; return what of it is thought, and what is text."""
        if isinstance(text, Mark):
            self._mark(text)
        else:
            self._go_on(text)
        return self._thoughts.told(), self._text.told()

    def flush(self) -> tuple[str, str]:
        """Return what was held back, once no more text can come. Of a header that was cut off there is nothing."""
        if self._state in ("undecided", "heading") and _cut_off(self._header):
            self._header = []
        self._end()
        return self._thoughts.told(), self._text.told()

    def _mark(self, mark: Mark) -> None:
        heading = self._state in ("undecided", "heading")
        if heading and mark == CHANNEL and mark not in self._marks:
            self._head(mark)
        elif mark in (START, CHANNEL):
            # Where it was not said that a message ends, it ends here.
            self._end()
            self._head(mark)
        elif mark == END:
            self._end()
        elif heading and mark == MESSAGE:
            self._begin()
        elif heading:
            self._head(mark)
        else:
            self._go_on(mark)

    @property
    def _marks(self) -> list[str]:
        return [part for part in self._header if isinstance(part, Mark)]

    def _head(self, mark: Mark) -> None:
        self._header.append(mark)
        self._state = "heading"

    def _go_on(self, text: str) -> None:
        """Take text in the message, or the header, that there is."""
        match self._state:
            case "thinking":
                self._thoughts.write(text)
            case "speaking":
                self._text.write(text)
            case "calling":
                self._arguments += text
            case "undecided" | "heading":
                self._header.append(text)
                if len(self.held) > MOST_HEADER or not (self._marks or _may_be_recipient(self.held)):
                    self._give_up()

    def _begin(self) -> None:
        """See what the message is whose header is complete."""
        read = _read("".join(self._header))
        self._header.append(Mark(MESSAGE))
        if read is None:
            self._give_up()
            return
        channel, self._recipient = read
        if self._recipient and self._calls is not None and self._calls.knows(self._recipient):
            self._state = "calling"
        elif self._recipient:
            self._give_up()
        else:
            self._header = []
            self._state = "thinking" if channel == "analysis" else "speaking"

    def _end(self) -> None:
        """End a message, or what was to become one."""
        called = (
            self._state == "calling" and self._calls is not None and self._calls.take(self._recipient, self._arguments)
        )
        if not called:
            self._give_up()
        self._header, self._arguments = [], ""
        self._thoughts.part()
        self._text.part()
        self._state = "heading"

    def _give_up(self) -> None:
        """Have what is held be text: it is no message. Of a header that is nothing but marks there is none."""
        if len(self._marks) < len(self._header) and self.held.strip():
            self._text.write(self.held)
        self._header, self._arguments = [], ""
        self._state = "speaking"


def _read(header: str) -> tuple[str, str] | None:
    """Return the channel that a header names, and the recipient or nothing; None if it is no header."""
    before, _, behind = header.partition(CHANNEL)
    channel, *words = behind.replace(CONSTRAIN, " ").split() or [""]
    role, *others = before.removeprefix(START).split() or [ROLE]
    if role == ROLE:
        words += others
    elif before.startswith(START):
        return None
    else:
        words += [role, *others]
    recipients = [word.removeprefix("to=") for word in words if word.startswith("to=")]
    # Beside the recipient it may say what the content is: `json`, say.
    if channel not in CHANNELS or len(recipients) > 1 or len(words) - len(recipients) > 1:
        return None
    return channel, next(iter(recipients), "")


def _cut_off(header: list[str]) -> bool:
    """Whether these are the parts of the beginning of a header, and nothing else."""
    words = "".join(" " if isinstance(part, Mark) else part for part in header).split()
    known = (ROLE, *CHANNELS, "to=", "json", "code")
    marked = any(isinstance(part, Mark) for part in header)
    return marked and all(word.startswith("to=") or any(one.startswith(word) for one in known) for word in words)


def _may_be_recipient(text: str) -> bool:
    begun = text.lstrip()
    return begun.startswith("to=") or "to=".startswith(begun)


def _tool_name(recipient: str) -> str:
    return recipient.removeprefix("functions.")
