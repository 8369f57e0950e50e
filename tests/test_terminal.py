"""What is printed: tables, moments and progress, on a terminal and not."""

import io
import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from osaurus.command.terminal import Reporter, ago, print_table, printable
from osaurus.library.progress import Progress

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)


def printed(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_on_a_terminal_a_table_has_a_header_and_fits() -> None:
    screen = console(True)
    print_table(screen, ("NAME", "SIZE"), [("tiny", "1 MB"), ("x" * 200, "2 MB")])
    lines = printed(screen).splitlines()
    assert lines[0].split() == ["NAME", "SIZE"]
    assert lines[1].split() == ["tiny", "1", "MB"]
    assert max(map(len, lines)) <= 80


def test_in_a_pipe_a_table_is_lines_with_tabs_uncut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(console(False), ("NAME", "SIZE"), [("x" * 200, "2 MB"), ("[red]a\x1b[31m", "1")])
    assert capsys.readouterr().out == f"{'x' * 200}\t2 MB\n[red]a[31m\t1\n"


def test_an_empty_table_is_nothing() -> None:
    screen = console(True)
    print_table(screen, ("NAME",), [])
    assert printed(screen) == ""


def test_what_steers_a_terminal_is_left_out_and_nothing_else() -> None:
    assert printable("a\x1b[2Jb\r\x07\x9bc\u202ed\x7f") == "a[2Jbcd"
    assert printable("tab\tline\nUmlaut ä, 漢字, 👩\u200d💻") == "tab\tline\nUmlaut ä, 漢字, 👩\u200d💻"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds ago"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (7200, "2 hours ago"),
        (86400 * 400, "1 year ago"),
        (-290, "in 4 minutes"),
    ],
)
def test_moments_are_told_from_now(seconds: float, text: str) -> None:
    assert ago((NOW - timedelta(seconds=seconds)).isoformat(), NOW) == text


@pytest.mark.parametrize("moment", ["", "soon", "2026-11-23T12:00:00"])
def test_what_is_no_moment_is_not_told(moment: str) -> None:
    assert ago(moment, NOW) == ""


def test_each_part_of_something_long_has_a_bar_on_a_terminal() -> None:
    screen = console(True)
    with Reporter(screen) as reporter:
        reporter.tell(Progress("pulling manifest"))
        for completed in (0, 50, 100):
            reporter.tell(Progress("pulling [a]", "sha256:a", 100, completed))
        reporter.tell(Progress("pulling bbb", "sha256:b", 4000, 1000))
    lines = re.split(r"[\r\n]|\x1b\[[0-9?]*[A-Za-z]", printed(screen))
    assert "pulling manifest" in lines
    for part, done in (("pulling [a]", "100/100 bytes"), ("pulling bbb", "1.0/4.0 kB")):
        assert any(line.startswith(part) and done in line for line in lines), part
