"""Starting and stopping, in order.

Twisted's MultiService stops its children at once and in reverse; here the order is the point. The ports come first, so
that a taken port ends the start before anything else happened. On the way out the ports close, what is being answered
ends with an error that says so, the last bytes leave, and only then the threads end.
"""

from collections.abc import Sequence

from attrs import define
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from .engine.runner import MLXRunner
from .serving.pulls import Pulls
from .serving.scheduler import Scheduler

log = Logger()


class CannotStart(SystemExit, Exception):
    """Ends the process with status 1 and one line.

    An Exception as well, since only of those does the daemon that twistd has forked tell the process that waits for it.
    """


@define(eq=False, slots=False)
class OsaurusService(Service):
    """The whole server."""

    _clock: IReactorTime
    _ports: Sequence[IService]
    _scheduler: Scheduler
    _pulls: Pulls
    _runner: MLXRunner
    _engine_pool: ThreadPool
    _blocking_pool: ThreadPool
    _preload: Sequence[str]
    _greeting: str

    def privilegedStartService(self) -> None:
        """Open the ports. Ends the process with status 1 and one line if one cannot be had."""
        for port in self._ports:
            try:
                port.privilegedStartService()
            except (CannotListenError, OSError, OverflowError) as error:
                raise CannotStart(f"osaurus: {error}") from error

    def startService(self) -> None:
        """Start the threads and serve."""
        super().startService()
        self._blocking_pool.start()
        self._engine_pool.start()
        self._runner.start()
        for port in self._ports:
            port.startService()
        for name in self._preload:
            Deferred.fromCoroutine(self._scheduler.preload(name)).addErrback(_log_preload, name)
        log.info("Osaurus is running. {greeting}", greeting=self._greeting)

    def stopService(self) -> Deferred[None]:
        """Stop; fires when everything has ended."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for port in self._ports:
            await maybeDeferred(port.stopService)
        self._scheduler.stop()
        pulls_ended = self._pulls.stop()
        # The last writes leave on the reactor's next turn.
        await deferLater(self._clock, 0, lambda: None)
        await self._runner.stop()
        await pulls_ended
        if not self._runner.abandoned:
            # Stopping the pool waits for its threads, and one that is stuck never ends.
            self._engine_pool.stop()
        self._blocking_pool.stop()


def _log_preload(failure: Failure, name: str) -> None:
    log.failure("Loading {name} at the start failed", failure, name=name)
