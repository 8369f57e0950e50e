"""The log probabilities of tokens, for rows that asked for them.

They are the model's own: of its distribution before temperature, filters, penalties and bias, so that they can be
compared between requests. Only finite numbers come out; JSON has no others.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from attrs import frozen

# In place of minus infinity, as OpenAI writes it.
LEAST = -9999.0


@frozen
class Scored:
    """The token that a row drew with its log probability, and the most probable tokens, best first."""

    token: int
    logprob: float
    best: tuple[tuple[int, float], ...]


def score(logits: mx.array, tokens: Sequence[int], wanted: Sequence[int | None]) -> list[Scored | None]:
    """Score the token that each row drew from its logits, shape (rows, vocabulary).

    `wanted` says how many of the most probable tokens each row asked for, None where it asked for no score.
    """
    places = [place for place, count in enumerate(wanted) if count is not None]
    result: list[Scored | None] = [None] * len(tokens)
    if not places:
        return result
    rows = logits[mx.array(places)].astype(mx.float32)
    totals = mx.logsumexp(rows, axis=-1, keepdims=True)
    drawn = mx.take_along_axis(rows, mx.array([[tokens[place]] for place in places]), axis=-1) - totals
    most = max(1, max(wanted[place] or 0 for place in places))
    candidates = mx.argpartition(rows, -most, axis=-1)[:, -most:]
    best = mx.take_along_axis(rows, candidates, axis=-1) - totals
    mx.eval(drawn, candidates, best)
    for place, own, names, values in zip(
        places, _finite(drawn)[:, 0], np.array(candidates), _finite(best), strict=True
    ):
        order = np.lexsort((names, -values))[: wanted[place]]
        alternatives = tuple((int(names[index]), float(values[index])) for index in order)
        result[place] = Scored(tokens[place], float(own), alternatives)
    return result


def _finite(values: mx.array) -> npt.NDArray[np.float32]:
    finite: npt.NDArray[np.float32] = np.nan_to_num(np.array(values), nan=LEAST, neginf=LEAST, posinf=0.0).clip(
        LEAST, 0.0
    )
    return finite
