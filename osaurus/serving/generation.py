"""One answer being generated, as the reactor sees it."""

from collections.abc import Callable
from itertools import chain

from attrs import define, field
from twisted.internet.defer import Deferred

from ..chat import Completion, Event, Failed, Finished, Piece, Started

Listener = Callable[[Event], None]


@define(eq=False)
class Generation:
    """Passes one answer's events to whoever listens, and ends the answer when nobody wants it any more.

    The first event is Started or Failed; the last is Finished or Failed. Nothing comes after `cancel`.
    """

    _on_cancel: Callable[["Generation"], None]
    _on_park: Callable[["Generation", bool], None]
    _started: Deferred[Started] = field(init=False)
    _listener: Listener | None = field(default=None, init=False)
    _unheard: list[Event] = field(factory=list, init=False)
    over: bool = field(default=False, init=False)

    @_started.default
    def _make_started(self) -> Deferred[Started]:
        return Deferred(lambda _: self.cancel())

    def started(self) -> Deferred[Started]:
        """Fires once the prompt is admitted, or fails with the ApiError; cancelling it ends the answer."""
        return self._started

    def listen(self, listener: Listener) -> None:
        """Hear every event after Started; those that came already are told at once."""
        self._listener = listener
        unheard, self._unheard = self._unheard, []
        for event in unheard:
            listener(event)

    def completion(self) -> Deferred[Completion]:
        """Fires with the whole answer, or fails with the ApiError; cancelling it ends the answer."""
        whole: Deferred[Completion] = Deferred(lambda _: self.cancel())
        pieces: list[Piece] = []

        def gather(event: Event) -> None:
            match event:
                case Piece():
                    pieces.append(event)
                case Finished():
                    text = "".join(piece.text for piece in pieces)
                    whole.callback(Completion(text, event, tuple(chain.from_iterable(p.scores for p in pieces))))
                case Failed(error):
                    whole.errback(error)

        self.listen(gather)
        return whole

    def deliver(self, event: Event) -> None:
        """Take the next event; from the scheduler and the runner."""
        if self.over:
            return
        self.over = isinstance(event, (Finished, Failed))
        if not self._started.called:
            if isinstance(event, Started):
                self._started.callback(event)
                return
            if isinstance(event, Failed):
                self._started.errback(event.error)
                return
        if self._listener is None:
            self._unheard.append(event)
        else:
            self._listener(event)

    def cancel(self) -> None:
        """End the answer; nothing more is told. Without effect on one that is over."""
        if not self.over:
            self.over = True
            self._on_cancel(self)

    def park(self) -> None:
        """Have nothing more generated until `unpark`; what is under way still comes."""
        if not self.over:
            self._on_park(self, True)

    def unpark(self) -> None:
        """Have the answer go on."""
        if not self.over:
            self._on_park(self, False)
