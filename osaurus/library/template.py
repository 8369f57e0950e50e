"""Whether a model can be given tools: its chat template is rendered with one, to see whether it comes up.

Templates that speak of tools may still refuse them, and others take them under names of their own, so their text tells
nothing. What renders it takes a tenth of a second to start, once for each template.
"""

from functools import lru_cache

from twisted.logger import Logger

from ..chat import ApiError
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


@lru_cache(maxsize=256)
def takes_tools(template: str) -> bool:
    """Return whether a chat template tells the model of the tools that it is given. Logs if that is not found out."""
    if "tool" not in template:
        return False
    renderer = Renderer(MOST_CHARACTERS)
    try:
        told, untold = (renderer.render(template, {**VARIABLES, "tools": tools}) for tools in ([TOOL], None))
    except TemplateRefused:
        return False
    except ApiError as error:
        log.warn("Whether a chat template takes tools was not found out: {why}", why=error)
        return False
    return SENTINEL in told and SENTINEL not in untold
