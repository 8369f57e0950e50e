"""Pulls that clients asked for: each in a process of its own, watched by whoever asked for the same.

A process, since a pull blocks for hours, has libraries of its own, and must end at once when nobody waits for it any
more: when the last of its watchers leaves it is told to end, and soon after made to. One that comes later learns how
far it is. A watcher takes what it is told at its own pace; of one file it learns the latest only.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..chat import (
    ApiError,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    PullFailed,
    RateLimitExceeded,
    ServiceUnavailable,
)
from ..library.names import QUANTIZATIONS, repository
from ..library.progress import AccessDenied, NoSuchRepository, Progress

log = Logger()

# Of different models at the same time: what they share is the network and the disk.
MOST_PULLS = 3
# In seconds, from being asked to end until being made to.
PATIENCE = 5.0
# When one that is refused may come again, in seconds: pulls take long.
RETRY_AFTER = 60
# Of what the process tells, in bytes.
MOST_LINE = 2**16
MOST_ERRORS = 2**12

# The errors that mean something else than that it did not work, by their names.
KINDS: dict[str, type[ApiError]] = {NoSuchRepository.__name__: ModelNotFound, AccessDenied.__name__: Forbidden}

# What a pull tells first and last.
MANIFEST = "pulling manifest"
SUCCESS = "success"

__all__ = ["MANIFEST", "SUCCESS", "Progress", "Pull", "Pulls", "Watch"]


class Spawn(Protocol):
    """Starts a process of this program's Python."""

    def __call__(self, protocol: ProcessProtocol, arguments: list[str]) -> IProcessTransport:
        """Return its transport."""


@define(eq=False)
class Watch:
    """One who waits for a pull."""

    _leave: Callable[["Watch"], None]
    _unseen: list[Progress | ApiError] = field(factory=list, init=False)
    _waiting: Deferred[Progress] | None = field(default=None, init=False)

    def next(self) -> Deferred[Progress]:
        """Fire with what is new, once there is something; the last is of status `success`. Fails with an ApiError.

        Cancelling it loses nothing.
        """
        waiting: Deferred[Progress] = Deferred(self._forget)
        self._waiting = waiting
        self._hand_over()
        return waiting

    def leave(self) -> None:
        """Wait no longer."""
        self._leave(self)

    def tell(self, news: Progress | ApiError) -> None:
        """Take note of how far the pull is, or of why it failed."""
        if self._unseen and isinstance(news, Progress) and news.digest:
            last = self._unseen[-1]
            if isinstance(last, Progress) and last.digest == news.digest:
                self._unseen.pop()
        self._unseen.append(news)
        self._hand_over()

    def _forget(self, _: object) -> None:
        self._waiting = None

    def _hand_over(self) -> None:
        if self._waiting is None or not self._unseen:
            return
        waiting, self._waiting = self._waiting, None
        news = self._unseen.pop(0)
        if isinstance(news, ApiError):
            waiting.errback(news)
        else:
            waiting.callback(news)


class Pull(ProcessProtocol):
    """One pull's process, and who watches it. `over` is called when the process has ended."""

    def __init__(self, name: str, clock: IReactorTime, over: Callable[[], object]) -> None:
        self.name = name
        self._waiting: list[Deferred[None]] = []
        self._ended = False
        self._clock = clock
        self._over = over
        self._watches: list[Watch] = []
        self._latest: Progress | None = None
        self._outcome: ApiError | None = None
        self._succeeded = False
        self._line = b""
        self._errors = b""
        self._patience: IDelayedCall | None = None

    @property
    def ending(self) -> bool:
        """Whether it was told to end."""
        return self._patience is not None

    def end(self) -> Deferred[None]:
        """Fire when the process has ended."""
        waiting: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        return waiting

    def watch(self) -> Watch:
        """Have somebody else watch."""
        watch = Watch(self._leave)
        self._watches.append(watch)
        if self._latest is not None:
            watch.tell(self._latest)
        return watch

    def stop(self, reason: ApiError) -> None:
        """Have the process end."""
        if self._outcome is None:
            self._outcome = reason
        self._signal("TERM")
        if self._patience is None:
            self._patience = self._clock.callLater(PATIENCE, self.kill)

    def kill(self) -> None:
        """Make the process end, now."""
        self._signal("KILL")

    def connectionMade(self) -> None:
        """Say nothing to the process, ever."""
        assert self.transport is not None, "a process that runs has a transport"
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        """Pass on what the process tells."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._tell(line)
        if len(self._line) > MOST_LINE:
            self.stop(PullFailed(f"{self.name}: the pull's process tells what cannot be understood"))

    def errReceived(self, data: bytes) -> None:
        """Keep the end of what it complains of, for the log."""
        self._errors = (self._errors + data)[-MOST_ERRORS:]

    def processEnded(self, reason: Failure) -> None:
        """Tell everybody how it ended."""
        self._ended = True
        if self._patience is not None and self._patience.active():
            self._patience.cancel()
        self._over()
        if not self._succeeded:
            if self._outcome is None:
                log.error("Pulling {name} ended: {reason}\n{errors}", name=self.name, reason=reason, errors=self._said)
            outcome = self._outcome or PullFailed(
                f"{self.name} could not be pulled; the server's log has the reason. Try again: it goes on from there."
            )
            self._tell_all(outcome)
        while self._waiting:
            self._waiting.pop(0).callback(None)

    @property
    def _said(self) -> str:
        return self._errors.decode("utf-8", "replace")

    def _tell(self, line: bytes) -> None:
        try:
            told = json.loads(line)
            if "error" in told:
                self._outcome = KINDS.get(told["kind"], PullFailed)(str(told["error"]), param="model")
                return
            self._latest = Progress(**told)
        except (ValueError, TypeError, KeyError) as error:
            log.error("Pulling {name} says {line!r:.200}: {error}", name=self.name, line=line, error=error)
            return
        self._succeeded = self._latest.status == SUCCESS
        self._tell_all(self._latest)

    def _tell_all(self, news: Progress | ApiError) -> None:
        # Whoever is told the last there is to tell leaves at once.
        for watch in list(self._watches):
            watch.tell(news)

    def _leave(self, watch: Watch) -> None:
        if watch in self._watches:
            self._watches.remove(watch)
        if not self._watches and not self._succeeded and not self._ended:
            log.info("Nobody waits for {name} any more: pulling it ends", name=self.name)
            self.stop(ServiceUnavailable("Everybody who waited for this had left", retry_after=1))

    def _signal(self, name: str) -> None:
        try:
            assert self.transport is not None, "a process that runs has a transport"
            self.transport.signalProcess(name)
        except ProcessExitedAlready:
            # Its end will be told in a moment.
            pass


@define(eq=False)
class Pulls:
    """The pulls under way, into one models folder."""

    _models: Path
    _spawn: Spawn
    _clock: IReactorTime
    _running: dict[tuple[str, int | None], Pull] = field(factory=dict, init=False)
    _stopping: bool = field(default=False, init=False)

    async def watch(self, name: str, quantize: int | None = None) -> Watch:
        """Begin to pull a model, or watch it being pulled; one that is just being ended is waited for.

        Raises InvalidRequest, RateLimitExceeded, ServiceUnavailable.
        """
        wanted = repository(name)
        if wanted is None:
            raise InvalidRequest(
                f"model: {name[:200]!r} names no model: it must be organisation/name as on the Hugging Face hub, or a "
                "short name such as smollm2:135m",
                param="model",
            )
        if quantize is not None and quantize not in QUANTIZATIONS:
            known = ", ".join(map(str, QUANTIZATIONS))
            raise InvalidRequest(f"quantize: must be one of {known} bits, not {quantize}", param="quantize")
        key = (wanted.lower(), quantize)
        while (pull := self._running.get(key)) is not None and pull.ending:
            await pull.end()
        if self._stopping:
            raise _stopping()
        if pull is None:
            if len(self._running) >= MOST_PULLS:
                raise RateLimitExceeded(
                    f"{len(self._running)} models are being pulled, and {MOST_PULLS} are the most at once",
                    retry_after=RETRY_AFTER,
                )
            pull = Pull(wanted, self._clock, partial(self._running.pop, key))
            arguments = ["-P", "-m", "osaurus.library.pull_process", wanted, str(self._models)]
            try:
                self._spawn(pull, arguments + (["--quantize", str(quantize)] if quantize is not None else []))
            except OSError as error:
                raise PullFailed(f"No process could be started to pull {wanted}: {error}") from error
            self._running[key] = pull
        return pull.watch()

    def stop(self) -> Deferred[list[tuple[bool, None]]]:
        """End all; fires when every process has ended."""
        self._stopping = True
        ends = [pull.end() for pull in self._running.values()]
        for pull in list(self._running.values()):
            pull.stop(_stopping())
        # Whoever gives up waiting has no use for the errors of that.
        return DeferredList(ends, consumeErrors=True)

    def kill(self) -> None:
        """Make all end, now."""
        for pull in list(self._running.values()):
            pull.kill()


def _stopping() -> ServiceUnavailable:
    return ServiceUnavailable("The server is stopping", retry_after=5)
