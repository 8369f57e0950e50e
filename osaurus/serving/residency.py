"""How long models stay in memory: while they are in use, and for some time afterwards.

Loading takes seconds and memory is scarce, so a model stays for its `keep_alive` after the last answer from it, as in
Ollama: what the last request asked for, or else the setting. Models that were asked for when the server started stay
until somebody says otherwise.
"""

import math
from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime


@define
class _Use:
    """How a model is used. `keep_alive` is in seconds."""

    users: int = 0
    keep_alive: float = 0.0
    expiry: IDelayedCall | None = None


@define(eq=False)
class Residency:
    """Calls `unload` with the name of each model that was not in use for its time. Durations are in seconds."""

    _clock: IReactorTime
    _unload: Callable[[str], object]
    _keep_alive: float
    _uses: dict[str, _Use] = field(factory=dict, init=False)
    _staying: set[str] = field(factory=set, init=False)

    def apply(self, keep_alive: float) -> None:
        """Have models stay for so long from their next use on."""
        self._keep_alive = keep_alive

    def begin(self, name: str, keep_alive: float | None = None) -> None:
        """Take note that a model is in use, by one user more. `keep_alive` None means the usual."""
        use = self._uses.setdefault(name, _Use())
        self._cancel(use)
        use.users += 1
        use.keep_alive = self._usual(name) if keep_alive is None else keep_alive

    def end(self, name: str) -> None:
        """Take note that one user has no more use for it."""
        use = self._uses.get(name)
        if use is None:
            return
        use.users -= 1
        if use.users > 0:
            return
        if use.keep_alive == 0:
            self._expire(name)
        elif math.isfinite(use.keep_alive):
            use.expiry = self._clock.callLater(use.keep_alive, self._expire, name)

    def remaining(self, name: str) -> float:
        """Return how many more seconds a model stays if nobody uses it from now on."""
        use = self._uses.get(name)
        if use is None:
            return 0.0
        return use.keep_alive if use.expiry is None else max(0.0, use.expiry.getTime() - self._clock.seconds())

    def keep(self, name: str) -> None:
        """Have a model stay, unless a request has its own `keep_alive`."""
        self._staying.add(name)

    def stop(self) -> None:
        """Unload nothing any more."""
        for use in self._uses.values():
            self._cancel(use)
        self._uses.clear()

    def _usual(self, name: str) -> float:
        return math.inf if name in self._staying else self._keep_alive

    def _expire(self, name: str) -> None:
        del self._uses[name]
        self._unload(name)

    def _cancel(self, use: _Use) -> None:
        if use.expiry is not None and use.expiry.active():
            use.expiry.cancel()
        use.expiry = None
