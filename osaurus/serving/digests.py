"""Digests of models' files, which take as long to compute as the disk takes to read them.

The difficulty is that nothing ends a thread that reads, whereas whoever asked may have left: if the next began to hash
then, clients that come and go would fill the pool, whose threads read requests as well. So hashing belongs to its model
and not to who asks. All who ask for one model wait for the same thread, and it goes on without them: what it has read
is known from then on. Lists of all models are hashed one model after the other. A model that is in memory does not wait
behind those: it has a place of its own, so that two threads hash at most.
"""

from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredLock
from twisted.python.failure import Failure

from ..chat import InstalledModel
from .blocking import Blocking


@define(eq=False)
class _Hashing:
    """A model whose files are read, or will be: in which lines it stands, and who waits for it."""

    model: InstalledModel
    begun: bool = False
    lines: list[DeferredLock] = field(factory=list)
    waiting: list[Deferred[str]] = field(factory=list)


@define(eq=False)
class Digests:
    """Has `compute`, which blocks and may raise OSError, told of each model by one thread at a time."""

    _compute: Callable[[InstalledModel], str]
    _blocking: Blocking
    _hashing: dict[InstalledModel, _Hashing] = field(factory=dict, init=False)
    _all: DeferredLock = field(factory=DeferredLock, init=False)
    _in_memory: DeferredLock = field(factory=DeferredLock, init=False)

    def of(self, model: InstalledModel, *, in_memory: bool = False) -> Deferred[str]:
        """Return the digest of a model's files, of one in memory sooner. Fails with OSError if one cannot be read.

        Cancelling it leaves the hashing alone.
        """
        hashing = self._hashing.get(model)
        if hashing is None:
            hashing = self._hashing[model] = _Hashing(model)
        waiting: Deferred[str] = Deferred(hashing.waiting.remove)
        hashing.waiting.append(waiting)
        line = self._in_memory if in_memory else self._all
        if not hashing.begun and line not in hashing.lines:
            hashing.lines.append(line)
            line.run(self._hash, hashing)
        return waiting

    def _hash(self, hashing: _Hashing) -> Deferred[None] | None:
        """Fire when the thread has ended, for the next in line; at once if it was the other line's turn before."""
        if hashing.begun:
            return None
        hashing.begun = True
        return self._blocking(self._compute, hashing.model).addBoth(self._tell, hashing)

    def _tell(self, digest: str | Failure, hashing: _Hashing) -> None:
        del self._hashing[hashing.model]
        while hashing.waiting:
            waiting = hashing.waiting.pop(0)
            if isinstance(digest, Failure):
                waiting.errback(digest)
            else:
                waiting.callback(digest)
