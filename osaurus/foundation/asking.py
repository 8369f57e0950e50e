"""From a request to what Apple's SDK is asked, and what it cannot be asked.

A session of the SDK has instructions, a transcript of what was said, and is given one prompt at a time. So a
conversation becomes a transcript, but for its last message, which is the prompt. A transcript can only be had from its
JSON form, whose entries the SDK documents. A conversation that has just begun needs none, only instructions.

There is no way to have a session go on without a prompt. Where the last message is what a tool returned, it stands in
the transcript, and the prompt is `GO_ON`.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn
from uuid import uuid4

from attrs import define, frozen

from ..chat import ContextLengthExceeded, GenerationRequest, InvalidRequest, Message, Sampling, Text, Tokens, ToolUse
from ..engine.prompt import EncodedPrompt
from .schemas import answer_schema, arguments_schema

GO_ON = "Answer with what the tools returned."

# Of the SDK's transcripts.
VERSION = 1
TYPE = "FoundationModels.Transcript"


@frozen(kw_only=True)
class Asked:
    """A conversation as the SDK has it: `transcript` is None where `instructions` are all that comes before."""

    instructions: str | None
    transcript: dict[str, Any] | None
    prompt: str


@define
class RequestReader:
    """Stands where MLX models have their prompt encoder: refuses what cannot be done, and reads no token."""

    _sdk: Any
    _context_length: int

    def encode(self, request: GenerationRequest) -> EncodedPrompt:
        """Return a prompt of no tokens: the SDK has its own. Raises InvalidRequest, ContextLengthExceeded."""
        _check(request)
        asked(request)
        if request.format is not None:
            answer_schema(request.format)
        for tool in request.tools.tools if request.tools is not None else ():
            arguments_schema(self._sdk, tool)
        most = self._context_length if request.max_tokens is None else request.max_tokens
        if most > self._context_length and not request.max_tokens_may_shrink:
            raise ContextLengthExceeded(
                f"The model's context is {self._context_length} tokens; the request asks for {most}",
                param=request.max_tokens_field,
            )
        return EncodedPrompt([], min(most, self._context_length))

    def spell(self, raw: Text | Tokens | None) -> str:  # noqa: ARG002 - as any encoder
        """Return nothing: text is not continued here."""
        return ""


def _check(request: GenerationRequest) -> None:
    sampling = request.sampling
    unable = {
        "prompt": (request.raw is not None, "takes conversations, and no text to be continued"),
        "context": (request.context, "has tokens of its own"),
        "logprobs": (request.top_logprobs is not None, "does not tell probabilities"),
        "seed": (sampling.seed is not None, "cannot repeat its draws"),
        "min_p": (sampling.min_p, "has no such filter"),
        "logit_bias": (sampling.bias, "has no such bias"),
        "repetition_penalty": (sampling.repetition_penalty != 1, "has no penalties"),
        "presence_penalty": (sampling.presence_penalty, "has no penalties"),
        "frequency_penalty": (sampling.frequency_penalty, "has no penalties"),
        "max_tokens": (request.max_tokens == 0, "answers with one token at least"),
    }
    for param, (wanted, why) in unable.items():
        if wanted:
            _refuse(param, why)
    if request.thinking is not None and request.thinking.wanted:
        _refuse(request.thinking.asked_by, "does not think")
    if request.tools is not None:
        if request.tools.forced:
            _refuse("tool_choice", "cannot be made to call a tool: auto and none are what it takes")
        if request.format is not None:
            _refuse(request.format.asked_by, "takes tools or a format, not both at once")


def _refuse(param: str, why: str) -> NoReturn:
    raise InvalidRequest(f"{param}: Apple's on-device model {why}", param=param)


def asked(request: GenerationRequest) -> Asked:
    """Return what the SDK is asked. Raises InvalidRequest if the conversation does not end with a question."""
    system = [message.content for message in request.messages if message.role == "system" and message.content]
    said = [message for message in request.messages if message.role != "system"]
    instructions = "\n\n".join(system) or None
    if not said or said[-1].role == "assistant":
        _refuse("messages", "needs a message of the user, or of a tool, at the end")
    if said[-1].role == "tool":
        history, prompt = said, GO_ON
    else:
        history, prompt = said[:-1], said[-1].content
    if not prompt:
        _refuse("messages", "needs a prompt that says something")
    if not history:
        return Asked(instructions=instructions, transcript=None, prompt=prompt)
    entries = list(_entries(instructions, history, request.tools))
    transcript = {"version": VERSION, "type": TYPE, "transcript": {"entries": entries}}
    return Asked(instructions=None, transcript=transcript, prompt=prompt)


def _entries(instructions: str | None, history: Sequence[Message], tools: ToolUse | None) -> Iterator[dict[str, Any]]:
    if instructions or tools is not None:
        definitions = [] if tools is None else [json.loads(tool.definition) for tool in tools.tools]
        yield _entry("instructions", instructions or "", tools=definitions)
    names: dict[str, str] = {}
    for message in history:
        match message.role:
            case "user":
                yield _entry("user", message.content, options={})
            case "assistant":
                if message.content or not message.calls:
                    yield _entry("response", message.content, assets=[])
                if message.calls:
                    names |= {call.id: call.name for call in message.calls}
                    calls = [
                        {"id": call.id or _identity(), "name": call.name, "arguments": call.arguments}
                        for call in message.calls
                    ]
                    yield {"id": _identity(), "role": "response", "toolCalls": calls}
            case _:
                name = message.tool_name or names.get(message.call_id, "")
                yield _entry("tool", message.content, toolName=name, toolCallID=message.call_id or _identity())


def _entry(role: str, text: str, **more: Any) -> dict[str, Any]:
    contents = [{"type": "text", "id": _identity(), "text": text}] if text else []
    return {"id": _identity(), "role": role, "contents": contents, **more}


def _identity() -> str:
    return str(uuid4()).upper()


def options(sdk: Any, sampling: Sampling, max_tokens: int | None) -> Any:
    """Return the SDK's GenerationOptions. It has one filter at a time: `top_k`, or else `top_p`."""
    if sampling.temperature == 0:
        mode = sdk.SamplingMode.greedy()
    elif sampling.top_k is not None:
        mode = sdk.SamplingMode.random(top=sampling.top_k)
    else:
        mode = sdk.SamplingMode.random(probability_threshold=sampling.top_p)
    return sdk.GenerationOptions(
        sampling=mode, temperature=float(sampling.temperature), maximum_response_tokens=max_tokens
    )
