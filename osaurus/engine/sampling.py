"""Drawing the next token of every row of a batch, exactly, with one wait for the device.

The difficulty is that filters such as `top_p` are defined on the sorted vocabulary, and sorting tens of thousands of
probabilities for every token of every row costs more than the model does. But nearly always the few most probable
tokens hold what the filters keep. So the device finds each row's `CANDIDATES` best tokens and the sum over all
(`mx.argpartition`, `mx.logsumexp`); the host sorts those few, filters and draws. A row whose filters reach beyond its
candidates is drawn from the whole vocabulary instead: the same function, given all tokens. So the result never depends
on the shortcut. Without filters the sum over all is known, and what is drawn nearly always falls on a candidate.

The order is bias and penalties, temperature, then the filters on the tempered distribution, as in Transformers, vLLM
and Ollama. Each row has a random state of its own: what it draws depends on its seed, not on its company.

Rejected: sorting on the device (seventy milliseconds a step for sixteen rows on two CPU cores); finding the threshold
by bisection, which needs no wait for the device but many passes over the vocabulary (five milliseconds a row).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from attrs import define, field

from ..chat import Sampling
from .penalties import Penalties, penalise, penalties

# Where osaurus-cpu is built for this machine.
try:
    from . import kernels
except ImportError:
    kernels = None  # type: ignore[assignment]

# How many are asked for first, and where they do not do before all are sorted.
CANDIDATES = 64
MORE_CANDIDATES = 2048
LEAST_TEMPERATURE = 1e-4

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


def kept(probabilities: Floats, sampling: Sampling, whole: bool) -> int | None:
    """Return how many of the most probable tokens the filters keep; at least one.

    `probabilities` are in descending order; they need not be `whole`, that is of the whole vocabulary. None if the
    filters may keep tokens beyond them.
    """
    limits = [len(probabilities)] if whole else []
    if sampling.top_k is not None and sampling.top_k <= len(probabilities):
        limits.append(sampling.top_k)
    if sampling.top_p < 1:
        reached = int(np.searchsorted(np.cumsum(probabilities), sampling.top_p)) + 1
        if reached <= len(probabilities):
            limits.append(reached)
    if sampling.min_p is not None:
        probable = int(np.count_nonzero(probabilities >= sampling.min_p * probabilities[0]))
        if probable < len(probabilities):
            limits.append(probable)
    return max(min(limits), 1) if limits else None


@define
class RowSampler:
    """How one row draws: its random state, and what it changes in the logits."""

    sampling: Sampling
    penalties: Penalties | None = None
    greedy: bool = field(init=False)
    _random: np.random.Generator = field(init=False)
    _drawn: float | None = field(default=None, init=False)
    """What was drawn for a token that was not among the candidates."""

    @greedy.default
    def _is_greedy(self) -> bool:
        # Logits divided by less overflow float32, and the best token has all the probability anyway.
        return self.sampling.temperature < LEAST_TEMPERATURE

    @_random.default
    def _make_random(self) -> np.random.Generator:
        seed = self.sampling.seed
        return np.random.default_rng(None if seed is None else seed % 2**64)

    @property
    def plain(self) -> bool:
        """Whether it takes the most probable token, whatever was written."""
        return self.greedy and self.penalties is None

    @classmethod
    def after(cls, prompt: Sequence[int], sampling: Sampling) -> "RowSampler":
        """Return the sampler of a row that has read this prompt."""
        return cls(sampling, penalties(sampling, prompt))

    def wrote(self, tokens: Iterable[int]) -> None:
        """Take into account that these tokens have been written."""
        if self.penalties is not None:
            for token in tokens:
                self.penalties.wrote(token)

    def draw(self, logits: Floats, total: float, whole: bool) -> int | None:
        """Return the place of the token drawn from `logits`, tempered and in descending order.

        `total` is the logarithm of the sum of exponentials over the whole vocabulary. None as of `kept`.
        """
        probabilities = np.exp(logits.astype(np.float64) - total)
        # What has no probability at all, for it may not come, is never drawn, whatever rounding does.
        possible = max(int(np.count_nonzero(probabilities)), 1)
        if possible == 1:
            # Where there is no choice nothing is drawn: a token may as well have been written unasked.
            return 0
        if self.sampling.unfiltered:
            return self._draw_of_all(np.cumsum(probabilities[:possible]), whole)
        number = kept(probabilities, self.sampling, whole)
        if number is None:
            return None
        cumulative = np.cumsum(probabilities[: min(number, possible)])
        place = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return min(place, len(cumulative) - 1)

    def _draw_of_all(self, cumulative: Floats, whole: bool) -> int | None:
        """Return the place drawn where all tokens together are 1; None if it is beyond those that are given."""
        drawn = self._random.random() if self._drawn is None else self._drawn
        place = int(np.searchsorted(cumulative, drawn, side="right"))
        if place < len(cumulative) or whole:
            self._drawn = None
            # They may be less than 1 by what rounding took, in all millionths: the first is no worse for it.
            return place if place < len(cumulative) else 0
        self._drawn = drawn
        return None


def sample(
    logits: mx.array, rows: Sequence[RowSampler], allowed: Sequence[npt.NDArray[np.bool_] | None] = ()
) -> list[int]:
    """Draw a token for each row of logits, shape (rows, vocabulary).

    Where some rows may not have every token, `allowed` says for each row which it may have, at least as many as there
    are logits; None for all.
    """
    logits = penalise(logits, [row.penalties for row in rows])
    if any(mask is not None for mask in allowed):
        width = logits.shape[-1]
        everything = np.ones(width, np.bool_)
        masks = np.stack([everything if mask is None else mask[:width] for mask in allowed])
        logits = mx.where(mx.array(masks), logits, -mx.inf)
    return _sample(logits, rows)


def _sample(logits: mx.array, rows: Sequence[RowSampler]) -> list[int]:
    if all(row.greedy for row in rows):
        return [int(token) for token in greatest(logits)]
    # Greedy rows go along at temperature 1: their best candidate is the same.
    temperatures = mx.array([1.0 if row.greedy else row.sampling.temperature for row in rows], dtype=mx.float32)
    logits = logits.astype(mx.float32)
    columns = zip(rows, *_find(logits, temperatures, CANDIDATES), logits, temperatures, strict=True)
    return [_draw(*column) for column in columns]


def greatest(logits: mx.array) -> Integers:
    """Return the most probable token of each row of logits, shape (rows, vocabulary)."""
    if kernels is None or mx.default_device().type != mx.DeviceType.cpu:
        return np.array(mx.argmax(logits, axis=-1))
    return kernels.argmax(logits.astype(mx.float32))


def _find(logits: mx.array, temperatures: mx.array, count: int) -> tuple[Floats, Integers, Floats]:
    """Return each row's so many highest tempered logits in any order, which they are, and the logarithm of their sum.

    The sum is that of the exponentials of the whole row. Logits: (rows, vocabulary), temperatures: (rows,).
    """
    count = min(count, logits.shape[-1])
    if mx.default_device().type != mx.DeviceType.cpu:
        return _candidates(logits / temperatures[:, None], count)
    if kernels is not None:
        return kernels.candidates(logits, temperatures, count)
    return _candidates_on_cpu(logits / temperatures[:, None], count)


def _candidates(tempered: mx.array, count: int) -> tuple[Floats, Integers, Floats]:
    """Return the same from logits that have been tempered."""
    candidates = mx.argpartition(tempered, -count, axis=-1)[:, -count:]
    best = mx.take_along_axis(tempered, candidates, axis=-1)
    totals = mx.logsumexp(tempered, axis=-1)
    mx.eval(candidates, best, totals)
    return np.array(best), np.array(candidates), np.array(totals)


def _candidates_on_cpu(tempered: mx.array, count: int) -> tuple[Floats, Integers, Floats]:
    """Return the same. NumPy partitions and exponentiates several times as fast as MLX there, and nothing is copied."""
    values = np.array(tempered, copy=False)
    candidates = np.argpartition(values, -count, axis=-1)[:, -count:]
    highest = values.max(axis=-1, keepdims=True)
    totals = np.log(np.exp(values - highest).sum(axis=-1)) + highest[:, 0]
    return np.take_along_axis(values, candidates, axis=-1), candidates, totals


def _draw(
    row: RowSampler, best: Floats, candidates: Integers, total: float, logits: mx.array, temperature: mx.array
) -> int:
    """Draw from a row's candidates, or from more of its logits if they do not do, or from all."""
    width = logits.shape[-1]
    # Of equals the first of the vocabulary comes first, in whatever order they were found.
    order = np.lexsort((candidates, -best))
    if row.greedy:
        return int(candidates[order[0]])
    place = row.draw(best[order], total, len(best) == width)
    if place is None and width > MORE_CANDIDATES:
        [best], [candidates], _ = _find(logits[None], temperature[None], MORE_CANDIDATES)
        order = np.lexsort((candidates, -best))
        place = row.draw(best[order], total, False)
    if place is not None:
        return int(candidates[order[place]])
    everything = np.array(logits / temperature)
    order = np.argsort(-everything, kind="stable")
    place = row.draw(everything[order], total, True)
    assert place is not None, "the whole vocabulary is always enough"
    return int(order[place])
