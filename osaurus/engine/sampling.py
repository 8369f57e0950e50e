"""Drawing the next token from the model's distribution, exactly.

Every filter keeps the tokens above a threshold of log-probability, so the work is to find thresholds. That of
`min_p` is arithmetic. Those of `top_k` and `top_p` are the highest values that leave enough tokens, or enough
probability, at or above them; bisection finds them in passes over the vocabulary that need no answer on the way, so
that the step being built never waits for the device. `BISECTIONS` halvings of the interval reach the resolution of
float32, and the lower end, which always leaves enough, is taken. Tokens of equal probability are kept or dropped
together.

Rejected: sorting the vocabulary (no faster, and its cost grows faster with the vocabulary); sorting only the best few
with a full sort when those hold too little (much faster, but the check makes every step wait for the device, so it
needs a step loop that is not one step ahead).

The order is temperature first, then the filters on the tempered distribution, as in Transformers, vLLM and Ollama.
"""

import math
import secrets
from collections.abc import Callable

import mlx.core as mx

from ..chat import Sampling

BISECTIONS = 26

Sampler = Callable[[mx.array], mx.array]


def make_sampler(sampling: Sampling) -> Sampler:
    """Return what draws one token for each row of log-probabilities, shape (rows, vocabulary).

    Greedy rows share one sampler, so that a batch of them is drawn in one call; any other carries its own random
    state and serves one row of a batch, whose draws so depend on its seed alone.
    """
    return greedy if sampling.temperature == 0 else RandomSampler(sampling)


def greedy(logprobs: mx.array) -> mx.array:
    """Take the most probable token."""
    return mx.argmax(logprobs, axis=-1)


class RandomSampler:
    """Draws with a random state of its own."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._key = mx.random.key(seed % 2**64)

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Draw one token for each row."""
        self._key, key = mx.random.split(self._key)
        return mx.random.categorical(filtered(logprobs, self._sampling), key=key)


def filtered(logprobs: mx.array, sampling: Sampling) -> mx.array:
    """Return the tempered log-probabilities (rows, vocabulary), those of filtered tokens being -inf."""
    logprobs = _tempered(logprobs, mx.array(sampling.temperature))
    vocabulary = logprobs.shape[-1]
    thresholds = []
    if sampling.top_k is not None and sampling.top_k < vocabulary:
        thresholds.append(_top_k_threshold(logprobs, mx.array(sampling.top_k)))
    if sampling.top_p < 1:
        thresholds.append(_top_p_threshold(logprobs, mx.array(sampling.top_p)))
    if sampling.min_p:
        thresholds.append(mx.max(logprobs, axis=-1, keepdims=True) + math.log(sampling.min_p))
    return _above(logprobs, thresholds) if thresholds else logprobs


# Parameters go in as arrays: each new constant in a compiled function would be another run of the C++ compiler.


@mx.compile
def _tempered(logprobs: mx.array, temperature: mx.array) -> mx.array:
    logprobs = logprobs.astype(mx.float32) / temperature
    return logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)


@mx.compile
def _top_k_threshold(logprobs: mx.array, k: mx.array) -> mx.array:
    return _highest_threshold(logprobs, mx.ones_like(logprobs), k, mx.min(logprobs, axis=-1, keepdims=True))


@mx.compile
def _top_p_threshold(logprobs: mx.array, p: mx.array) -> mx.array:
    # All tokens less probable than this hold less than 1 - p together, so none of them is needed.
    floor = mx.log((1 - p) / logprobs.shape[-1])
    return _highest_threshold(logprobs, mx.exp(logprobs), p, mx.broadcast_to(floor, (*logprobs.shape[:-1], 1)))


def _highest_threshold(logprobs: mx.array, weights: mx.array, enough: mx.array, lower: mx.array) -> mx.array:
    """Return, for each row, the highest threshold at or above which `weights` sum to at least `enough`."""
    upper = mx.max(logprobs, axis=-1, keepdims=True)

    def holds(threshold: mx.array) -> mx.array:
        return mx.sum(mx.where(logprobs >= threshold, weights, 0), axis=-1, keepdims=True) >= enough

    lower = mx.where(holds(upper), upper, mx.minimum(lower, upper))
    for _ in range(BISECTIONS):
        middle = (lower + upper) / 2
        enough_above = holds(middle)
        lower, upper = mx.where(enough_above, middle, lower), mx.where(enough_above, upper, middle)
    return lower


def _above(logprobs: mx.array, thresholds: list[mx.array]) -> mx.array:
    # Rounding must never leave a row without its best token.
    best = mx.max(logprobs, axis=-1, keepdims=True)
    for threshold in thresholds:
        logprobs = mx.where(logprobs >= mx.minimum(threshold, best), logprobs, -mx.inf)
    return logprobs
