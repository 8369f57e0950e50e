"""A conversation: what is asked for next, and which texts are whole."""

from typing import Any

import attrs
import pytest

from osaurus.command.conversation import PARAMETERS, BadParameter, Conversation, is_unfinished, unquoted
from osaurus.dialects.ollama import Options


def test_a_request_has_the_system_message_what_was_said_and_what_is_set() -> None:
    conversation = Conversation("tiny", "Be brief.", think=False, keep_alive="1h")
    conversation.set_parameter("temperature", ["0"])
    conversation.heard("hi", "Hello")
    assert conversation.request("bye") == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "bye"},
        ],
        "stream": True,
        "options": {"temperature": 0.0},
        "think": False,
        "keep_alive": "1h",
    }


def test_what_nobody_set_is_left_to_the_server() -> None:
    assert Conversation("tiny").request("hi", stream=False) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": False,
        "options": {},
    }


def test_a_text_without_an_answer_was_not_said() -> None:
    conversation = Conversation("tiny")
    conversation.heard("hi", "")
    assert conversation.turns == []


def test_every_parameter_is_one_that_the_server_knows() -> None:
    assert {field.name for field in attrs.fields(Options)} >= PARAMETERS.keys()


def test_the_text_that_ends_an_answer_may_be_several() -> None:
    conversation = Conversation("tiny")
    conversation.set_parameter("stop", ["a b", "c"])
    assert conversation.options == {"stop": ["a b", "c"]}


@pytest.mark.parametrize(
    ("name", "texts", "said"),
    [
        ("heat", ["1"], "there are temperature"),
        ("temperature", ["warm"], "temperature must be a number, not 'warm'"),
        ("seed", ["1.5"], "seed must be a whole number, not '1.5'"),
        ("seed", [], "seed needs a value"),
        ("seed", ["1", "2"], "seed needs a value"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_with_what_would_do(name: str, texts: list[str], said: str) -> None:
    with pytest.raises(BadParameter, match=said):
        Conversation("tiny").set_parameter(name, texts)


def test_a_format_is_json_or_a_schema() -> None:
    conversation = Conversation("tiny")
    for text, form in (("json", "json"), ('{"type": "integer"}', {"type": "integer"})):
        conversation.set_format(text)
        assert conversation.request("hi")["format"] == form
    for text in ("xml", "[1]", "[" * 100000):
        with pytest.raises(BadParameter, match="A format must be json or a JSON Schema"):
            conversation.set_format(text)


@pytest.mark.parametrize(
    ("text", "unfinished"),
    [
        ("hi", False),
        ('"""', True),
        ('"""hi', True),
        ('"""hi\nthere', True),
        ('"""hi\nthere"""', False),
        ('"""hi""" ', False),
        ('say """', False),
        ('/set system """You', True),
        ('/set system """You\nare"""', False),
    ],
)
def test_three_quotation_marks_begin_and_end_a_text(text: str, unfinished: bool) -> None:
    assert is_unfinished(text) is unfinished


@pytest.mark.parametrize(
    ("text", "plain"),
    [("hi", "hi"), ('"""\na\n b\n"""', "a\n b"), ('"""a"""', "a"), (' "a" ', ' "a" '), ('"""', '"""')],
)
def test_the_marks_around_a_text_are_not_said(text: str, plain: Any) -> None:
    assert unquoted(text) == plain
