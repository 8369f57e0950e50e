"""When nobody has asked for anything for so long that the server may end.

Where systemd listens, and starts the server for the first who comes, a server that nobody needs costs nothing once it
has ended.
"""

import math
from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime


@define(eq=False)
class Idleness:
    """Calls `end` once nobody was served for `patience` seconds; where that is infinite, never."""

    _clock: IReactorTime
    _end: Callable[[], object]
    _patience: float
    _running: bool = field(default=False, init=False)
    _served: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)
    _call: IDelayedCall | None = field(default=None, init=False)

    def start(self) -> None:
        """Begin to wait."""
        self._running, self._since = True, self._clock.seconds()
        self._wait()

    def stop(self) -> None:
        """Wait no longer."""
        self._running = False
        self._wait()

    def apply(self, patience: float) -> None:
        """Have another patience, counted from when somebody was served last."""
        self._patience = patience
        self._wait()

    def begin(self) -> None:
        """Take note that one more is being served."""
        self._served += 1
        self._wait()

    def finish(self, *, used: bool = True) -> None:
        """Take note that one of them was served; if that was no use of the server, its time goes on as before."""
        self._served -= 1
        if used:
            self._since = self._clock.seconds()
        self._wait()

    def _wait(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        if self._running and not self._served and math.isfinite(self._patience):
            left = self._since + self._patience - self._clock.seconds()
            self._call = self._clock.callLater(max(0.0, left), self._end)
