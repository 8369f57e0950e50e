"""Tools and formats in the bodies of both dialects: definitions, what is to be made of them, calls and results."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from attrs import asdict, frozen

from ..chat import JsonFormat, Tool, ToolUse
from .fields import refuse
from .json_size import check_size
from .strict import Items, OneOf

MOST_TOOLS = 128
# Of schemas and arguments.
MOST_DEPTH = 100

ToolName = Annotated[str, Items(1, 128)]
ANY_OBJECT = '{"type": "object"}'


@frozen(kw_only=True)
class Function:
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


@frozen(kw_only=True)
class ToolFields:
    """A tool: there are none but functions."""

    type: Annotated[str, OneOf(("function",))] = "function"
    function: Function


Tools = Annotated[list[ToolFields], Items(0, MOST_TOOLS)]


@frozen(kw_only=True)
class JsonSchemaFields:
    """The schema that an answer is to have."""

    name: Annotated[str, Items(1, 64)]
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool = False


@frozen(kw_only=True)
class ResponseFormat:
    """What an answer is to be."""

    type: Annotated[str, OneOf(("text", "json_object", "json_schema"))]
    json_schema: JsonSchemaFields | None = None


def tool_use(tools: Sequence[ToolFields] | None, choice: object = None, parallel: bool = True) -> ToolUse | None:
    """Return what the model is to make of tools, None if nothing. Raises InvalidRequest naming the field at fault."""
    known = [_tool(index, tool.function) for index, tool in enumerate(tools or ())]
    names = [tool.name for tool in known]
    for index, name in enumerate(names):
        if name in names[:index]:
            refuse(f"tools[{index}].function.name", f"there is another tool named {name!r}")
    required, only = _choice(choice, names)
    if choice == "none" or not known:
        return None
    return ToolUse(tools=tuple(known), required=required, only=only, parallel=parallel)


def response_format(wanted: ResponseFormat | None) -> JsonFormat | None:
    """Return what OpenAI's `response_format` asks for, None for text."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JsonFormat(schema=ANY_OBJECT, strict=False, asked_by="response_format")
    described = wanted.json_schema
    if described is None:
        refuse("response_format.json_schema", "is required")
    if described.schema is None:
        refuse("response_format.json_schema.schema", "is required")
    asked_by = "response_format.json_schema.schema"
    return JsonFormat(schema=as_text(described.schema, asked_by), strict=described.strict, asked_by=asked_by)


def ollama_format(wanted: object) -> JsonFormat | None:
    """Return what Ollama's `format` asks for, None for text."""
    match wanted:
        case None | "":
            return None
        case "json":
            return JsonFormat(schema=ANY_OBJECT, strict=False, asked_by="format")
        case dict():
            return JsonFormat(schema=as_text(wanted, "format"), strict=True, asked_by="format")
    return refuse("format", "must be 'json' or a JSON Schema")


def call_arguments(text: str, at: str) -> str:
    """Return the arguments of a call that was made, as text; none at all are an empty object.

    What is no JSON, as of a call that was cut off, stays as it is. Raises InvalidRequest for what is nested too deeply,
    would take too long to read, or holds what is no character.
    """
    if not text.strip():
        return "{}"
    try:
        check_size(text.encode())
    except ValueError as error:
        refuse(at, str(error))
    try:
        value = json.loads(text)
    except RecursionError:
        refuse(at, "is nested too deeply")
    except ValueError:
        return text
    # The text itself may be plain: escapes are characters only when they are read.
    as_text(value, at)
    return text


def _check_depth(value: object, at: str) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for member in level
            for inner in (member.values() if isinstance(member, dict) else member if isinstance(member, list) else ())
        ]
        if not level:
            return
    refuse(at, f"is nested more than {MOST_DEPTH} levels deep")


def as_text(value: object, at: str) -> str:
    """Return a value as JSON text. Raises InvalidRequest for what cannot be text again, or is too deep."""
    _check_depth(value, at)
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode("utf-8")
    except UnicodeEncodeError:
        refuse(at, "holds half a surrogate pair, which is no character")
    return text


def _tool(index: int, function: Function) -> Tool:
    at = f"tools[{index}].function"
    parameters = function.parameters or {"type": "object", "properties": {}}
    described = {
        name: value for name, value in asdict(function, recurse=False).items() if value is not None and name != "strict"
    }
    return Tool(
        name=function.name,
        definition=as_text({"type": "function", "function": {**described, "parameters": parameters}}, at),
        parameters=as_text(parameters, f"{at}.parameters"),
        strict=function.strict,
        asked_by=f"{at}.parameters",
    )


def _choice(choice: object, names: Sequence[str]) -> tuple[bool, str | None]:
    """Return whether a tool must be called, and which one if only one may be."""
    match choice:
        case None | "none" | "auto":
            return False, None
        case "required":
            if not names:
                refuse("tool_choice", "needs tools")
            return True, None
        case {"type": "function", "function": {"name": str(name)}}:
            if name not in names:
                refuse("tool_choice.function.name", f"there is no such tool among tools: {name[:128]!r}")
            return False, name
    return refuse("tool_choice", 'must be none, auto, required, or {"type": "function", "function": {"name": …}}')
