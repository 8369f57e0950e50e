"""Whether a model can be given tools: its chat template is rendered with one, to see whether it comes up.

Templates that speak of tools may still refuse them, and others take them under names of their own, so their text tells
nothing. What renders it takes a tenth of a second to start, once for each template.
"""

from functools import lru_cache

from twisted.logger import Logger

from ..chat import ServiceUnavailable, TemplateStopped
from ..rendering.renderer import Renderer, TemplateRefused

log = Logger()

# Of what comes of so short a conversation, in characters.
MOST_CHARACTERS = 2**20

SENTINEL = "osaurus_sentinel"
TOOL = {
    "type": "function",
    "function": {
        "name": SENTINEL,
        "description": "Tell the time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]},
    },
}
VARIABLES = {
    "messages": [{"role": "user", "content": "What time is it?"}],
    "add_generation_prompt": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
}


def takes_tools(template: str) -> bool:
    """Return whether a chat template tells the model of the tools that it is given. Logs if that is not found out."""
    if "tool" not in template:
        return False
    try:
        return _tells_tools(template)
    except ServiceUnavailable as error:
        log.warn("Whether a chat template takes tools was not found out: {why}", why=error)
        return False


@lru_cache(maxsize=256)
def _tells_tools(template: str) -> bool:
    """Return the same. Raises ServiceUnavailable if nothing can be rendered now, which is not remembered."""
    renderer = Renderer(MOST_CHARACTERS)
    try:
        told, untold = (renderer.render(template, {**VARIABLES, "tools": tools}) for tools in ([TOOL], None))
    except TemplateRefused:
        return False
    except TemplateStopped as error:
        log.warn("A chat template is taken for one that takes no tools: {why}", why=error)
        return False
    return SENTINEL in told and SENTINEL not in untold
