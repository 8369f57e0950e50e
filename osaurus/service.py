"""Starting and stopping, in order.

Twisted's MultiService stops its children at once and in reverse; here the order is the point. The ports come first, so
that a taken port ends the start before anything else happened. On the way out the ports close, what is being answered
ends with an error that says so, the last bytes leave, and only then the threads end.
"""

from collections.abc import Sequence

from attrs import define, field
from twisted.application.service import IServiceCollection, Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorTime, IStreamServerEndpoint
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from .discovery import Announcement
from .engine.runner import MLXRunner
from .logs.output import LogOutput
from .serving.pulls import Pulls
from .serving.scheduler import Scheduler

log = Logger()


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
    _scheduler: Scheduler
    _pulls: Pulls
    _runner: MLXRunner
    _engine_pool: ThreadPool
    _blocking_pool: ThreadPool
    _preload: Sequence[str]
    _greeting: str
    _announcement: Announcement
    _log_output: LogOutput | None = None

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Become part of an application, and have twistd log where the settings say; see `logs/output.py`."""
        if self._log_output is not None and isinstance(parent, Componentized):
            self._log_output.attach(parent)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Open the ports. Ends the process with status 1 and one line if one cannot be had."""
        for port in self._ports:
            try:
                port.open()
            except (CannotListenError, OSError, OverflowError) as error:
                raise CannotStart(f"osaurus: {error}") from error

    def startService(self) -> None:
        """Start the threads and serve."""
        super().startService()
        self._blocking_pool.start()
        self._engine_pool.start()
        self._runner.start()
        self._announce()
        for name in self._preload:
            Deferred.fromCoroutine(self._scheduler.preload(name)).addErrback(_log_preload, name)
        log.info("Osaurus is running. {greeting}", greeting=self._greeting)

    def stopService(self) -> Deferred[None]:
        """Stop; fires when everything has ended."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for port in self._ports:
            await port.close()
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
        # Whoever waits for this to be gone may begin anew at once.
        self._announcement.withdraw()

    def _announce(self) -> None:
        address = next(filter(None, (port.address for port in self._ports)), None)
        try:
            self._announcement.publish(address)
        except OSError as error:
            log.warn("Programs on this machine are not told that the server runs: {error}", error=error)


def _log_preload(failure: Failure, name: str) -> None:
    log.failure("Loading {name} at the start failed", failure, name=name)
