"""Calls whose arguments are JSON, behind a name between marks: of Mistral, Kimi, DeepSeek and Hunyuan."""

import re
from typing import Any

from attrs import field, frozen

from .argument_values import json_at, no_call
from .tool_formats import from_json


@frozen
class NamedForm:
    """What stands before the arguments of a call and behind them, as patterns; the group of `head` is the name.

    With `or_json` a list of calls in place of them is JSON.
    """

    head: str
    tail: str = ""
    or_json: bool = False
    _head: re.Pattern[str] = field(init=False)
    _tail: re.Pattern[str] = field(init=False)

    @_head.default
    def _compile_head(self) -> re.Pattern[str]:
        return re.compile(rf"\s*+{self.head}\s*+")

    @_tail.default
    def _compile_tail(self) -> re.Pattern[str]:
        return re.compile(rf"\s*+{self.tail}\s*+")

    def __call__(self, text: str, definitions: list[dict[str, Any]]) -> Any:
        """Return the calls that a text is. Raises ValueError if it is anything else, ValueIsOpen if it goes on."""
        if self.or_json and text.lstrip().startswith("["):
            return from_json(text, definitions)
        calls: list[dict[str, Any]] = []
        place = 0
        while place < len(text):
            head = self._head.match(text, place)
            if head is None:
                raise no_call(text, "no call begins here")
            arguments, end = json_at(text, head.end())
            tail = self._tail.match(text, end)
            if tail is None:
                raise no_call(text, "no call ends here")
            calls.append({"name": head[1], "arguments": arguments})
            place = tail.end()
        return calls


HUNYUAN = NamedForm(head=r"<tool_call>([^\s<]{1,256})\n```json\n", tail=r"```\s*+</tool_call>")
MISTRAL = NamedForm(
    # A further call begins with the mark that began the first; between name and arguments there may be an id.
    head=r"(?:\[TOOL_CALLS\]\s*+)?([^\s\[\]{}]{1,256})\s*+(?:\[CALL_ID\]\w{1,64})?\[ARGS\]",
    or_json=True,
)
KIMI_K2 = NamedForm(
    head=r"<\|tool_call_begin\|>\s*+(?:functions\.)?([^\s<|]{1,256}):\d{1,9}\s*+<\|tool_call_argument_begin\|>",
    tail=r"<\|tool_call_end\|>",
)
DEEPSEEK = NamedForm(
    # Until V3 the name stood behind the word `function`, and the arguments in a fence.
    head=r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?([^\s<]{1,256})(?:<｜tool▁sep｜>|\n```json\n)",  # noqa: RUF001
    tail=r"(?:```\s*+)?<｜tool▁call▁end｜>",  # noqa: RUF001 - as DeepSeek spells them
)
