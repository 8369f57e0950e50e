"""What the subcommands print: tables, progress and text that others wrote.

On a terminal a table has a header and is cut to fit; into a pipe go tab-separated lines, whole and without a header,
and of progress only the stages. What models and servers say is text: whatever in it would steer a terminal is left out.
"""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from attrs import define, field
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from ..library.progress import Progress

# C0 and C1 without tab and line feed, and what turns the direction of text around.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

# In seconds.
UNITS = ((365 * 86400, "year"), (30 * 86400, "month"), (86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def printable(text: str) -> str:
    """Return a text without what would steer a terminal."""
    return STEERING.sub("", text)


def examples(*lines: str) -> str:
    """Return the end of a subcommand's help."""
    # click leaves the lines of such a paragraph as they are.
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


def print_json(value: Any) -> None:
    """Print a value for programs; in ASCII, so that it steers nothing."""
    click.echo(json.dumps(value, indent=2))


def print_table(console: Console, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of text; nothing at all if there are none."""
    cleaned = [[printable(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        for row in cleaned:
            click.echo("\t".join(row))
    elif cleaned:
        table = Table(*header, box=None, padding=(0, 3, 0, 0), header_style="bold")
        for row in cleaned:
            table.add_row(*row)
        console.print(table)


def ago(moment: str, now: datetime | None = None) -> str:
    """Return how far a moment, as RFC 3339 has it, is from now: `3 hours ago`, `in 4 minutes`."""
    try:
        seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds()
    except (TypeError, ValueError):
        return ""
    size, name = next(((size, name) for size, name in UNITS if abs(seconds) >= size), UNITS[-1])
    count = int(abs(seconds) // size)
    text = f"{count} {name}{'' if count == 1 else 's'}"
    return f"{text} ago" if seconds >= 0 else f"in {text}"


@define
class Reporter:
    """Shows the progress of something long: a bar for each part on a terminal, else a line for each stage.

    To be used as a context.
    """

    _console: Console
    _bars: Bars = field(init=False)
    _parts: dict[str, TaskID] = field(factory=dict, init=False)
    _said: str = field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> "Reporter":
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def tell(self, progress: Progress) -> None:
        """Take news."""
        text = printable(progress.status)
        if self._console.is_terminal and progress.total:
            part = progress.digest or progress.status
            if part not in self._parts:
                self._parts[part] = self._bars.add_task(text)
            self._bars.update(self._parts[part], description=text, completed=progress.completed, total=progress.total)
        elif text != self._said:
            self._bars.console.print(text, soft_wrap=True)
            self._said = text
