"""Calls whose arguments stand between tags, each as a text: of Qwen, GLM, DeepSeek, MiniMax and others.

The difficulty is that nothing in a value is escaped, so that it may hold the very tags. A tag ends a value only if what
follows is another argument or the end of the call, and if all arguments that began in the value have ended in it. All
of a text must be part of a call: of what is left over nobody knows what it was to mean.
"""

import re
from typing import Any

from attrs import evolve, field, frozen

from .argument_values import ValueIsOpen, argument_types, json_at, no_call, value_of

SPACE = re.compile(r"\s*")
STRING = frozenset({"string"})


@frozen
class TaggedForm:
    """What stands around calls, arguments and their values.

    `call` and `argument` are patterns of what begins them; their group is the name. An argument may say in a group
    `string` whether it is one: `true`, or `string` as its type. `value_end` ends a value, and `call_end` a call; where
    that is empty there is one call in a text. `frame` is what a template puts around values. With `or_json` an object
    in place of a call is JSON.
    """

    call: str
    argument: str
    value_end: str
    call_end: str = ""
    frame: tuple[str, str] = ("", "")
    or_json: bool = False
    _call: re.Pattern[str] = field(init=False)
    _argument: re.Pattern[str] = field(init=False)
    _behind_value: re.Pattern[str] = field(init=False)

    @_call.default
    def _compile_call(self) -> re.Pattern[str]:
        return re.compile(self.call)

    @_argument.default
    def _compile_argument(self) -> re.Pattern[str]:
        return re.compile(self.argument)

    @_behind_value.default
    def _compile_behind_value(self) -> re.Pattern[str]:
        more = rf"{self.call}|\Z" if self.call_end else r"\Z"
        return re.compile(rf"\s*+(?:{self.argument}|{re.escape(self.call_end)}\s*+(?:{more}))")

    def __call__(self, text: str, definitions: list[dict[str, Any]]) -> Any:
        """Return the calls that a text is. Raises ValueError if it is anything else, ValueIsOpen if it goes on."""
        if self.or_json and text.lstrip().startswith("{"):
            said, end = json_at(text, _behind_space(text, 0))
            if _behind_space(text, end) < len(text):
                raise no_call(text, "more than a call")
            return said
        try:
            return self._calls(text, definitions)
        except ValueError as error:
            # Whatever came before, nobody can tell yet.
            if sum(1 for _ in self._argument.finditer(text)) > text.count(self.value_end):
                raise ValueIsOpen("a value does not end") from error
            raise

    def _calls(self, text: str, definitions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        functions = [definition["function"] for definition in definitions]
        schemas = {function["name"]: function.get("parameters") or {} for function in functions}
        calls: list[dict[str, Any]] = []
        place = _behind_space(text, 0)
        while place < len(text):
            head = self._call.match(text, place)
            if head is None or (calls and not self.call_end):
                raise ValueError("no call begins here")
            arguments, place = self._arguments(text, head.end(), schemas.get(head[1], {}))
            if not text.startswith(self.call_end, place):
                raise ValueError("no call ends here")
            place = _behind_space(text, place + len(self.call_end))
            calls.append({"name": head[1], "arguments": arguments})
        return calls

    def _arguments(self, text: str, place: int, parameters: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Return the arguments that stand in a place of a text, and where what follows them begins."""
        arguments: dict[str, Any] = {}
        place = _behind_space(text, place)
        while argument := self._argument.match(text, place):
            end = self._end_of_value(text, argument.end())
            name = argument[1].strip()
            if name in arguments:
                raise ValueError("an argument is given twice")
            value = text[argument.end() : end].removeprefix(self.frame[0]).removesuffix(self.frame[1])
            arguments[name] = value_of(value, _narrowed(argument_types(parameters, name), argument))
            place = _behind_space(text, end + len(self.value_end))
        return arguments, place

    def _end_of_value(self, text: str, start: int) -> int:
        depth, place = 0, start
        while (end := text.find(self.value_end, place)) >= 0:
            depth += sum(1 for _ in self._argument.finditer(text, place, end))
            place = end + len(self.value_end)
            if depth:
                depth -= 1
            elif self._behind_value.match(text, place):
                return end
        raise ValueIsOpen("a value does not end")


def _narrowed(types: frozenset[str], argument: re.Match[str]) -> frozenset[str]:
    """Return the types that a value may have; where the schema leaves it open, what the model says of it counts."""
    said = argument.groupdict().get("string")
    if said is None:
        return types
    return (types & STRING if said in ("true", "string") else types - STRING) or types


def _behind_space(text: str, place: int) -> int:
    space = SPACE.match(text, place)
    assert space is not None
    return space.end()


QWEN3_CODER = TaggedForm(
    call=r"<function=([^>\s]{1,256})>",
    argument=r"<parameter=([^>\n]{1,256})>",
    value_end="</parameter>",
    call_end="</function>",
    frame=("\n", "\n"),
)
SEED_OSS = evolve(QWEN3_CODER, frame=("", ""))
GLM = TaggedForm(
    call=r"([^\s<]{1,256})",
    # Some write the two characters for a new line.
    argument=r"<arg_key>([^<]{1,256})</arg_key>(?:\\n|\s){0,8}<arg_value>",
    value_end="</arg_value>",
    or_json=True,
)
LONGCAT = TaggedForm(
    call=r"([^\s<]{1,256})",
    argument=r"<longcat_arg_key>([^<]{1,256})</longcat_arg_key>(?:\\n|\s){0,8}<longcat_arg_value>",
    value_end="</longcat_arg_value>",
    or_json=True,
)
MINIMAX_M2 = TaggedForm(
    call=r"""<invoke name=["']?([^"'>]{1,256})["']?>""",
    argument=r"""<parameter name=["']?([^"'>]{1,256})["']?>""",
    value_end="</parameter>",
    call_end="</invoke>",
)
DEEPSEEK_V3_2 = TaggedForm(
    call=r"""<｜DSML｜invoke name="([^"]{1,256})">""",  # noqa: RUF001 - as DeepSeek spells it
    argument=r"""<｜DSML｜parameter name="([^"]{1,256})"(?: string="(?P<string>true|false)")?>""",  # noqa: RUF001
    value_end="</｜DSML｜parameter>",  # noqa: RUF001
    call_end="</｜DSML｜invoke>",  # noqa: RUF001
)
KIMI_K3 = TaggedForm(
    call=r"""<\|open\|>call tool="([^"]{1,256})" index="\d{1,9}"<\|sep\|>""",
    argument=r"""<\|open\|>argument key="([^"]{1,256})" type="(?P<string>\w{1,16})"<\|sep\|>""",
    value_end="<|close|>argument<|sep|>",
    call_end="<|close|>call<|sep|>",
)
MUSE = TaggedForm(
    call=r"""<atem:invoke name="([^"]{1,256})">""",
    argument=r"""<atem:parameter name="([^"]{1,256})"[^>]{0,256}>""",
    value_end="</atem:parameter>",
    call_end="</atem:invoke>",
)
MINICPM5 = TaggedForm(
    # The mark that begins a call ends before its name.
    call=r"""["']?([^"'>\s]{1,256})["']?>""",
    argument=r"""<param name=["']?([^"'>]{1,256})["']?>""",
    value_end="</param>",
    frame=("<![CDATA[", "]]>"),
)
