"""Counting what rows read and write, on the engine thread, where it happens.

The difficulty is that this is in the step loop of everybody's stream: it may cost a microsecond for a row in a step,
however many tokens it wrote. So numbers are added up in place, without a lock. Whoever asks for them (`counts`, on any
thread) copies them; what he sees of a step under way may be a part, and the next time he sees the rest. Nothing is
lost, since only one thread writes.

Rejected: to have the reactor observe events. It would take Python's lock from the engine for every row and step, and
events say when something was told, not when it was written; tokens whose text is held back have none.

A tally outlasts engines, so that its numbers only grow.
"""

from bisect import bisect_left
from collections.abc import Sequence

from attrs import define, field

from ..figures import BETWEEN_TOKENS, TO_FIRST_TOKEN, Durations, ModelCounts


@define(eq=False)
class Stopwatch:
    """Durations, counted in the intervals that end at these bounds. Everything in seconds."""

    _bounds: Sequence[float]
    _counts: list[int] = field(init=False)
    _total: float = field(default=0.0, init=False)

    @_counts.default
    def _make_counts(self) -> list[int]:
        return [0] * (len(self._bounds) + 1)

    def took(self, seconds: float, times: int = 1) -> None:
        """Count something that took so long, so many times."""
        self._counts[bisect_left(self._bounds, seconds)] += times
        self._total += seconds * times

    def durations(self) -> Durations:
        """Return what was counted by now."""
        return Durations(tuple(self._counts), self._total)


@define(eq=False)
class ModelTally:
    """What is counted of one model."""

    name: str
    _prompt_tokens: int = field(default=0, init=False)
    _cached_tokens: int = field(default=0, init=False)
    _completion_tokens: int = field(default=0, init=False)
    _hits: int = field(default=0, init=False)
    _misses: int = field(default=0, init=False)
    _to_first_token: Stopwatch = field(factory=lambda: Stopwatch(TO_FIRST_TOKEN), init=False)
    _between_tokens: Stopwatch = field(factory=lambda: Stopwatch(BETWEEN_TOKENS), init=False)

    def began(self, prompt: int, cached: int) -> None:
        """Count a row that begins to read a prompt of so many tokens, of which so many were read before."""
        self._prompt_tokens += prompt
        self._cached_tokens += cached
        if cached:
            self._hits += 1
        else:
            self._misses += 1

    def wrote_first(self, tokens: int, waited: int) -> None:
        """Count the first tokens of a row, so many nanoseconds after it was asked for."""
        self._completion_tokens += tokens
        self._to_first_token.took(waited / 1e9)

    def wrote(self, tokens: int, since: int | None) -> None:
        """Count further tokens of a row, so many nanoseconds after those before; None if it stood still meanwhile.

        Several that come at once share the time that they took.
        """
        self._completion_tokens += tokens
        if since is not None:
            self._between_tokens.took(since / (1e9 * tokens), tokens)

    def counts(self) -> ModelCounts:
        """Return what was counted by now."""
        return ModelCounts(
            name=self.name,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
            prefix_hits=self._hits,
            prefix_misses=self._misses,
            to_first_token=self._to_first_token.durations(),
            between_tokens=self._between_tokens.durations(),
        )


@define(eq=False)
class Tally:
    """What is counted, of all models."""

    _models: dict[str, ModelTally] = field(factory=dict, init=False)

    def of(self, name: str) -> ModelTally:
        """Return what is counted of a model."""
        return self._models.setdefault(name, ModelTally(name))

    def counts(self) -> list[ModelCounts]:
        """Return what was counted by now; on any thread."""
        # The list is made at once, and so is each copy of counts.
        return [model.counts() for model in list(self._models.values())]
