"""An answer on its way to a client, at the pace the client takes it.

The consumer (the HTTP request) tells when its buffer is full. The row goes on meanwhile: it is bounded by its
max_tokens, and so is what waits here; the thread that generates and the row's neighbours never wait for a client.
"""

from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from zope.interface import implementer

from ..chat import Event, Failed, Finished
from .generation import Generation


@implementer(IPushProducer)
@define(eq=False)
class TokenStream:
    """Writes what `encode` makes of each event of a generation to a consumer."""

    _generation: Generation
    _encode: Callable[[Event], bytes]
    _consumer: IConsumer
    _waiting: list[bytes] = field(factory=list, init=False)
    _paused: bool = field(default=False, init=False)
    _gone: bool = field(default=False, init=False)
    _complete: bool = field(default=False, init=False)
    _done: Deferred[None] = field(init=False)

    @_done.default
    def _make_done(self) -> Deferred[None]:
        return Deferred(lambda _: self._generation.cancel())

    def run(self) -> Deferred[None]:
        """Begin; fires when everything is written. Cancelling it ends the answer."""
        self._consumer.registerProducer(self, True)
        self._generation.listen(self._event)
        return self._done

    def pauseProducing(self) -> None:
        """Keep what comes until the consumer takes more."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Write what was kept, and what comes."""
        self._paused = False
        self._flush()

    def stopProducing(self) -> None:
        """The consumer is gone: end the answer. Who waits for `run` learns of it from the request, not from here."""
        self._gone = True
        self._waiting.clear()
        self._generation.cancel()

    def _event(self, event: Event) -> None:
        self._waiting.append(self._encode(event))
        self._complete = isinstance(event, (Finished, Failed))
        self._flush()

    def _flush(self) -> None:
        if self._paused or self._gone or self._done.called:
            return
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._consumer.write(b"".join(waiting))
        if self._complete:
            self._consumer.unregisterProducer()
            self._done.callback(None)
