"""What the process is told by signals.

SIGTERM and SIGINT end it. The first goes to the handler that the reactor has for it, so that twistd ends as it always
does; by the reactor alone a second would be an error in the log. Here it hurries the end, and leaves the third to the
kernel, since a handler in Python is not called while the main thread is busy elsewhere.

SIGHUP means two things: that the settings are to be read again, and, to a process in a terminal, that the terminal is
gone. A server that a shell started should end with it, as it did before it knew the first. Told apart by what the
kernel does to a session that loses its terminal: from then on /dev/tty cannot be opened. Who ran it by `nohup` ignores
the second.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from attrs import define, field
from twisted.logger import Logger

log = Logger()


class Reactor(Protocol):
    """What of the reactor is used."""

    def callWhenRunning(self, function: Callable[[], object]) -> object: ...  # noqa: D102
    def callFromThread(self, function: Callable[[], object]) -> object: ...  # noqa: D102


# Whoever sets a handler is given the one before, which Python looks up in an enumeration and, not finding it there,
# spells out. Without an end to that it would be the whole server, arrays of the engine's thread among it.
@define(eq=False, repr=False)
class Signals:
    """Installs handlers, in the main thread, and takes them away."""

    _reactor: Reactor
    _reload: Callable[[], object] = field(default=lambda: None, init=False)
    _hurry: Callable[[], object] = field(default=lambda: None, init=False)
    _before: dict[int, Any] = field(factory=dict, init=False)
    _ends: int = field(default=0, init=False)
    _in_terminal: bool = field(default=False, init=False)

    def watch(self, reload: Callable[[], object], hurry: Callable[[], object]) -> None:
        """Have SIGHUP call `reload`, and a second SIGTERM or SIGINT `hurry`, both on the reactor."""
        self._reload, self._hurry = reload, hurry
        self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._hang_up)
        self._in_terminal = self._before[signal.SIGHUP] is not signal.SIG_IGN and has_terminal()
        # The reactor installs its own when it starts.
        self._reactor.callWhenRunning(self._watch_ends)

    def ending(self) -> None:
        """Take note that the server is ending, whoever asked for it: the next signal is a second one."""
        self._ends = max(self._ends, 1)

    def stop(self) -> None:
        """Give everything back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _watch_ends(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            # What is ignored, as SIGINT is by what a shell script runs in the background, stays so.
            if callable(signal.getsignal(number)):
                self._before[number] = signal.signal(number, self._end)

    def _end(self, number: int, frame: Any) -> None:
        self._ends += 1
        if self._ends == 1:
            self._before[number](number, frame)
        else:
            for each in (signal.SIGTERM, signal.SIGINT):
                # What is ignored stays so.
                if self._before.pop(each, None) is not None:
                    signal.signal(each, signal.SIG_DFL)
            self._reactor.callFromThread(self._hurry)

    def _hang_up(self, *_: object) -> None:
        self._reactor.callFromThread(self._hung_up)

    def _hung_up(self) -> None:
        if self._ends:
            return
        if self._in_terminal and not has_terminal():
            log.info("The terminal is gone: the server ends")
            signal.raise_signal(signal.SIGTERM)
        else:
            self._reload()


def has_terminal() -> bool:
    """Tell whether this process is in a session that has a terminal."""
    with suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        return True
    return False
