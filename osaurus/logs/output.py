"""Where the log goes, and how twistd is had to write it there.

twistd makes the service, adds it to an application (`setServiceParent`), begins logging, becomes a daemon, and starts
the service, in this order. When it begins it hands everything that was said until then to one observer: that which the
application has as its component `ILogObserver`, or else one of its own, whose file is turned over at 1 MB and of which
every piece is kept for ever. So the service sets that component when it becomes part of an application; this is what
`.tac` files do. `twistd --logger` and `--syslog` are left to twistd.

Rejected: to begin logging when the service starts (twistd has begun by then, and what it said went elsewhere), and to
add a second observer to twistd's (every line would be there twice).

Without `log_file` the log goes where twistd would have it: to `--logfile`, as a daemon to twistd.log, else to stdout. A
file is turned over when it is large enough, and so many old ones are kept; or it is left to logrotate, which moves it
away and sends SIGUSR1: then it is opened anew. (twistd itself turns the file over on that signal.)
"""

import os
import sys
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from attrs import define, frozen
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
)
from twisted.python.components import Componentized
from twisted.python.logfile import LogFile
from twisted.python.threadable import synchronize

from .lines import human_line, json_line

log = Logger()

FORMATS = {"human": human_line, "json": json_line}

# Where twistd writes as a daemon.
DAEMON_FILE = "twistd.log"
# Who may read files that are made here: what people ask may be in them.
MODE = 0o600


class RotatingFile(LogFile):
    """A file that is turned over at a size, written to from any thread."""

    synchronized = ["reopen"]  # noqa: RUF012 - as Twisted declares it

    def _openFile(self) -> None:
        # One that is there keeps its mode, whoever made it, and those that come after it have the same.
        if os.path.exists(self.path):  # noqa: PTH110 - Twisted's is a string
            self.defaultMode = os.stat(self.path).st_mode & 0o777  # noqa: PTH116
        super()._openFile()

    def reopen(self) -> None:
        """Open what is there under the name by now; if that cannot be, go on with the file as it was."""
        before = self._file
        try:
            self._openFile()
        except OSError as error:
            self._file = before
            log.error("The log cannot be opened anew: {error}", error=error)
        else:
            before.close()


synchronize(RotatingFile)


@frozen(kw_only=True)
class Wanted:
    """What the settings say. `file_size` 0: it is not turned over here."""

    format: str
    level: str
    file: Path | None
    file_size: int
    files_kept: int


@define(eq=False)
class LogOutput:
    """The log of this process: an observer of events, and the file it writes to, if that is one."""

    observer: ILogObserver
    file: RotatingFile | None
    _filter: LogLevelFilterPredicate

    def apply(self, level: str) -> None:
        """Log this and what is worse from now on."""
        self._filter.setLogLevelForNamespace("", LogLevel.levelWithName(level))

    def reopen(self) -> None:
        """Open the file anew, if it is one."""
        if self.file is not None:
            self.file.reopen()

    def attach(self, application: Componentized) -> None:
        """Have twistd log here."""
        application.setComponent(ILogObserver, self.observer)


def log_output(wanted: Wanted, twistd: Mapping[str, Any]) -> LogOutput | None:
    """Return where to log, None if that is for twistd to say, whose options these are. Raises OSError."""
    if twistd.get("syslog") or twistd.get("logger"):
        return None
    path, daemon = wanted.file, not twistd.get("nodaemon")
    if path is None:
        asked = str(twistd.get("logfile") or "")
        if asked == "-" and daemon:
            # twistd refuses it.
            return None
        if asked != "-" and (asked or daemon):
            path = Path(asked or DAEMON_FILE).absolute()
    file = None if path is None else _opened(path, wanted)
    stream: Any = file or sys.stdout
    if file is None and isinstance(stream, TextIOWrapper):
        # Not every terminal has every character.
        stream.reconfigure(errors="backslashreplace")
    level = LogLevelFilterPredicate(LogLevel.levelWithName(wanted.level))
    return LogOutput(FilteringLogObserver(FileLogObserver(stream, FORMATS[wanted.format]), [level]), file, level)


def _opened(path: Path, wanted: Wanted) -> RotatingFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Nobody wants /dev/null renamed.
    turned_over = path.is_file() or not path.exists()
    return RotatingFile(
        path.name,
        os.fspath(path.parent),
        rotateLength=wanted.file_size if turned_over else 0,
        defaultMode=MODE,
        maxRotatedFiles=wanted.files_kept,
    )
