"""Calls apart from text: as early as possible, and the same however the text comes."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osaurus.chat import CallPiece, ToolCall, gathered
from osaurus.engine import pythonic_calls
from osaurus.engine.gemma_calls import FUNCTION_GEMMA
from osaurus.engine.named_calls import MISTRAL
from osaurus.engine.tagged_calls import GLM, QWEN3_CODER
from osaurus.engine.tool_calls import CallScanner
from osaurus.engine.tool_formats import GENERIC, MOST_CHARACTERS, Parser, ToolFormat, from_json

from .doubles import tool

TOOLS = (tool("f", {"type": "object"}), tool("weather", {"type": "object"}))
# A form that no grammar holds.
NATIVE = ToolFormat("[call]", "[/call]", from_json)
TO_THE_END = ToolFormat("[call]", "", from_json)
QWEN = ToolFormat("<tool_call>", "</tool_call>", QWEN3_CODER)


def scan(
    parts: Sequence[str], form: ToolFormat = GENERIC, marked: bool = True
) -> tuple[str, tuple[ToolCall, ...], int]:
    """Return the text, the calls, and how many of these are complete."""
    scanner = CallScanner(form, TOOLS, marked)
    said = ""
    pieces: list[CallPiece] = []
    for part in parts:
        text, calls = scanner.feed(part)
        said += text
        pieces += calls
    text, calls = scanner.flush()
    return said + text, gathered([*pieces, *calls]), scanner.complete


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_a_call_is_no_text() -> None:
    assert scan([call("f", '{"a": 1}')]) == ("", (ToolCall("f", '{"a": 1}'),), 1)


def test_text_around_calls_is_text() -> None:
    assert scan(["Wait. ", call("f", "{}"), "\nDone."]) == ("Wait. \nDone.", (ToolCall("f", "{}"),), 1)


def test_several_calls_follow_each_other() -> None:
    answer = call("f", '{"a": 1}') + "\n" + call("weather", '{"b": [2]}')
    assert scan([answer]) == ("", (ToolCall("f", '{"a": 1}'), ToolCall("weather", '{"b": [2]}')), 2)


def test_a_name_is_told_as_soon_as_it_is_known_and_arguments_as_they_come() -> None:
    scanner = CallScanner(GENERIC, TOOLS, True)
    assert scanner.feed('<tool_call>\n{"name": "wea') == ("", ())
    assert scanner.feed('ther", "arguments": {"pl') == (
        "",
        (CallPiece(0, name="weather"), CallPiece(0, arguments='{"pl')),
    )
    assert scanner.feed('ace": "x}"') == ("", (CallPiece(0, arguments='ace": "x}"'),))
    assert scanner.complete == 0
    assert scanner.feed("}}\n</tool_call>") == ("", (CallPiece(0, arguments="}", last=True),))
    assert (scanner.complete, scanner.calling) == (1, False)


@given(
    arguments=st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers() | st.lists(st.text(max_size=3))),
    before=st.sampled_from(["", "Let me see: ", "a < b <tool", "{x}"]),
    cuts=st.sets(st.integers(1, 200), max_size=12),
)
def test_how_text_is_cut_makes_no_difference(arguments: dict[str, object], before: str, cuts: set[int]) -> None:
    written = json.dumps(arguments, ensure_ascii=False)
    answer = before + call("f", written) + "\n" + call("weather", "{}")
    places = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
    parts = [answer[start:end] for start, end in pairwise(places)]
    assert scan(parts) == (before, (ToolCall("f", written), ToolCall("weather", "{}")), 2)


@given(text=st.text(alphabet='<tool_ca>l/ {}\n`["x', max_size=40), cuts=st.sets(st.integers(1, 40), max_size=5))
def test_of_text_without_calls_nothing_is_lost(text: str, cuts: set[int]) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for marked in (True, False):
        assert scan([text[start:end] for start, end in pairwise(places)], marked=marked) == (text, (), 0)


def test_a_call_that_is_cut_off_was_told_as_far_as_it_went() -> None:
    cut = '<tool_call>\n{"name": "f", "arguments": {"a": "x'
    assert scan([cut]) == ("", (ToolCall("f", '{"a": "x'),), 0)


def test_a_call_that_is_cut_off_before_its_name_goes_out_as_text() -> None:
    assert scan(['<tool_call>\n{"na']) == ('<tool_call>\n{"na', (), 0)


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "f", "arguments": {"a": 1}}',
        '  {"name": "f", "parameters": {"a": 1}}\n',
        '```json\n{"name": "f", "arguments": {"a": 1}}\n```',
        '```\n{"name": "f", "arguments": "{\\"a\\": 1}"}\n```',
        '[{"name": "f", "arguments": {"a": 1}}]',
        '{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}',
    ],
)
def test_an_answer_that_is_nothing_but_a_call_needs_no_marks(answer: str) -> None:
    assert scan(list(answer), marked=False) == ("", (ToolCall("f", '{"a": 1}'),), 1)


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "unknown", "arguments": {}}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": {}} and more',
        '{"result": 42, "of": "something that is no call at all, and is said as it comes, in the end"}',
        "[1, 2, 3]",
        "```python\nprint(1)\n```",
    ],
)
def test_json_that_is_no_call_is_text(answer: str) -> None:
    assert scan(list(answer), marked=False) == (answer, (), 0)


def test_json_that_cannot_become_a_call_is_said_before_it_ends() -> None:
    scanner = CallScanner(GENERIC, TOOLS, False)
    said, _ = scanner.feed('{"name": "somebody", "age')
    assert said
    said, _ = CallScanner(GENERIC, TOOLS, False).feed('{"answer": "' + "x" * 300)
    assert said
    said, _ = CallScanner(GENERIC, TOOLS, False).feed("```python")
    assert said


@pytest.mark.parametrize("marked", [True, False])
def test_there_are_no_more_calls_than_are_wanted(marked: bool) -> None:
    one = '{"name": "f", "arguments": {}}'
    answer = f"[call]{one}[/call][call]{one}[/call]" if marked else f"[{one}, {one}]"
    scanner = CallScanner(NATIVE, TOOLS, marked, 1)
    pieces = [*scanner.feed(answer)[1], *scanner.flush()[1]]
    assert len(gathered(pieces)) == 1
    assert scanner.full


def test_long_runs_of_white_space_are_read_like_any_text() -> None:
    # Quadratic work on this would take minutes.
    answer = '```json\n{"name": "f"' + " " * 100_000 + "x"
    assert scan([answer], marked=False) == (answer, (), 0)


def test_marks_are_text_where_only_marked_calls_count() -> None:
    answer = '{"name": "f", "arguments": {}}'
    assert scan([answer], marked=True) == (answer, (), 0)


def test_a_call_in_another_form_is_told_when_it_is_complete() -> None:
    scanner = CallScanner(NATIVE, TOOLS, True)
    assert scanner.feed('Hm [call]{"name": "f", "argum') == ("Hm ", ())
    assert scanner.feed('ents": {"a": 1}}[/call]') == (
        "",
        (CallPiece(0, name="f"), CallPiece(0, arguments='{"a": 1}', last=True)),
    )


@pytest.mark.parametrize("inside", ["{", '{"name": "unknown", "arguments": {}}', "null", '{"name": 1}'])
def test_what_does_not_parse_goes_out_as_it_is(inside: str) -> None:
    answer = f"Hm [call]{inside}[/call] so"
    assert scan(list(answer), NATIVE) == (answer, (), 0)
    assert scan(list(f"[call]{inside}"), NATIVE) == (f"[call]{inside}", (), 0)


def test_a_call_without_an_end_goes_to_the_end_of_the_answer() -> None:
    answer = '[call]{"name": "f", "arguments": {}}'
    assert scan(list(answer), TO_THE_END) == ("", (ToolCall("f", "{}"),), 1)
    assert scan([answer], NATIVE) == ("", (ToolCall("f", "{}"),), 1)


def in_qwen(value: str, name: str = "f") -> str:
    return f"<function={name}>\n<parameter=x>\n{value}\n</parameter>\n</function>"


def called(value: str, name: str = "f") -> ToolCall:
    return ToolCall(name, json.dumps({"x": value}, ensure_ascii=False))


@pytest.mark.parametrize("before", ["", "I'll look.\n\n", "a < b, <function=unknown> and <function=", "<function=f"])
def test_a_call_of_qwen_may_lack_the_mark_that_begins_it(before: str) -> None:
    for behind in ("", "\n</tool_call>"):
        assert scan(list(before + in_qwen("1") + behind), QWEN) == (before, (called("1"),), 1)
        assert scan([before + in_qwen("1") + behind], QWEN) == (before, (called("1"),), 1)


def test_calls_with_the_mark_and_without_follow_each_other() -> None:
    answer = f"{in_qwen('1')}\n{in_qwen('2')}\n</tool_call>\n<tool_call>\n{in_qwen('3')}\n</tool_call>\nSo."
    assert scan(list(answer), QWEN) == ("\nSo.", (called("1"), called("2"), called("3")), 3)


def test_an_end_without_a_call_before_it_is_text() -> None:
    answer = f"A </tool_call> {in_qwen('1')} or </tool_call>"
    assert scan(list(answer), QWEN) == ("A </tool_call>  or </tool_call>", (called("1"),), 1)


@pytest.mark.parametrize("answer", ["<function=f>", "so <function=f> it", in_qwen("1")[:-3], in_qwen("1", "other")])
def test_what_begins_like_a_call_of_qwen_and_is_none_is_text(answer: str) -> None:
    assert scan(list(answer), QWEN) == (answer, (), 0)


VALUES = st.lists(
    st.sampled_from(["</tool_call>", "<tool_call>", "\n", " ", "</b>", "<", "x", "</function>"]), max_size=8
).map("".join)


@given(value=VALUES, marked=st.booleans(), cuts=st.sets(st.integers(1, 200), max_size=8))
def test_marks_in_a_value_are_part_of_it(value: str, marked: bool, cuts: set[int]) -> None:
    one = in_qwen(value)
    answer = f"So: <tool_call>\n{one}\n</tool_call>" if marked else f"So: {one}\n</tool_call>"
    places = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
    parts = [answer[start:end] for start, end in pairwise(places)]
    assert scan(parts, QWEN) == ("So: ", (called(value),), 1)


def test_marks_in_a_value_of_glm_are_part_of_it() -> None:
    answer = "<tool_call>f<arg_key>x</arg_key><arg_value>a</tool_call>b</arg_value></tool_call>"
    assert scan(list(answer), ToolFormat("<tool_call>", "</tool_call>", GLM)) == ("", (called("a</tool_call>b"),), 1)


def in_json(value: str) -> str:
    return f"[call]{json.dumps([{'name': 'f', 'arguments': {'x': value}}])}[/call]"


def in_python(value: str) -> str:
    return f"[call][f(x={value!r})][/call]"


def by_name(value: str) -> str:
    return f"[call]f[ARGS]{json.dumps({'x': value})}[/call]"


def in_other_form(parse: Parser) -> str:
    """Return what is between the marks of a call."""
    return {
        from_json: '[{"name": "f", "arguments": {"x": "1"}}]',
        pythonic_calls.parse: "[f(x='1')]",
        MISTRAL: 'f[ARGS]{"x": "1"}',
        FUNCTION_GEMMA: "call:f{x:<escape>1<escape>}",
        GLM: "f<arg_key>x</arg_key><arg_value>1</arg_value>",
        QWEN3_CODER: in_qwen("1"),
    }[parse]


def in_gemmas(value: str) -> str:
    return f"[call]call:f{{x:<escape>{value}<escape>}}[/call]"


@pytest.mark.parametrize(
    ("parse", "write"),
    [(from_json, in_json), (pythonic_calls.parse, in_python), (MISTRAL, by_name), (FUNCTION_GEMMA, in_gemmas)],
)
def test_calls_in_a_value_are_part_of_it_in_every_form(parse: Parser, write: Callable[[str], str]) -> None:
    form = ToolFormat("[call]", "[/call]", parse)
    value = f"So it's {write('1')},\n{write('2')} and {write('3')}!".replace("<escape>", "'")
    assert scan(list(write(value)), form) == ("", (called(value),), 1)
    # Where it is cut off, or has too many ends to find its own, nothing in it is a call.
    begun = write(value)[:-12]
    assert scan([begun], form) == (begun, (), 0)
    assert scan([write(value * 8)], form) == (write(value * 8), (), 0)


def test_calls_in_a_value_that_is_too_long_are_part_of_it() -> None:
    answer = in_qwen("x" * MOST_CHARACTERS + f"<tool_call>{in_qwen('1')}</tool_call>")
    assert scan([f"<tool_call>{answer}</tool_call>"], QWEN) == (f"<tool_call>{answer}</tool_call>", (), 0)


@pytest.mark.parametrize("space", ["", "\n"])
def test_a_call_of_glm_that_is_cut_off_is_none(space: str) -> None:
    form = ToolFormat("<tool_call>", "</tool_call>", GLM, needs_end=True)
    one = f"<tool_call>f{space}<arg_key>x</arg_key>{space}<arg_value>1</arg_value>{space}"
    two = f"{one}<arg_key>y</arg_key>{space}<arg_value>2</arg_value>{space}"
    for length in range(len(two)):
        assert scan([two[:length]], form) == (two[:length], (), 0)
    assert scan([two + "</tool_call>"], form) == ("", (ToolCall("f", '{"x": "1", "y": "2"}'),), 1)


def test_what_follows_a_call_that_never_ends_may_be_part_of_a_value_of_it() -> None:
    broken = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</tool_call>"
    answer = f"{broken}\n<tool_call>\n{in_qwen('2', 'weather')}\n</tool_call>"
    assert scan([answer], QWEN) == (answer, (), 0)
    # The end is not looked for without an end.
    assert scan([broken * 100], QWEN) == (broken * 100, (), 0)


@pytest.mark.parametrize(
    ("parse", "refused"),
    [
        (from_json, '[{"name": "unknown", "arguments": {"x": "VALUE"}}]'),
        (from_json, '[{"name": f, "arguments": {"x": "VALUE"}}]'),
        (from_json, '[{"name": "f", "name": "f", "arguments": {"x": "VALUE"}}]'),
        (pythonic_calls.parse, '[unknown(x="VALUE")]'),
        (pythonic_calls.parse, '[f(1 2, x="VALUE")]'),
        (pythonic_calls.parse, '[f(x="VALUE")] # Done'),
        (MISTRAL, 'unknown[ARGS]{"x": "VALUE"}'),
        (MISTRAL, 'f {"x": "VALUE"}'),
        (FUNCTION_GEMMA, "call:unknown{x:<escape>VALUE<escape>}"),
        (GLM, "unknown<arg_key>x</arg_key><arg_value>VALUE</arg_value>"),
        (GLM, "f f<arg_key>x</arg_key><arg_value>VALUE</arg_value>"),
        (QWEN3_CODER, "<function=unknown><parameter=x>VALUE</parameter></function>"),
        (QWEN3_CODER, "f<function=f><parameter=x>VALUE</parameter></function>"),
    ],
)
def test_calls_in_a_value_of_a_call_that_is_refused_are_none(parse: Parser, refused: str) -> None:
    form = ToolFormat("[call]", "[/call]", parse)
    inner = {
        from_json: "[{}]",
        pythonic_calls.parse: "[f()]",
        MISTRAL: "f[ARGS]{}",
        FUNCTION_GEMMA: "call:f{}",
        GLM: "f",
        QWEN3_CODER: "<function=f></function>",
    }[parse]
    answer = f"[call]{refused.replace('VALUE', f'see [/call] [call]{inner}[/call] ok')}[/call]"
    assert scan(list(answer), form) == (answer, (), 0)
    # What comes behind it is.
    again = f"{answer} [call]{in_other_form(parse)}[/call]"
    assert scan(list(again), form) == (f"{answer} ", (called("1"),), 1)
