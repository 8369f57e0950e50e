"""What an answer must be, from what is asked for and what the model can do."""

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from osaurus.chat import GenerationRequest, InvalidRequest, JsonFormat, Message, Tool, ToolUse
from osaurus.engine.closing import allowed
from osaurus.engine.grammars import Grammar, Grammars
from osaurus.engine.shape import Shape, Shaper
from osaurus.engine.tagged_calls import GLM
from osaurus.engine.tool_formats import GENERIC, ToolFormat, from_json

END = 2
FORMAT = JsonFormat(schema='{"type": "object"}', strict=False, asked_by="format")
NATIVE = ToolFormat("[call]", "[/call]", from_json)
MARKED = ToolFormat("<call>", "</call>")


def tool(name: str, parameters: str = '{"properties": {"a": {"const": 1}}, "required": ["a"]}') -> Tool:
    definition = json.dumps({"type": "function", "function": {"name": name}})
    return Tool(name=name, definition=definition, parameters=parameters, strict=False, asked_by=f"tools[0].{name}")


USE = ToolUse(tools=(tool("f"), tool('g "quoted" \\ \n é')))


def ask(**fields: Any) -> GenerationRequest:
    messages = (Message("user", "x"),)
    return GenerationRequest(model="m", messages=messages, max_tokens=1, max_tokens_may_shrink=True, **fields)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer with marks of calls that have no text."""
    copy = Tokenizer.from_str(tiny_tokenizer.to_str())
    copy.add_tokens([AddedToken("<call>", special=True), AddedToken("</call>", special=True)])
    return copy


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    marks = {mark: tokenizer.get_vocab()[mark] for mark in ("<call>", "</call>")}
    return Grammars.of(tokenizer.to_str(), tokenizer.get_vocab_size(), [END], marks)


def takes(grammar: Grammar | None, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text is all that a grammar wants."""
    assert grammar is not None
    matcher = grammar.begin()
    return bool(matcher.consume_tokens(tokenizer.encode(text, add_special_tokens=False).ids) and matcher.is_accepting())


def test_nothing_asked_nothing_held(grammars: Grammars) -> None:
    shape = Shaper(grammars, None).shape(ask())
    assert shape == Shape()
    assert shape.scanner() is None


def test_a_format_holds_the_whole_answer(grammars: Grammars, tokenizer: Tokenizer) -> None:
    shape = Shaper(grammars, None).shape(ask(format=FORMAT))
    assert takes(shape.grammar, tokenizer, '{"a": [1, {"b": null}]}')
    assert not takes(shape.grammar, tokenizer, "[]")


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def test_calls_that_must_be_hold_the_whole_answer(grammars: Grammars, tokenizer: Tokenizer) -> None:
    several = Shaper(grammars, None).shape(ask(tools=ToolUse(tools=USE.tools, required=True))).grammar
    assert takes(several, tokenizer, CALL)
    assert takes(several, tokenizer, f"{CALL}\n{CALL}")
    assert not takes(several, tokenizer, "Hello")
    one = Shaper(grammars, None).shape(ask(tools=ToolUse(tools=USE.tools, required=True, parallel=False))).grammar
    assert not takes(one, tokenizer, f"{CALL}\n{CALL}")
    only = Shaper(grammars, None).shape(ask(tools=ToolUse(tools=USE.tools, only=USE.tools[1].name))).grammar
    name = json.dumps(USE.tools[1].name, ensure_ascii=False)
    assert not takes(only, tokenizer, CALL)
    assert takes(only, tokenizer, CALL.replace('"f"', name))


def test_calls_that_may_be_are_held_from_their_mark_on(grammars: Grammars, tokenizer: Tokenizer) -> None:
    shape = Shaper(grammars, None).shape(ask(tools=USE))
    assert shape.grammar is None
    for gap in ("", "\n", " \n"):
        assert takes(shape.call_grammar, tokenizer, gap + CALL.removeprefix("<tool_call>").strip())
    assert not takes(shape.call_grammar, tokenizer, '\n{"name": "h", "arguments": {}}\n</tool_call>')


def test_a_mark_that_is_a_token_without_text_is_that_token(grammars: Grammars, tokenizer: Tokenizer) -> None:
    shape = Shaper(grammars, MARKED).shape(ask(tools=ToolUse(tools=USE.tools, required=True)))
    assert shape.grammar is not None
    first = [int(token) for token in allowed(shape.grammar.begin()).nonzero()[0]]
    assert first == [tokenizer.token_to_id("<call>")]
    assert takes(shape.grammar, tokenizer, CALL.replace("tool_call>", "call>"))


def test_another_form_is_parsed_where_calls_may_be_and_replaced_where_they_must(grammars: Grammars) -> None:
    shaper = Shaper(grammars, NATIVE)
    free = shaper.shape(ask(tools=USE))
    assert (free.format, free.grammar, free.call_grammar) == (NATIVE, None, None)
    forced = shaper.shape(ask(tools=ToolUse(tools=USE.tools, required=True)))
    assert forced.format is GENERIC
    assert forced.grammar is not None


@pytest.mark.parametrize(
    ("form", "understood"), [(None, True), (MARKED, True), (NATIVE, True), (ToolFormat("[call]", "", GLM), False)]
)
def test_calls_that_are_json_may_lack_their_marks(
    form: ToolFormat | None, understood: bool, grammars: Grammars
) -> None:
    scanner = Shaper(grammars, form).shape(ask(tools=USE)).scanner()
    assert scanner is not None
    scanner.feed('{"name": "f", "arguments": {"a": 1}}')
    assert bool(scanner.flush()[1]) == understood


def test_who_is_told_of_tools_in_words_calls_as_told(grammars: Grammars) -> None:
    for form in (NATIVE, MARKED):
        for use in (USE, ToolUse(tools=USE.tools, required=True)):
            assert Shaper(grammars, form).shape(ask(tools=use), in_words=True).format is GENERIC


def test_either_a_call_or_json_where_both_are_asked_for(grammars: Grammars, tokenizer: Tokenizer) -> None:
    shape = Shaper(grammars, NATIVE).shape(ask(tools=USE, format=FORMAT))
    assert takes(shape.grammar, tokenizer, CALL)
    assert takes(shape.grammar, tokenizer, '{"a": 1}')


def test_without_grammars_calls_are_parsed_and_what_must_be_is_refused() -> None:
    shaper = Shaper(None, None)
    shape = shaper.shape(ask(tools=USE))
    assert (shape.format.begin, shape.format.parse, shape.call_grammar) == (GENERIC.begin, from_json, None)
    for fields in ({"format": FORMAT}, {"tools": ToolUse(tools=USE.tools, required=True)}):
        with pytest.raises(InvalidRequest):
            shaper.shape(ask(**fields))


@pytest.mark.parametrize("choice", [{}, {"required": True}, {"only": "bad"}])
def test_the_tool_whose_schema_is_wrong_is_named(grammars: Grammars, choice: dict[str, Any]) -> None:
    bad = tool("bad", '{"type": "object", "properties": {"a": {"$ref": "#/strange"}}}')
    use = ToolUse(tools=(tool("f"), bad), **choice)
    with pytest.raises(InvalidRequest) as caught:
        Shaper(grammars, None).shape(ask(tools=use))
    assert caught.value.param == "tools[0].bad"
    assert "strange" in caught.value.message


def test_a_tool_takes_an_object(grammars: Grammars) -> None:
    with pytest.raises(InvalidRequest, match="object"):
        Shaper(grammars, None).shape(ask(tools=ToolUse(tools=(tool("f", '{"type": "string"}'),))))


def test_references_are_to_the_tools_own_schema(grammars: Grammars, tokenizer: Tokenizer) -> None:
    def referring(name: str, value: int) -> Tool:
        schema = {"properties": {"a": {"$ref": "#/$defs/x"}}, "required": ["a"], "$defs": {"x": {"const": value}}}
        return tool(name, json.dumps(schema))

    use = ToolUse(tools=(referring("f", 1), referring("g", 2)), required=True)
    grammar = Shaper(grammars, None).shape(ask(tools=use)).grammar
    assert takes(grammar, tokenizer, CALL)
    assert not takes(grammar, tokenizer, CALL.replace('"f"', '"g"'))
    assert takes(grammar, tokenizer, CALL.replace('"f"', '"g"').replace("1", "2"))
