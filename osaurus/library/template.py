"""Whether a model can be given tools: its chat template is rendered with one, to see whether it comes up.

Templates that speak of tools may still refuse them, and others take them under names of their own, so their text tells
nothing. But a template is a program of a stranger's: one that loops for ever, or that doubles a string forty times,
would take the server with it. So it is rendered in a process of its own, sandboxed by Jinja and bounded by the system
in time and, but for macOS, in memory; that takes a tenth of a second, once for each template.
"""

import json
import subprocess
import sys
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .confinement import confine

# In seconds and bytes. What Python and Jinja themselves take is a tenth of both.
MOST_SECONDS = 2
MOST_MEMORY = 2**30

SENTINEL = "osaurus_sentinel"
TOOL = {
    "type": "function",
    "function": {
        "name": SENTINEL,
        "description": "Tell the time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]},
    },
}
MESSAGES = [{"role": "user", "content": "What time is it?"}]


@lru_cache(maxsize=256)
def takes_tools(template: str) -> bool:
    """Return whether a chat template tells the model of the tools that it is given. Logs if that is not found out."""
    if "tool" not in template:
        return False
    try:
        asked = subprocess.run(  # noqa: S603 - ourselves; the template is data
            [sys.executable, "-P", "-m", __name__],
            input=template.encode("utf-8", "replace"),
            capture_output=True,
            timeout=2 * MOST_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _not_found_out(error)
    if asked.returncode != 0 or asked.stdout not in (b"yes", b"no"):
        reason = b"".join(asked.stderr.strip().splitlines()[-1:]).decode("utf-8", "replace")
        return _not_found_out(f"its rendering ended with {asked.returncode}. {reason:.200}")
    return asked.stdout == b"yes"


def _not_found_out(why: object) -> bool:
    # The process that renders need not wait for this import.
    from twisted.logger import Logger

    Logger().warn("Whether a chat template takes tools was not found out: {why}", why=why)
    return False


class Generation(Extension):
    """`{% generation %}`, with which templates mark what is trained on: its content stands as it is."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what is within."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(template: str, tools: list[dict[str, Any]] | None) -> str:
    """Render a chat template the way Transformers does. Raises TemplateError, and what templates raise by mistake."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals.update(raise_exception=_refuse, strftime_now=lambda _: "2024-03-15")
    return environment.from_string(template).render(
        {"messages": MESSAGES, "tools": tools, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
    )


def _refuse(reason: object) -> NoReturn:
    raise TemplateError(str(reason))


def _main() -> None:
    confine(memory=MOST_MEMORY, seconds=MOST_SECONDS)
    template = sys.stdin.buffer.read().decode("utf-8", "replace")
    try:
        told = SENTINEL in render(template, [TOOL]) and SENTINEL not in render(template, None)
    except Exception:  # noqa: BLE001 - whatever it is, this template takes none
        told = False
    sys.stdout.write("yes" if told else "no")


if __name__ == "__main__":
    _main()
