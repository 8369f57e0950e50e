"""An answer on its way to a client, at the pace the client takes it.

The consumer (the HTTP request) tells when its buffer is full. The row goes on for a while, so that a client that is
merely slow loses no time; when more than `MOST_WAITING` bytes wait here it is parked, and goes on when the client takes
more. The thread that generates and the row's neighbours never wait for a client. One that takes nothing at all for
`LONGEST_PAUSE` is dropped.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from ..chat import Event, Failed, Finished
from .generation import Generation

# In bytes, and in seconds.
MOST_WAITING = 2**16
LONGEST_PAUSE = 120.0
LONGEST_QUIET = 10.0

T = TypeVar("T")


async def patiently(awaited: Awaitable[T], fill: Callable[[], object], clock: IReactorTime) -> T:
    """Return what is awaited, or raise what it does; `fill` each time that takes another `LONGEST_QUIET`."""
    filling = LoopingCall(fill)
    filling.clock = clock
    filling.start(LONGEST_QUIET, now=False)
    try:
        return await awaited
    finally:
        filling.stop()


@implementer(IPushProducer)
@define(eq=False)
class TokenStream:
    """Writes what `encode` makes of each event of a generation to a consumer; `drop` ends the connection.

    Where nothing is said for `LONGEST_QUIET`, since a prompt is long or memory scarce, `filler` is written.
    """

    _generation: Generation
    _encode: Callable[[Event], bytes]
    _consumer: IConsumer
    _clock: IReactorTime
    _drop: Callable[[], object]
    _filler: Callable[[], bytes]
    _waiting: list[bytes] = field(factory=list, init=False)
    _patience: IDelayedCall | None = field(default=None, init=False)
    _parked: bool = field(default=False, init=False)
    _quiet: IDelayedCall | None = field(default=None, init=False)
    _gone: bool = field(default=False, init=False)
    _ended: int = field(default=0, init=False)
    _complete: bool = field(default=False, init=False)
    _done: Deferred[None] = field(init=False)

    @_done.default
    def _make_done(self) -> Deferred[None]:
        return Deferred(lambda _: self.stopProducing())

    def run(self) -> Deferred[None]:
        """Begin; fires when everything is written. Cancelling it ends the answer."""
        self._consumer.registerProducer(self, True)
        self._quiet = self._clock.callLater(LONGEST_QUIET, self._fill)
        self._generation.listen(self._event)
        return self._done

    def pauseProducing(self) -> None:
        """Keep what comes until the consumer takes more."""
        if self._patience is None and not self._gone:
            self._patience = self._clock.callLater(LONGEST_PAUSE, self._drop)

    def resumeProducing(self) -> None:
        """Write what was kept, and what comes."""
        self._no_longer_paused()
        self._flush()
        if self._parked:
            self._parked = False
            self._generation.unpark()

    def stopProducing(self) -> None:
        """The consumer is gone: end the answer. Who waits for `run` learns of it from the request, not from here."""
        self._gone = True
        self._end_of_quiet()
        self._no_longer_paused()
        self._waiting.clear()
        self._generation.cancel()

    def _event(self, event: Event) -> None:
        said = self._encode(event)
        if said and self._quiet is not None and self._quiet.active():
            self._quiet.reset(LONGEST_QUIET)
        self._waiting.append(said)
        self._ended += isinstance(event, Finished)
        self._complete = isinstance(event, Failed) or self._ended == self._generation.choices
        self._flush()
        # Again, if need be: a row that does not write yet cannot be parked.
        if sum(map(len, self._waiting)) > MOST_WAITING:
            self._parked = True
            self._generation.park()

    def _fill(self) -> None:
        """Say something where nothing was said for a while, so that nobody takes the connection for dead."""
        self._quiet = self._clock.callLater(LONGEST_QUIET, self._fill)
        if not self._waiting and self._patience is None:
            self._consumer.write(self._filler())

    def _end_of_quiet(self) -> None:
        if self._quiet is not None and self._quiet.active():
            self._quiet.cancel()

    def _no_longer_paused(self) -> None:
        if self._patience is not None and self._patience.active():
            self._patience.cancel()
        self._patience = None

    def _flush(self) -> None:
        if self._patience is not None or self._gone or self._done.called:
            return
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._consumer.write(b"".join(waiting))
        if self._complete:
            self._end_of_quiet()
            self._consumer.unregisterProducer()
            self._done.callback(None)
