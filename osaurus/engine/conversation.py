"""What a chat template is given: messages in the form it takes, and tools told in words where it knows none.

What a template can do is found out by trying: it renders a tool, a call and a result that are easy to find again. Names
of models tell nothing, and templates that ignore what they do not know say nothing either.
"""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any, Literal, Protocol

from attrs import evolve, frozen

from ..chat import ApiError, GenerationRequest, JsonFormat, Message, ToolCall, ToolUse
from .tool_formats import GENERIC, ToolFormat

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
        """Render the conversation, up to where the assistant is to speak.

        Raises whatever a template raises, of ApiErrors only those that end the request: TemplateStopped, say.
        """


@frozen(kw_only=True)
class TemplateAbilities:
    """What a chat template renders: definitions of tools, calls and their results, system messages.

    Calls have arguments that are objects with some templates, and JSON texts with others; `several` may stand in one
    message, or each needs a message of its own, its result behind it. There are none where there are no definitions:
    a model that is told in words how to call is shown its calls in the same words. `results` may be messages of their
    own nevertheless. gpt-oss has no place for `thoughts_beside` what is said with a call. Kimi's templates name a tool
    by the id of the call alone, so that there must be `named_ids`. With DeepSeek's V3.2 tools are part of what the
    system says: without it there are none, so that it `needs_system`.
    """

    definitions: bool = False
    calls: Literal["objects", "texts"] | None = None
    several: bool = True
    results: bool = True
    system: bool = True
    thoughts_beside: bool = True
    named_ids: bool = False
    needs_system: bool = False

    @property
    def in_words(self) -> "TemplateAbilities":
        """What it can be relied on for where it does not take the tools that there are."""
        return evolve(self, definitions=False, calls=None, several=True, results=False, needs_system=False)

    @classmethod
    def found_in(cls, template: ChatTemplate) -> "TemplateAbilities":
        """Try them out, in conversations as they are had. Raises the ApiErrors that the template does."""
        user = {"role": "user", "content": "?"}
        definition = {
            "type": "function",
            "function": {
                "name": TOOL,
                "description": "?",
                "parameters": {"type": "object", "properties": {ARGUMENT: {"type": "string", "description": "?"}}},
            },
        }

        def rendered(conversation: list[dict[str, Any]], *words: str, **variables: Any) -> bool:
            variables = {"tools": [definition], **variables}
            try:
                text = template.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=True, **variables
                )
            except ApiError:
                raise
            except Exception:  # noqa: BLE001 - a template is a program, and was written for what it knows
                return False
            return all(word in text for word in words)

        def had(arguments: object, *names: str, named: bool, beside: dict[str, str] | None = None) -> list[Any]:
            ids = {name: _named_id(name, number) if named else _id(name) for number, name in enumerate(names)}
            calls = [
                {"id": ids[name], "type": "function", "function": {"name": name, "arguments": arguments}}
                for name in names
            ]
            results = [{"role": "tool", "tool_call_id": ids[name], "name": name, "content": RESULT} for name in names]
            called = {"role": "assistant", "content": "", "tool_calls": calls, **(beside or {})}
            return [user, called, *results, {"role": "assistant", "content": "!"}, user]

        in_words = [
            user,
            {"role": "assistant", "content": "!"},
            {"role": "tool", "content": RESULT},
            {"role": "assistant", "content": "!"},
            user,
        ]
        ruled = [{"role": "system", "content": SYSTEM}, user]
        value = {"place": ARGUMENT + "_value"}
        form: Literal["objects", "texts"] | None = None
        alone = rendered([user], TOOL, ARGUMENT)
        tells = alone or rendered(ruled, TOOL, ARGUMENT)
        named = False
        for named in (False, True) if tells else ():
            as_text = had(json.dumps(value), "other", named=named)
            if rendered(had(value, "other", named=named), "other", value["place"], RESULT):
                form = "objects"
            # In quotes it would be a text within a text.
            elif rendered(as_text, "other", value["place"], RESULT) and not rendered(as_text, f'\\"{value["place"]}'):
                form = "texts"
            if form is not None:
                break
        arguments = value if form == "objects" else json.dumps(value)
        both = {"content": "!", **_thoughts("?")}
        return cls(
            definitions=tells,
            calls=form,
            results=form is not None or rendered(in_words, RESULT),
            several=form is None or rendered(had(arguments, "other", "another", named=named), "another", RESULT),
            system=rendered(ruled, SYSTEM) or rendered(ruled, SYSTEM, tools=None),
            thoughts_beside=form is None or rendered(had(arguments, "other", named=named, beside=both)),
            named_ids=form is not None and named,
            needs_system=tells and not alone,
        )


def told(request: GenerationRequest, abilities: TemplateAbilities) -> tuple[Message, ...]:
    """Return the messages of a request, with what the template cannot tell of tools and format told in words.

    These and the system messages at the beginning are one message: many templates take no second.
    """
    words = [
        *([] if request.tools is None or abilities.definitions else [_tools_told(request.tools)]),
        *([] if request.format is None else [_format_told(request.format)]),
        *([""] if request.tools is not None and abilities.needs_system else []),
    ]
    messages = request.messages
    leading = next((place for place, message in enumerate(messages) if message.role != "system"), len(messages))
    parts = [*(message.content for message in messages[:leading]), *words]
    if not messages or not parts:
        return messages
    return (Message("system", "\n\n".join(filter(None, parts))), *messages[leading:])


def as_given(
    messages: Sequence[Message], abilities: TemplateAbilities, form: ToolFormat = GENERIC
) -> list[dict[str, Any]]:
    """Return messages in the form that a template takes. If it knows no system, what that says is the user's.

    `form` is that of calls, for a template that renders none.
    """
    given = list(_given(messages, abilities, form))
    if abilities.system:
        return given
    said = [{**message, "role": "user"} if message["role"] == "system" else message for message in given]
    joined = 2 if [message["role"] for message in given[:2]] == ["system", "user"] else 0
    return in_turns(said[:joined]) + said[joined:]


def in_turns(conversation: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation for a template that wants speakers to take turns, and the system to speak first only.

    Neighbours of one role become one message, those of the system further on the user's. Calls and results stay.
    """
    turns: list[dict[str, Any]] = []
    for message in conversation:
        before = turns[-1] if turns else {}
        role = "user" if turns and message["role"] == "system" else message["role"]
        both = before | message
        if role != before.get("role") or "tool_calls" in both or "tool_call_id" in both:
            turns.append({**message, "role": role})
            continue
        texts = {name: [turn[name] for turn in (before, message) if turn.get(name)] for name in both if name != "role"}
        turns[-1] = {"role": role, **{name: "\n\n".join(found) for name, found in texts.items()}}
    return turns


def definitions(tools: ToolUse | None, abilities: TemplateAbilities) -> dict[str, Any]:
    """Return what the template is told of tools, beside the messages."""
    if tools is None or not abilities.definitions:
        return {}
    functions = [json.loads(tool.definition)["function"] for tool in tools.tools]
    return {"tools": [{"type": "function", "function": _described(function)} for function in functions]}


def _described(function: dict[str, Any]) -> dict[str, Any]:
    """Return a function with what some templates do not do without: Hermes', gpt-oss', Seed's."""
    parameters = function.get("parameters") or {"type": "object"}
    if "properties" not in parameters:
        parameters = {**parameters, "properties": {}}
    return {"name": function["name"], "description": "", **function, "parameters": parameters}


def _given(messages: Sequence[Message], abilities: TemplateAbilities, form: ToolFormat) -> Iterator[dict[str, Any]]:
    if abilities.calls is None:
        yield from _in_words(messages, form, results=abilities.results)
        return
    before = 0
    for place, (message, results) in enumerate(_with_results(messages)):
        if not message.calls:
            yield _as_is(message)
            continue
        calls = [
            _call_given(
                _named_id(call.name, before + number) if abilities.named_ids else _id(call.id or f"{place} {number}"),
                call,
                abilities.calls,
            )
            for number, call in enumerate(message.calls)
        ]
        before += len(calls)
        given = [(of, _as_is(result) if of is None else _result_given(result, calls[of])) for of, result in results]
        said = {"content": message.content, **_thoughts(message.reasoning)}
        if message.content and message.reasoning and not abilities.thoughts_beside:
            said = {"content": f"{message.reasoning}\n\n{message.content}"}
        if abilities.several:
            yield {"role": message.role, **said, "tool_calls": calls}
            yield from (result for _, result in given)
            continue
        for number, call in enumerate(calls):
            yield {"role": message.role, **(said if number == 0 else {"content": ""}), "tool_calls": [call]}
            yield from (result for of, result in given if of == number or (of is None and call is calls[-1]))


def _with_results(messages: Sequence[Message]) -> Iterator[tuple[Message, list[tuple[int | None, Message]]]]:
    """Yield messages, those with calls together with their results, each with the number of its call, in this order.

    Most templates render no ids, so that models count. What belongs to no call is last.
    """
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        end = place
        while message.calls and end < len(messages) and messages[end].role == "tool":
            end += 1
        found = _paired(message.calls, messages[place:end])
        yield message, sorted(found, key=lambda pair: len(message.calls) if pair[0] is None else pair[0])
        place = end


def _paired(calls: Sequence[ToolCall], results: Sequence[Message]) -> list[tuple[int | None, Message]]:
    """Return results, each with the number of its call: by its id, by the tool's name, or in turn."""
    open_calls = list(range(len(calls)))
    paired: list[tuple[int | None, Message]] = []
    for result in results:
        by_id = [number for number in open_calls if result.call_id and calls[number].id == result.call_id]
        by_name = [number for number in open_calls if result.tool_name and calls[number].name == result.tool_name]
        in_turn = [] if result.call_id or result.tool_name else open_calls
        of = next(iter(by_id or by_name or in_turn), None)
        if of is not None:
            open_calls.remove(of)
        paired.append((of, result))
    return paired


def _thoughts(reasoning: str) -> dict[str, str]:
    """Return what was thought under each name that templates know it by: most's, gpt-oss', Solar's."""
    return dict.fromkeys(("reasoning_content", "thinking", "reasoning"), reasoning) if reasoning else {}


def _as_is(message: Message) -> dict[str, Any]:
    """Return a message without calls; a result whose call is not there keeps what it says of it."""
    given = {"role": message.role, "content": message.content, **_thoughts(message.reasoning)}
    if message.role == "tool":
        given |= {"tool_call_id": _id(message.call_id or message.tool_name)}
        given |= {"name": message.tool_name} if message.tool_name else {}
    return given


def _result_given(result: Message, call: dict[str, Any]) -> dict[str, Any]:
    return {
        "role": "tool",
        "content": result.content,
        "tool_call_id": call["id"],
        "name": call["function"]["name"],
    }


def _in_words(messages: Sequence[Message], form: ToolFormat, *, results: bool) -> Iterator[dict[str, Any]]:
    """Yield messages for a template that knows no calls; if it knows no `results`, those are part of the user's turn.

    One turn for all of them and for what the user says behind: many templates want user and assistant to take turns.
    """
    waiting: list[str] = []
    messages = [
        said for message, found in _with_results(messages) for said in (message, *(result for _, result in found))
    ]
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
            content = "\n".join(part for part in (content, _calls_told(message.calls, form)) if part)
        if waiting and message.role in ("tool", "user"):
            content, waiting = "\n".join([*waiting, *([content] if content else [])]), []
        role = "user" if message.role == "tool" else message.role
        yield {"role": role, "content": content, **_thoughts(message.reasoning)}


def _call_given(name: str, call: ToolCall, form: Literal["objects", "texts"]) -> dict[str, Any]:
    arguments = _object(call)
    return {
        "id": name,
        "type": "function",
        "function": {
            "name": call.name,
            "arguments": arguments if form == "objects" else json.dumps(arguments, ensure_ascii=False),
        },
    }


def _id(name: str) -> str:
    """Return a call's id of nine letters and digits: other kinds are refused by Mistral's templates."""
    return sha256(name.encode("utf-8", "replace")).hexdigest()[:9]


def _named_id(name: str, number: int) -> str:
    """Return the id of a call that has so many before it, as Kimi writes it."""
    return f"functions.{name}:{number}"


def _object(call: ToolCall) -> dict[str, Any]:
    """Return a call's arguments. Of a call that was cut off there are none: templates go through them."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _calls_told(calls: Sequence[ToolCall], form: ToolFormat) -> str:
    if form.write is not None:
        return form.begin + form.write([(call.name, _object(call)) for call in calls]) + form.end
    return "\n".join(
        f'{GENERIC.begin}\n{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}\n'
        f"{GENERIC.end}"
        for call in calls
    )


def _tools_told(tools: ToolUse) -> str:
    return TOOLS_TOLD.format(
        tools="\n".join(tool.definition for tool in tools.tools), begin=GENERIC.begin, end=GENERIC.end
    )


def _format_told(wanted: JsonFormat) -> str:
    if json.loads(wanted.schema) == {"type": "object"}:
        return ANY_OBJECT_TOLD
    return FORMAT_TOLD.format(schema=wanted.schema)
