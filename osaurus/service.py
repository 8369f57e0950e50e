"""Starting and stopping, in order.

Twisted's MultiService stops its children at once and in reverse; here the order is the point. The ports come first, so
that a taken port ends the start before anything else happened. On the way out the ports close and new work is refused;
what is being answered goes on until it is complete or the setting `drain` is over, and then ends with an error that
says so; the last bytes leave; the threads end, after the prefix cache is written. Whoever is in a hurry (a second
signal) waits for no answer, no step and no disk.

To end a pool of threads is to wait for them, and one may be stuck: the disk is gone, a schema takes minutes. So the
reactor has a thread wait that keeps nobody, goes on hearing signals, and looks on for so long at most.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from attrs import define, field
from twisted.application.service import IServiceCollection, Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorTime, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from . import leftover
from .discovery import Announcement
from .engine.runner import MLXRunner
from .logs.output import LogOutput
from .notify import READY, stopping
from .reload import Reload
from .serving.idleness import Idleness
from .serving.pulls import PATIENCE, Pulls
from .serving.scheduler import Scheduler
from .signals import Signals
from .web.connections import Connections

log = Logger()

# In seconds: for the last bytes of answers to be sent, for pulls to end, for the disk to have what it is given.
LAST_WORDS = 1.0
LAST_PULLS = PATIENCE + 1.0
LAST_WRITES = 8.0


class CannotStart(SystemExit, Exception):
    """Ends the process with status 1 and one line.

    An Exception as well, since only of those does the daemon that twistd has forked tell the process that waits for it.
    """


# Endpoints that plain HTTP is spoken on, by what their strings begin with.
PLAIN = ("tcp:", "tcp6:", "systemd:")
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - how such an address is reached from here


@define(eq=False)
class Port:
    """An endpoint to listen on, and the string that describes it."""

    description: str
    _endpoint: IStreamServerEndpoint
    _factory: IProtocolFactory
    _listening: Deferred[IListeningPort | None] | None = field(default=None, init=False)
    _address: object = field(default=None, init=False)

    def open(self) -> None:
        """Listen. Raises what the endpoint does if that fails at once; what fails later is logged."""
        leftover.remove(self._endpoint)
        failures: list[Failure] = []
        at_once = True

        def opened(port: IListeningPort) -> IListeningPort:
            self._address = port.getHost()
            return port

        def failed(failure: Failure) -> None:
            if at_once:
                failures.append(failure)
            elif not failure.check(CancelledError):
                log.failure("{endpoint} cannot be listened on", failure, endpoint=self.description)

        self._listening = self._endpoint.listen(self._factory).addCallbacks(opened, failed)
        at_once = False
        if failures:
            failures[0].raiseException()

    async def close(self) -> None:
        """Listen no longer, nor try to any more."""
        if self._listening is not None:
            self._listening.cancel()
            port = await self._listening
            if port is not None:
                await maybeDeferred(port.stopListening)

    @property
    def address(self) -> tuple[str, int] | None:
        """Where HTTP is spoken with whoever is on this machine, as host and port; None if it is not, or not by TCP."""
        if isinstance(self._address, (IPv4Address, IPv6Address)) and self.description.startswith(PLAIN):
            return EVERYWHERE.get(self._address.host, self._address.host), self._address.port
        return None


@define(eq=False, slots=False)
class OsaurusService(Service):
    """The whole server."""

    _clock: IReactorTime
    _ports: Sequence[Port]
    _connections: Connections
    _scheduler: Scheduler
    _pulls: Pulls
    _runner: MLXRunner
    _engine_pool: ThreadPool
    _blocking_pool: ThreadPool
    _writing_pool: ThreadPool
    _elsewhere: Callable[[Callable[[], object]], Deferred[None]]
    _preload: Sequence[str]
    _greet: Callable[[], object]
    _announcement: Announcement
    _reload: Reload
    _signals: Signals
    _idleness: Idleness
    _notify: Callable[[str], None]
    _log_output: LogOutput | None = None
    _awaited: Deferred[Any] | None = field(default=None, init=False)
    _hurried: bool = field(default=False, init=False)

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Become part of an application, and have twistd log where the settings say; see `logs/output.py`."""
        if self._log_output is not None and isinstance(parent, Componentized):
            self._log_output.attach(parent)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Open the ports. Ends the process with status 1 and one line if one cannot be had.

        The reason comes first: of what a daemon says twistd passes on a hundred bytes.
        """
        for port in self._ports:
            try:
                port.open()
            except (CannotListenError, OSError, OverflowError) as error:
                raise CannotStart(f"osaurus: {_reason(error)}: cannot listen on {port.description}") from error

    def startService(self) -> None:
        """Start the threads and serve."""
        super().startService()
        self._blocking_pool.start()
        self._writing_pool.start()
        self._engine_pool.start()
        self._runner.start()
        for name in self._preload:
            Deferred.fromCoroutine(self._scheduler.preload(name)).addErrback(_log_preload, name)
        self._signals.watch(self._reload.begin, self.hurry)
        self._idleness.start()
        # When the reactor runs, and signals are heard: one that came before would end the process and leave the file.
        self._clock.callLater(0, self._announce)
        self._clock.callLater(0, self._notify, READY)
        self._greet()

    def stopService(self) -> Deferred[None]:
        """Stop; fires when everything has ended."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """Have the end, which has begun, wait for nothing that can be done without."""
        self._hurried = True
        self._pulls.kill()
        if self._awaited is not None:
            self._awaited.cancel()
        self._runner.leave_behind()

    async def _stop(self) -> None:
        self._signals.ending()
        self._idleness.stop()
        self._scheduler.refuse()
        # What is told of the end is what it goes by.
        self._reload.end()
        chosen = self._reload.settings
        self._notify(stopping(chosen.longest_end))
        self._tell(partial(self._announcement.tell_end, math.ceil(chosen.longest_end)))
        # They are resumed by whoever asks again, and may take hours.
        pulls_ended = self._pulls.stop()
        for port in self._ports:
            await port.close()
        await self._drain(chosen.drain)
        self._scheduler.stop()
        # The errors leave, to clients that take them.
        with suppress(TimeIsOver):
            await self._connections.drain().addTimeout(LAST_WORDS, self._clock)
        stopped = self._runner.stop()
        if self._hurried:
            self._runner.leave_behind()
        await stopped
        with suppress(CancelledError, TimeIsOver):
            await self._unless_hurried(pulls_ended, LAST_PULLS)
        if not self._hurried:
            await self._end_threads()
        # Whoever waits for this to be gone may begin anew at once.
        self._announcement.withdraw()
        self._signals.stop()

    async def _drain(self, seconds: float) -> None:
        """Wait until what is being answered is complete, for so long at most."""
        drained = self._connections.drain()
        if not drained.called:
            log.info(
                "The server stops. Answers under way: {count}; they have {seconds:g} s to become complete, "
                "unless a second signal ends them",
                count=self._connections.answering,
                seconds=seconds,
            )
        try:
            await self._unless_hurried(drained, seconds)
        except TimeIsOver:
            log.warn("Answers that are not complete, and end now: {count}", count=self._connections.answering)
        except CancelledError:
            log.info("A second signal: answers end now")

    async def _end_threads(self) -> None:
        """Wait until the threads have ended, for so long at most: one that is stuck never does."""

        def end() -> None:
            # A thread of the engine that was left behind is stuck.
            if not self._runner.abandoned:
                self._engine_pool.stop()
            self._blocking_pool.stop()
            self._writing_pool.stop()

        try:
            await self._unless_hurried(self._elsewhere(end), LAST_WRITES)
        except TimeIsOver:
            log.warn("Threads that have not ended after {seconds:g} s are left behind", seconds=LAST_WRITES)
        except CancelledError:
            log.info("A second signal: what is still being written is left behind")

    async def _unless_hurried(self, awaited: Deferred[Any], seconds: float) -> None:
        """Wait for something for so long at most. Raises TimeIsOver, and CancelledError where there is a hurry."""
        self._awaited = awaited
        if self._hurried:
            awaited.cancel()
        await awaited.addTimeout(seconds, self._clock)

    def _announce(self) -> None:
        address = next(filter(None, (port.address for port in self._ports)), None)
        self._tell(partial(self._announcement.publish, address))

    def _tell(self, announce: Callable[[], None]) -> None:
        try:
            announce()
        except OSError as error:
            log.warn("Programs on this machine are not told how the server is: {error}", error=error)


def _reason(error: Exception) -> str:
    """Return why there is no listening, in words for whoever set where to listen."""
    cause = error.socketError if isinstance(error, CannotListenError) else error
    reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
    # See `leftover.py`.
    return "another process does already" if reason == "Cannot acquire lock" else reason


def _log_preload(failure: Failure, name: str) -> None:
    log.failure("Loading {name} at the start failed", failure, name=name)
