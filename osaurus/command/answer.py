"""An answer on its way to the terminal.

Its text goes out as it comes, markdown as it stands: to render it, a terminal's lines would have to be written again
whenever a table or a list goes on, which breaks as soon as they have scrolled away, and what is copied from it would
not be what the model wrote. Thoughts are dim, and not in a pipe.
"""

import sys
from typing import Any

import click
from attrs import define, field
from rich.console import Console
from rich.status import Status

from .errors import understanding
from .terminal import printable

NANOSECONDS = 1e9


@define
class AnswerPrinter:
    """Prints an answer piece by piece, as Ollama's API streams it; `with` it, something turns until the first."""

    _err: Console
    _hide_thoughts: bool = False
    text: str = ""
    last: dict[str, Any] = field(factory=dict)
    _in_thoughts: bool = field(default=False, init=False)
    _waiting: Status = field(init=False)
    _terminal: bool = field(factory=lambda: sys.stdout.isatty(), init=False)

    def __attrs_post_init__(self) -> None:
        self._waiting = self._err.status("")

    def __enter__(self) -> "AnswerPrinter":
        if self._terminal:
            self._waiting.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._waiting.stop()

    def take(self, said: dict[str, Any]) -> None:
        """Take an object of the stream."""
        message = said.get("message")
        content, thought = (
            (message.get("content"), message.get("thinking")) if isinstance(message, dict) else (None, None)
        )
        if isinstance(thought, str) and thought and self._terminal and not self._hide_thoughts:
            self._waiting.stop()
            self._in_thoughts = True
            click.secho(printable(thought), dim=True, nl=False)
        if isinstance(content, str) and content:
            self._waiting.stop()
            if self._in_thoughts:
                self._in_thoughts = False
                click.echo("\n")
            self.text += content
            click.echo(printable(content) if self._terminal else content, nl=False)
        if said.get("done"):
            self.last = said


@understanding()
def statistics(last: dict[str, Any]) -> str:
    """Return what an answer took, from the last object of its stream. Raises click.ClickException."""
    lines = [f"{'total duration':<22}{last['total_duration'] / NANOSECONDS:.2f} s"]
    lines += [f"{'load duration':<22}{last['load_duration'] / NANOSECONDS:.2f} s"]
    for name, key in (("prompt", "prompt_eval"), ("answer", "eval")):
        count, seconds = last[f"{key}_count"], last[f"{key}_duration"] / NANOSECONDS
        rate = f", {count / seconds:.1f} tokens/s" if seconds else ""
        lines.append(f"{name:<22}{count} tokens in {seconds:.2f} s{rate}")
    return "\n".join(lines)
