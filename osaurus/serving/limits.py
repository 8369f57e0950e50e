"""How many requests a model takes: so many at once, and so many a minute.

A request that would be one too many is refused at once, and told when to come again: what waits in line without end
costs memory, and its client has gone by the time it is served.
"""

import math
from collections import deque

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

from ..chat import InvalidRequest, RateLimitExceeded

MINUTE = 60.0
# Answers to one request where nothing else limits them.
MOST_CHOICES = 128


@define
class _Account:
    """One model's requests. Times in seconds: when those under way came, when those of the last minute were let in."""

    held: dict[object, float] = field(factory=dict)
    recent: deque[float] = field(factory=deque)
    usual: float = 1.0
    """How long a request takes, as an average that follows what happens."""


@define(eq=False)
class Limits:
    """Keeps count of the requests for each model. A limit of 0 is none."""

    _clock: IReactorTime
    _concurrent: int
    _per_minute: int
    _accounts: dict[str, _Account] = field(factory=dict, init=False)

    def apply(self, concurrent: int, per_minute: int) -> None:
        """Have other limits from now on. Whoever is in stays."""
        self._concurrent, self._per_minute = concurrent, per_minute

    def enter(self, model: str, request: object, choices: int = 1, prompts: int = 1) -> None:
        """Let a request in that asks for so many answers to so many prompts. Raises RateLimitExceeded, InvalidRequest.

        As many answers as prompts are one to each; then it is the prompts that are too many.
        """
        most = self._concurrent or MOST_CHOICES
        if choices > most:
            if choices == prompts:
                raise InvalidRequest(f"prompt: at most {most} can be answered at once, not {prompts}", param="prompt")
            raise InvalidRequest(
                f"n: at most {most} answers can be asked for at once, prompts times n, not {choices}", param="n"
            )
        account = self._accounts.setdefault(model, _Account())
        now = self._clock.seconds()
        if self._concurrent and len(account.held) >= self._concurrent:
            oldest = min(account.held.values())
            raise RateLimitExceeded(
                f"{model} is answering {len(account.held)} requests, and {self._concurrent} are the most at once",
                retry_after=_whole_seconds(account.usual - (now - oldest)),
            )
        while account.recent and now - account.recent[0] >= MINUTE:
            account.recent.popleft()
        if self._per_minute and len(account.recent) >= self._per_minute:
            raise RateLimitExceeded(
                f"{model} was asked {len(account.recent)} times within a minute, and {self._per_minute} are the most",
                retry_after=_whole_seconds(MINUTE - (now - account.recent[0])),
            )
        account.held[request] = now
        if self._per_minute:
            account.recent.append(now)

    def leave(self, model: str, request: object) -> None:
        """Take note that a request is over; one that was never let in is none."""
        account = self._accounts.get(model)
        began = account.held.pop(request, None) if account is not None else None
        if account is not None and began is not None:
            account.usual += (self._clock.seconds() - began - account.usual) / 4


def _whole_seconds(seconds: float) -> int:
    return max(1, math.ceil(seconds))
