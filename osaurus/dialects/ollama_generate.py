"""Ollama's generate: one text in, one text out, through the model's chat template or, if `raw`, as it stands."""

from typing import Annotated, Any

from attrs import evolve, field, frozen

from ..chat import Message, Text
from .fields import refuse
from .ollama import Asked, Call, call, request
from .strict import Between, Items, Unserved, parse


@frozen(kw_only=True)
class GenerateBody(Asked):
    """What is known of the body; unknown keys are ignored."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    raw: bool = False
    context: Annotated[list[Annotated[int, Between(0, 2**31)]], Items(0, 2**20)] = field(factory=list)
    images: Annotated[Any, Unserved(([],))] = None


def generate_call(body: bytes) -> Call:
    """Read the body. Raises InvalidRequest naming the field at fault."""
    asked = parse(GenerateBody, body)
    wanted = evolve(request(asked), prompt_field="prompt")
    if asked.raw or asked.suffix:
        for name in ("system", "context", "think"):
            if getattr(asked, name):
                refuse(name, "has no place beside raw or a suffix; leave it out, or those")
    if asked.suffix:
        wanted = evolve(wanted, raw=Text(text=asked.prompt, suffix=asked.suffix))
    elif not asked.prompt:
        return call(asked, None)
    elif asked.raw:
        wanted = evolve(wanted, raw=Text(text=asked.prompt))
    else:
        system = (Message("system", asked.system),) if asked.system else ()
        messages = (*system, Message("user", asked.prompt))
        wanted = evolve(wanted, messages=messages, context=tuple(asked.context), tell_tokens=True)
    return call(asked, wanted)
