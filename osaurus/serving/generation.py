"""What answers one request while it is being generated, as the reactor sees it."""

from collections.abc import Callable
from itertools import chain

from attrs import define, field
from twisted.internet.defer import Deferred

from ..chat import Completion, Event, Failed, Finished, Piece, Started, gathered
from .account import Account

Listener = Callable[[Event], None]


@define(eq=False)
class Generation:
    """Passes the events of a request's answers to whoever listens, and ends them when nobody wants them any more.

    A request has one answer, or several `choices`, of which each event tells its own. The first event is Started or
    Failed; the last is Failed, or the Finished of the last choice. Nothing comes after `cancel`.
    """

    _on_cancel: Callable[["Generation"], None]
    _on_park: Callable[["Generation", bool], None]
    choices: int = 1
    account: Account = field(factory=lambda: Account(()))
    _finished: int = field(default=0, init=False)
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

    def completions(self) -> Deferred[list[Completion]]:
        """Fires with every whole answer, in order, or fails with the ApiError; cancelling it ends them."""
        whole: Deferred[list[Completion]] = Deferred(lambda _: self.cancel())
        pieces: list[list[Piece]] = [[] for _ in range(self.choices)]
        ends: dict[int, Finished] = {}

        def gather(event: Event) -> None:
            match event:
                case Piece():
                    pieces[event.choice].append(event)
                case Finished():
                    ends[event.choice] = event
                    if len(ends) == self.choices:
                        whole.callback([_completion(pieces[choice], ends[choice]) for choice in range(self.choices)])
                case Failed(error):
                    whole.errback(error)

        self.listen(gather)
        return whole

    def deliver(self, event: Event) -> None:
        """Take the next event; from the scheduler and the runner."""
        if self.over:
            return
        self.account.hear(event)
        self._finished += isinstance(event, Finished)
        self.over = isinstance(event, Failed) or self._finished == self.choices
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


def _completion(pieces: list[Piece], finished: Finished) -> Completion:
    text = "".join(piece.text for piece in pieces)
    reasoning = "".join(piece.reasoning for piece in pieces)
    scores = chain.from_iterable(piece.scores for piece in pieces)
    calls = gathered(chain.from_iterable(piece.calls for piece in pieces))
    return Completion(text, finished, tuple(scores), reasoning, calls)
