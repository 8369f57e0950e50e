"""What blocks is run on the threads of the second pool, never on the reactor; and no model has all of them.

Schemas take seconds to compile, and so may chat templates to render, of which those of one model are rendered one by
one. Whatever more is asked of such a model waits here, where it holds no thread that requests for others need.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore

T = TypeVar("T")

# Half of the threads; two may be waiting for schemas to be compiled.
AT_ONCE = 3


class Blocking(Protocol):
    """Runs a function that may block on a thread of the second pool, never on the reactor."""

    def __call__(self, function: Callable[..., T], *args: Any) -> Deferred[T]:
        """Fire with what the function returns, or fail with what it raises."""


@define(eq=False)
class Turns:
    """Runs functions for models, for each model so many at once, in the order in which they came."""

    _blocking: Blocking
    _lines: dict[str, DeferredSemaphore] = field(factory=dict, init=False)

    def run(self, model: str, function: Callable[..., T], *args: Any) -> Deferred[T]:
        """Fire with what the function returns, or fail with what it raises.

        Cancelling it takes it out of the line. What has begun goes on and keeps its turn until it is over: nothing ends
        a thread, and clients that come and go would have all of them.
        """
        line = self._lines.setdefault(model, DeferredSemaphore(AT_ONCE))
        turn = line.acquire()
        outcome: Deferred[T] = Deferred(lambda _: turn.cancel())

        def begin(_: DeferredSemaphore) -> None:
            self._blocking(function, *args).addBoth(end)

        def end(result: Any) -> None:
            line.release()
            if not outcome.called:
                # What failed is a Failure here, and there.
                outcome.callback(result)

        turn.addCallbacks(begin, lambda failure: failure.trap(CancelledError))
        return outcome
