"""What a chat template is given: messages in the form it takes, and tools told in words where it knows none.

What a template can do is found out by trying: it renders a tool, a call and a result that are easy to find again. Names
of models tell nothing, and templates that ignore what they do not know say nothing either.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

from attrs import evolve, frozen

from ..chat import GenerationRequest, JsonFormat, Message, ToolCall, ToolUse
from .tool_formats import GENERIC

# Words that stand in no template.
TOOL, ARGUMENT, RESULT, SYSTEM = "osaurus_tool", "osaurus_argument", "osaurus_result", "osaurus_system"

TOOLS_TOLD = """You can call these tools:
{tools}

To call a tool, write the call as JSON between tags, and nothing else:
{begin}
{{"name": "name of the tool", "arguments": {{"name of an argument": "its value"}}}}
{end}
What the tool answers comes back between <tool_response> tags. Call a tool only where it helps to answer."""

ANY_OBJECT_TOLD = "Answer with one JSON object, and nothing else."
FORMAT_TOLD = "Answer with JSON of this JSON Schema, and nothing else: {schema}"


class ChatTemplate(Protocol):
    """A tokenizer's chat template."""

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool, **variables: Any
    ) -> str:
        """Render the conversation, up to where the assistant is to speak."""


@frozen(kw_only=True)
class TemplateAbilities:
    """What a chat template renders: definitions of tools, calls, their results, system messages.

    Calls have arguments that are objects with some templates, and JSON texts with others.
    """

    definitions: bool = False
    calls: Literal["objects", "texts"] | None = None
    results: bool = False
    system: bool = True

    @classmethod
    def found_in(cls, template: ChatTemplate) -> "TemplateAbilities":
        """Try them out."""
        user = {"role": "user", "content": "?"}
        definition = {
            "type": "function",
            "function": {
                "name": TOOL,
                "description": "?",
                "parameters": {"type": "object", "properties": {ARGUMENT: {"type": "string", "description": "?"}}},
            },
        }

        def rendered(conversation: list[dict[str, Any]], *words: str) -> bool:
            try:
                text = template.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=True, tools=[definition]
                )
            except Exception:  # noqa: BLE001 - a template is a program, and was written for what it knows
                return False
            return all(word in text for word in words)

        def called(arguments: object) -> list[dict[str, Any]]:
            call = {"id": "call00000", "type": "function", "function": {"name": "other", "arguments": arguments}}
            return [user, {"role": "assistant", "content": "", "tool_calls": [call]}]

        value = {"place": ARGUMENT + "_value"}
        # As an object in quotes it would be a text within a text.
        as_objects = rendered(called(value), "other", value["place"])
        as_texts = rendered(called(json.dumps(value)), "other", f'"{value["place"]}"')
        result = {"role": "tool", "tool_call_id": "call00000", "name": "other", "content": RESULT}
        after = called(value) if as_objects else called(json.dumps(value)) if as_texts else [user]
        return cls(
            definitions=rendered([user], TOOL, ARGUMENT),
            calls="objects" if as_objects else "texts" if as_texts else None,
            results=rendered([*after, result], RESULT),
            system=rendered([{"role": "system", "content": SYSTEM}, user], SYSTEM),
        )


def told(request: GenerationRequest, abilities: TemplateAbilities) -> tuple[Message, ...]:
    """Return the messages of a request, with what the template cannot tell of tools and format told in words."""
    words = [
        *([] if request.tools is None or abilities.definitions else [_tools_told(request.tools)]),
        *([] if request.format is None else [_format_told(request.format)]),
    ]
    messages = request.messages
    if not words or not messages:
        return messages
    first = messages[0]
    if first.role == "system" or not abilities.system:
        before = first.content if first.role == "system" else ""
        behind = "" if first.role == "system" else first.content
        content = "\n\n".join(part for part in (before, *words, behind) if part)
        return (evolve(first, content=content), *messages[1:])
    return (Message("system", "\n\n".join(words)), *messages)


def as_given(messages: Sequence[Message], abilities: TemplateAbilities) -> list[dict[str, Any]]:
    """Return messages in the form that a template takes."""
    return list(_given(messages, abilities))


def definitions(tools: ToolUse | None, abilities: TemplateAbilities) -> dict[str, Any]:
    """Return what the template is told of tools, beside the messages."""
    if tools is None or not abilities.definitions:
        return {}
    return {"tools": [json.loads(tool.definition) for tool in tools.tools]}


def _given(messages: Sequence[Message], abilities: TemplateAbilities) -> Iterator[dict[str, Any]]:
    names = {call.id: call.name for message in messages for call in message.calls if call.id}
    results: list[str] = []
    for place, message in enumerate(messages):
        if message.role == "tool":
            if abilities.results:
                name = message.tool_name or names.get(message.call_id, "")
                yield {
                    "role": "tool",
                    "content": message.content,
                    **({"tool_call_id": message.call_id} if message.call_id else {}),
                    **({"name": name} if name else {}),
                }
                continue
            results.append(f"<tool_response>\n{message.content}\n</tool_response>")
            if place + 1 == len(messages) or messages[place + 1].role != "tool":
                # One message for all: many templates want user and assistant to take turns.
                yield {"role": "user", "content": "\n".join(results)}
                results = []
        elif not message.calls:
            yield {"role": message.role, "content": message.content}
        elif abilities.calls is None:
            said = "\n".join(_call_told(call) for call in message.calls)
            yield {"role": message.role, "content": f"{message.content}\n{said}".lstrip("\n")}
        else:
            calls = [_call_given(call, abilities.calls) for call in message.calls]
            yield {"role": message.role, "content": message.content, "tool_calls": calls}


def _call_given(call: ToolCall, form: Literal["objects", "texts"]) -> dict[str, Any]:
    arguments = _object(call) if form == "objects" else call.arguments
    return {
        **({"id": call.id} if call.id else {}),
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _object(call: ToolCall) -> object:
    try:
        return json.loads(call.arguments)
    except ValueError:
        # A call that was cut off comes back as it went out.
        return call.arguments


def _call_told(call: ToolCall) -> str:
    name = json.dumps(call.name, ensure_ascii=False)
    return f'{GENERIC.begin}\n{{"name": {name}, "arguments": {call.arguments}}}\n{GENERIC.end}'


def _tools_told(tools: ToolUse) -> str:
    return TOOLS_TOLD.format(
        tools="\n".join(tool.definition for tool in tools.tools), begin=GENERIC.begin, end=GENERIC.end
    )


def _format_told(wanted: JsonFormat) -> str:
    if json.loads(wanted.schema) == {"type": "object"}:
        return ANY_OBJECT_TOLD
    return FORMAT_TOLD.format(schema=wanted.schema)
