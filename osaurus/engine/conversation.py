"""What a chat template is given: messages in the form it takes, and tools told in words where it knows none.

What a template can do is found out by trying: it renders a tool, a call and a result that are easy to find again. Names
of models tell nothing, and templates that ignore what they do not know say nothing either.
"""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
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
What the tool answers is in the next message. Call a tool only where it helps to answer."""

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
    """What a chat template renders: definitions of tools, calls and their results, system messages.

    Calls have arguments that are objects with some templates, and JSON texts with others; `several` may stand in one
    message, or each needs a message of its own, its result behind it. Where there are no calls, `results` may be
    messages of their own nevertheless.
    """

    definitions: bool = False
    calls: Literal["objects", "texts"] | None = None
    several: bool = True
    results: bool = True
    system: bool = True

    @classmethod
    def found_in(cls, template: ChatTemplate) -> "TemplateAbilities":
        """Try them out, in conversations as they are had."""
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

        def had(arguments: object, *names: str) -> list[dict[str, Any]]:
            calls = [
                {"id": _id(name), "type": "function", "function": {"name": name, "arguments": arguments}}
                for name in names
            ]
            results = [{"role": "tool", "tool_call_id": _id(name), "name": name, "content": RESULT} for name in names]
            called = {"role": "assistant", "content": "", "tool_calls": calls}
            return [user, called, *results, {"role": "assistant", "content": "!"}, user]

        in_words = [
            user,
            {"role": "assistant", "content": "!"},
            {"role": "tool", "content": RESULT},
            {"role": "assistant", "content": "!"},
            user,
        ]
        value = {"place": ARGUMENT + "_value"}
        form: Literal["objects", "texts"] | None = None
        # As an object in quotes it would be a text within a text.
        if rendered(had(value, "other"), "other", value["place"], RESULT):
            form = "objects"
        elif rendered(had(json.dumps(value), "other"), "other", f'"{value["place"]}"', RESULT):
            form = "texts"
        arguments = value if form == "objects" else json.dumps(value)
        return cls(
            definitions=rendered([user], TOOL, ARGUMENT),
            calls=form,
            results=form is not None or rendered(in_words, RESULT),
            several=form is None or rendered(had(arguments, "other", "another"), "another", RESULT),
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
    if abilities.calls is None:
        yield from _in_words(messages, results=abilities.results)
        return
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        if not message.calls:
            yield _as_is(message)
            continue
        end = next((at for at in range(place, len(messages)) if messages[at].role != "tool"), len(messages))
        calls = [_call_given(place, number, call, abilities.calls) for number, call in enumerate(message.calls)]
        results = _results(message.calls, calls, messages[place:end])
        place = end
        if abilities.several:
            yield {"role": message.role, "content": message.content, "tool_calls": calls}
            yield from (result for _, result in results)
            continue
        for number, call in enumerate(calls):
            yield {"role": message.role, "content": message.content if number == 0 else "", "tool_calls": [call]}
            yield from (result for of, result in results if of == number or (of is None and call is calls[-1]))


def _as_is(message: Message) -> dict[str, Any]:
    """Return a message without calls; a result whose call is not there keeps what it says of it."""
    given = {"role": message.role, "content": message.content}
    if message.role == "tool":
        given |= {"tool_call_id": _id(message.call_id or message.tool_name)}
        given |= {"name": message.tool_name} if message.tool_name else {}
    return given


def _results(
    made: Sequence[ToolCall], calls: Sequence[dict[str, Any]], results: Sequence[Message]
) -> list[tuple[int | None, dict[str, Any]]]:
    """Return results as they are given, each with the number of its call: by its id, by the tool's name, or in turn."""
    open_calls = list(range(len(made)))
    given: list[tuple[int | None, dict[str, Any]]] = []
    for result in results:
        by_id = [number for number in open_calls if result.call_id and made[number].id == result.call_id]
        by_name = [number for number in open_calls if result.tool_name and made[number].name == result.tool_name]
        in_turn = [] if result.call_id or result.tool_name else open_calls
        of = next(iter(by_id or by_name or in_turn), None)
        if of is None:
            given.append((None, _as_is(result)))
            continue
        open_calls.remove(of)
        named = {"tool_call_id": calls[of]["id"], "name": made[of].name}
        given.append((of, {"role": "tool", "content": result.content, **named}))
    return given


def _in_words(messages: Sequence[Message], *, results: bool) -> Iterator[dict[str, Any]]:
    """Yield messages for a template that knows no calls; if it knows no `results`, those are part of the user's turn.

    One turn for all of them and for what the user says behind: many templates want user and assistant to take turns.
    """
    waiting: list[str] = []
    for place, message in enumerate(messages):
        content = message.content
        if message.role == "tool" and results:
            yield {"role": "tool", "content": content}
            continue
        if message.role == "tool":
            waiting.append(f"<tool_response>\n{content}\n</tool_response>")
            if place + 1 < len(messages) and messages[place + 1].role in ("tool", "user"):
                continue
            content = ""
        elif message.calls:
            content = "\n".join(part for part in (content, *map(_call_told, message.calls)) if part)
        if waiting and message.role in ("tool", "user"):
            content, waiting = "\n".join([*waiting, *([content] if content else [])]), []
        yield {"role": "user" if message.role == "tool" else message.role, "content": content}


def _call_given(place: int, number: int, call: ToolCall, form: Literal["objects", "texts"]) -> dict[str, Any]:
    arguments = _object(call)
    return {
        "id": _id(call.id or f"{place} {number}"),
        "type": "function",
        "function": {
            "name": call.name,
            "arguments": arguments if form == "objects" else json.dumps(arguments, ensure_ascii=False),
        },
    }


def _id(name: str) -> str:
    """Return a call's id of nine letters and digits: other kinds are refused by Mistral's templates."""
    return sha256(name.encode("utf-8", "replace")).hexdigest()[:9]


def _object(call: ToolCall) -> dict[str, Any]:
    """Return a call's arguments. Of a call that was cut off there are none: templates go through them."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


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
