"""Ollama's generate: what is asked for."""

import json
from typing import Any

import pytest

from osaurus.chat import GenerationRequest, InvalidRequest, Message, Text
from osaurus.dialects.ollama import Call
from osaurus.dialects.ollama_generate import generate_call


def call(**fields: Any) -> Call:
    return generate_call(json.dumps({"model": "m", **fields}).encode())


def asked(**fields: Any) -> GenerationRequest:
    request = call(**fields).request
    assert request is not None
    return request


def test_a_prompt_is_a_users_message() -> None:
    request = asked(prompt="Why?", system="Be brief.", context=[1, 2])
    assert request.messages == (Message("system", "Be brief."), Message("user", "Why?"))
    assert (request.context, request.raw, request.tell_tokens) == ((1, 2), None, True)
    assert request.prompt_field == "prompt"


def test_a_raw_prompt_stands_as_it_is() -> None:
    request = asked(prompt="Why?", raw=True)
    assert (request.messages, request.raw, request.tell_tokens) == ((), Text(text="Why?"), False)


def test_a_suffix_asks_for_what_stands_between() -> None:
    assert asked(prompt="def f(", suffix="return 1").raw == Text(text="def f(", suffix="return 1")


@pytest.mark.parametrize("fields", [{}, {"prompt": ""}, {"prompt": None, "keep_alive": 0}])
def test_without_a_prompt_the_model_is_loaded_or_unloaded(fields: dict[str, Any]) -> None:
    found = call(**fields)
    assert (found.request, found.keep_alive) == (None, fields.get("keep_alive"))


def test_options_are_those_of_a_chat() -> None:
    request = asked(prompt="x", options={"num_predict": 3, "temperature": 0, "stop": "y"}, keep_alive="1m")
    assert (request.max_tokens, request.sampling.temperature, request.stop, request.keep_alive) == (3, 0, ("y",), 60)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "x", "raw": True, "system": "y"}, "system"),
        ({"prompt": "x", "raw": True, "context": [1]}, "context"),
        ({"prompt": "x", "raw": True, "think": True}, "think"),
        ({"prompt": "x", "suffix": "y", "system": "z"}, "system"),
        ({"prompt": "x", "suffix": "y", "context": [1]}, "context"),
        ({"prompt": "x", "images": ["aGk="]}, "images"),
        ({"prompt": "x", "template": "y"}, "template"),
        ({"prompt": "x", "format": "yaml"}, "format"),
        ({"prompt": "x", "options": {"mirostat": 1}}, "options.mirostat"),
        ({"prompt": "x", "context": [-1]}, "context[0]"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "", "options": {"mirostat": 1}}, "options.mirostat"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call(**fields)
    assert caught.value.param == param
