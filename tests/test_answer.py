"""One answer while it is written."""

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from osaurus.chat import CallPiece, GenerationRequest, JsonFormat, Message, Piece, Tool, ToolUse, gathered
from osaurus.engine.answer import Answer
from osaurus.engine.grammars import Grammars
from osaurus.engine.output import StopScanner, TextAssembler
from osaurus.engine.shape import Shape, Shaper
from osaurus.engine.tagged_calls import QWEN3_CODER
from osaurus.engine.thoughts import ThoughtScanner, ThoughtTags
from osaurus.engine.tool_formats import ToolFormat, from_json

END = 2
WIDE = 10_000
PARAMETERS = {"properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
DEFINITION = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}
TOOL = Tool(
    name="f", definition=json.dumps(DEFINITION), parameters=json.dumps(PARAMETERS), strict=True, asked_by="tools[0]"
)
TEXT = {"properties": {"text": {"type": "string"}}, "required": ["text"]}
WRITE = Tool(
    name="write",
    definition=json.dumps({"type": "function", "function": {"name": "write", "parameters": TEXT}}),
    parameters=json.dumps(TEXT),
    strict=True,
    asked_by="tools[0]",
)
FORMAT = JsonFormat(schema='{"enum": ["yes", "no"]}', strict=True, asked_by="format")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer one of whose tokens ends a thought and begins something else."""
    copy = Tokenizer.from_str(tiny_tokenizer.to_str())
    copy.add_tokens([AddedToken(text) for text in ('</t>"ye', "</t>?", '<tool_call>\n{"name": "f"', "<tool_call>?")])
    return copy


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars.of(tokenizer.to_str(), tokenizer.get_vocab_size(), [END], {})


def begin(tokenizer: Tokenizer, shape: Shape, *, thinking: bool = False, stop: tuple[str, ...] = ()) -> Answer:
    thoughts = ThoughtScanner(ThoughtTags("<t>", "</t>"), True) if thinking else None
    text = TextAssembler(tokenizer, {END}, StopScanner(stop), thoughts, shape.scanner())
    return Answer(text, {END}, shape, lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids), True)


def shape(grammars: Grammars | None, form: ToolFormat | None = None, **fields: Any) -> Shape:
    messages = (Message("user", "x"),)
    request = GenerationRequest(model="m", messages=messages, max_tokens=1, max_tokens_may_shrink=True, **fields)
    return Shaper(grammars, form).shape(request)


def draw(answer: Answer, tokenizer: Tokenizer, *texts: str, room: int = WIDE) -> tuple[Piece, object, int]:
    """Have these drawn, each its tokens; return what is said, how the answer ends, and how many tokens were written."""
    said, end, written = Piece(""), None, 0
    for text in texts:
        for token in tokenizer.encode(text, add_special_tokens=False).ids:
            result = answer.take(token, None, room - written)
            said, end, written = said + result.piece, result.end, written + len(result.tokens)
            if end is not None:
                return said, end, written
    return said, end, written


def test_without_a_shape_every_token_may_come(tokenizer: Tokenizer) -> None:
    answer = begin(tokenizer, Shape(), stop=("b",))
    assert answer.allowed() is None
    assert draw(answer, tokenizer, "a", "b") == (Piece("a"), "stop", 2)


def test_an_end_token_ends_it(tokenizer: Tokenizer) -> None:
    assert begin(tokenizer, Shape()).take(END, None, WIDE).end == "stop"


def test_it_is_cut_where_there_is_no_room(tokenizer: Tokenizer) -> None:
    assert draw(begin(tokenizer, Shape()), tokenizer, "a", "b", room=2) == (Piece("ab"), "length", 2)


def test_it_ends_where_the_grammar_does(tokenizer: Tokenizer, grammars: Grammars) -> None:
    said, end, _ = draw(begin(tokenizer, shape(grammars, format=FORMAT)), tokenizer, '"', "n")
    assert (said.text, end) == ('"no"', "stop")


def test_a_grammar_waits_for_the_end_of_thoughts(tokenizer: Tokenizer, grammars: Grammars) -> None:
    answer = begin(tokenizer, shape(grammars, format=FORMAT), thinking=True)
    assert answer.allowed() is None
    said, end, _ = draw(answer, tokenizer, "Hm.", "<", "/", "t", ">")
    assert (said.reasoning, said.text, end) == ("Hm.", "", None)
    assert answer.allowed() is not None


@pytest.mark.parametrize(("token", "kept"), [('</t>"ye', '"ye'), ("</t>?", "")])
def test_what_comes_with_the_end_of_thoughts_is_kept_if_the_answer_may_begin_so(
    token: str, kept: str, tokenizer: Tokenizer, grammars: Grammars
) -> None:
    answer = begin(tokenizer, shape(grammars, format=FORMAT), thinking=True)
    said, end, _ = draw(answer, tokenizer, token)
    assert (said.text, end) == (kept, None)
    more, end, _ = draw(answer, tokenizer, *(["s"] if kept else ['"', "y"]))
    assert (said.text + more.text, end) == ('"yes"', "stop")


@pytest.mark.parametrize("begun", ["<tool_call>", '<tool_call>\n{"name": "f"', "<tool_call>?", "<tool_call>\n"])
def test_a_call_is_held_from_its_mark_on(begun: str, tokenizer: Tokenizer, grammars: Grammars) -> None:
    answer = begin(tokenizer, shape(grammars, tools=ToolUse(tools=(TOOL,), parallel=False)))
    said, end, _ = draw(answer, tokenizer, "So: ", begun)
    pieces = list(said.calls)
    while end is None:
        mask = answer.allowed()
        assert mask is not None
        result = answer.take(int(mask.nonzero()[0][0]), None, WIDE)
        pieces += result.piece.calls
        end = result.end
    [call] = gathered(pieces)
    assert (call.name, end, said.text) == ("f", "tool_calls", "So: ")
    assert json.loads(call.arguments)["a"] in (1, 2)


def test_behind_a_call_the_answer_is_free_again(tokenizer: Tokenizer, grammars: Grammars) -> None:
    answer = begin(tokenizer, shape(grammars, tools=ToolUse(tools=(TOOL,))))
    said, _, _ = draw(answer, tokenizer, "<tool_call>")
    while (mask := answer.allowed()) is not None:
        said += answer.take(int(mask.nonzero()[0][0]), None, WIDE).piece
    more, end, _ = draw(answer, tokenizer, "Done", "<|im_end|>")
    assert ((said + more).text, end) == ("Done", "tool_calls")
    assert len(gathered((said + more).calls)) == 1


def test_a_call_in_a_form_of_its_own_is_parsed(tokenizer: Tokenizer) -> None:
    form = ToolFormat("[call]", "[/call]", from_json)
    answer = begin(tokenizer, shape(None, form, tools=ToolUse(tools=(TOOL,))))
    said, end, _ = draw(answer, tokenizer, '[call]{"name": "f", "arguments": {"a": 1}}[/call]', "<|im_end|>")
    assert (said.text, [call.name for call in gathered(said.calls)], end) == ("", ["f"], "tool_calls")


@pytest.mark.parametrize(("room", "reason"), [(0, "length"), (1, "stop")])
def test_where_an_answer_ends_within_a_value_nothing_in_it_is_a_call(
    room: int, reason: str, tokenizer: Tokenizer
) -> None:
    answer = begin(tokenizer, shape(None, ToolFormat("[call]", "[/call]", QWEN3_CODER), tools=ToolUse(tools=(TOOL,))))
    text = "[call]<function=f><parameter=a>[/call][call]<function=f><parameter=a>1</parameter></function>[/call]"
    room += len(tokenizer.encode(text, add_special_tokens=False).ids)
    said, end, _ = draw(answer, tokenizer, text, "<|im_end|>", room=room)
    assert (said.text, gathered(said.calls), end) == (text, (), reason)


def test_a_cut_off_call_is_no_reason_to_say_there_was_one(tokenizer: Tokenizer, grammars: Grammars) -> None:
    answer = begin(tokenizer, shape(grammars, tools=ToolUse(tools=(TOOL,), only="f")))
    _, end, written = draw(answer, tokenizer, "<", room=5)
    assert (end, written) == ("length", 5)


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (ToolUse(tools=(WRITE,)), "length"),
        (ToolUse(tools=(WRITE,), parallel=False), "length"),
        # Here the client's limit is part of what it asked for, as with a format.
        (ToolUse(tools=(WRITE,), required=True), "tool_calls"),
    ],
    ids=("many", "one", "must"),
)
def test_a_call_of_the_models_own_that_was_closed_in_time_is_json_but_not_whole(
    use: ToolUse, reason: str, tokenizer: Tokenizer, grammars: Grammars
) -> None:
    answer, room = begin(tokenizer, shape(grammars, tools=use)), 100
    drawn = tokenizer.encode("a" if use.required else "<tool_call>a", add_special_tokens=False).ids
    pieces, end = list[CallPiece](), None
    while end is None:
        token = drawn.pop(0) if len(drawn) > 1 else drawn[0]
        mask = answer.allowed()
        if mask is not None and not mask[token]:
            token = int(mask.nonzero()[0][0])
        result = answer.take(token, None, room)
        room, end = room - len(result.tokens), result.end
        pieces += result.piece.calls
    [call] = gathered(pieces)
    assert (set(json.loads(call.arguments)["text"]), end) == ({"a"}, reason)
