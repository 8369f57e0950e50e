"""The server as `twistd osaurus` starts it, and beside it a clock that tells how late the reactor is.

    OSU_PORT=1337 LATENESS=FILE twistd -n --pidfile= -y benchmarks/lateness_service.py

The settings are variables of the environment. Every 10 ms is a time at which something could be due; when the reactor
gets to it, how late that is is noted, for each of the times that went by. At the end all of them are written to the
file, a line each: the time and by how much it was missed, in seconds of the machine's monotonic clock. Nothing of this
is in the product.
"""

import os
from pathlib import Path
from time import monotonic
from typing import Any

from attrs import define, field
from twisted.application.service import Application, Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from osaurus.tap import Options, makeService

INTERVAL = 0.01


@define(eq=False, slots=False)
class Lateness(Service):
    """Notes how late the reactor is."""

    clock: IReactorTime
    file: Path
    noted: list[tuple[float, float]] = field(factory=list)
    due: float = 0
    call: IDelayedCall | None = None

    def startService(self) -> None:
        """Begin."""
        super().startService()
        self.due = monotonic() + INTERVAL
        self.call = self.clock.callLater(INTERVAL, self.note)

    def note(self) -> None:
        """Note each of the times that went by, and wait for the next."""
        now = monotonic()
        while self.due <= now:
            self.noted.append((self.due, now - self.due))
            self.due += INTERVAL
        self.call = self.clock.callLater(self.due - now, self.note)

    def stopService(self) -> None:
        """Write what was noted."""
        super().stopService()
        if self.call is not None:
            self.call.cancel()
        self.file.write_text("".join(f"{due} {late}\n" for due, late in self.noted))


def make(file: Path) -> Any:
    """Put the server and the clock together."""
    from twisted.internet import reactor

    options = Options()
    options.parseOptions([])
    application = Application("osaurus")
    makeService(options).setServiceParent(application)
    Lateness(reactor, file).setServiceParent(application)
    return application


if "LATENESS" in os.environ:
    application = make(Path(os.environ["LATENESS"]))
