"""Answers of the OpenAI API have the form that OpenAI publishes.

The schemas are not ours to hand on: OSU_OPENAI_SCHEMAS names a file of JSON Schemas, `{"$defs": {NAME: …}}`, made from
OpenAI's specification.
"""

import json
import os
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import jsonschema
import pytest

from ..server import Server
from .conftest import GET_WEATHER, MODEL, QUESTION, WEATHER

pytestmark = pytest.mark.starter

CHAT = "/v1/chat/completions"
ASK = {"model": MODEL, "messages": QUESTION, "temperature": 0}
COMPLETE = "/v1/completions"
TEXT = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 3}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
TOOLS = {**ASK, "messages": WEATHER, "tools": [GET_WEATHER], "tool_choice": "required", "max_tokens": 60}
FORMAT = {**ASK, "response_format": {"type": "json_object"}, "max_tokens": 30}
SCORES = {"logprobs": True, "top_logprobs": 2}

# What is asked, with None for a GET; which schema the answer, or each event of a stream, keeps to; its status.
# Not a stream of `/completions`: the schema allows no null `finish_reason`, which OpenAI itself sends until the end.
CASES = [
    pytest.param(CHAT, ASK, "CreateChatCompletionResponse", 200, id="an answer"),
    pytest.param(CHAT, {**ASK, **SCORES}, "CreateChatCompletionResponse", 200, id="an answer with log probabilities"),
    pytest.param(CHAT, {**ASK, "max_tokens": 1}, "CreateChatCompletionResponse", 200, id="an answer cut short"),
    pytest.param(CHAT, {**ASK, "stream": True}, "CreateChatCompletionStreamResponse", 200, id="a stream"),
    pytest.param(CHAT, {**ASK, **USAGE}, "CreateChatCompletionStreamResponse", 200, id="a stream with usage"),
    pytest.param(
        CHAT, {**ASK, **USAGE, **SCORES}, "CreateChatCompletionStreamResponse", 200, id="a stream with scores"
    ),
    pytest.param(CHAT, {**ASK, "n": 2, "max_tokens": 2}, "CreateChatCompletionResponse", 200, id="two answers"),
    pytest.param(CHAT, TOOLS, "CreateChatCompletionResponse", 200, id="a call"),
    pytest.param(CHAT, {**TOOLS, **SCORES}, "CreateChatCompletionResponse", 200, id="a call with log probabilities"),
    pytest.param(CHAT, {**TOOLS, **USAGE}, "CreateChatCompletionStreamResponse", 200, id="a call, streamed"),
    pytest.param(
        CHAT, {**TOOLS, **USAGE, "max_tokens": 3}, "CreateChatCompletionStreamResponse", 200, id="a call cut short"
    ),
    pytest.param(CHAT, FORMAT, "CreateChatCompletionResponse", 200, id="an object"),
    pytest.param(CHAT, {**TOOLS, "tool_choice": "never"}, "ErrorResponse", 400, id="a choice that does not exist"),
    pytest.param(COMPLETE, TEXT, "CreateCompletionResponse", 200, id="a completion"),
    pytest.param(COMPLETE, {**TEXT, "logprobs": 2}, "CreateCompletionResponse", 200, id="a completion with scores"),
    pytest.param("/v1/models", None, "ListModelsResponse", 200, id="the models"),
    pytest.param("/v1/models/smollm2-135m-instruct", None, "Model", 200, id="one model"),
    pytest.param("/v1/models/nope", None, "ErrorResponse", 404, id="one model that does not exist"),
    pytest.param(CHAT, {**ASK, "model": "nope"}, "ErrorResponse", 404, id="a model that does not exist"),
    pytest.param(CHAT, {**ASK, "model": "nope", **USAGE}, "ErrorResponse", 404, id="the same, streamed"),
    pytest.param(CHAT, {**ASK, "temperature": 9}, "ErrorResponse", 400, id="a field out of range"),
    pytest.param(CHAT, {"model": MODEL}, "ErrorResponse", 400, id="a field that is missing"),
    pytest.param("/v1/nowhere", None, "ErrorResponse", 404, id="a path that does not exist"),
    pytest.param(CHAT, None, "ErrorResponse", 405, id="a wrong method"),
]


def with_null(schema: Any) -> Any:
    """Say OpenAPI's `nullable` in JSON Schema's words."""
    if isinstance(schema, list):
        return [with_null(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: with_null(entry) for name, entry in schema.items() if name != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain


@pytest.fixture(scope="module")
def schemas() -> Any:
    path = os.environ.get("OSU_OPENAI_SCHEMAS")
    if not path:
        pytest.skip("OSU_OPENAI_SCHEMAS names no file of OpenAI's schemas")
    return with_null(json.loads(Path(path).read_text("utf-8")))


def check(schemas: Any, name: str, answer: Any) -> None:
    jsonschema.Draft202012Validator({**schemas, "$ref": f"#/$defs/{name}"}).validate(answer)


def ask(url: str, body: Any) -> tuple[int, str, str]:
    """Return an answer's status, content type and text."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


@pytest.mark.parametrize(("path", "body", "schema", "status"), CASES)
def test_an_answer_keeps_to_the_published_schema(
    server: Server, schemas: Any, path: str, body: Any, schema: str, status: int
) -> None:
    answered, kind, text = ask(server.url + path, body)
    assert answered == status, text
    if kind.startswith("text/event-stream"):
        events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        assert events.pop() == "[DONE]"
        assert events
    else:
        events = [text]
    for event in events:
        check(schemas, schema, json.loads(event))


@pytest.mark.parametrize("schema", sorted({case.values[2] for case in CASES}))  # type: ignore[type-var]
def test_the_schemas_refuse_what_is_not_an_answer(schemas: Any, schema: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(schemas, schema, {})
