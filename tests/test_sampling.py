"""The sampler against a plain reference that sorts."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osaurus.chat import Sampling
from osaurus.engine.backend import Backend

Floats = npt.NDArray[np.float64]

VOCABULARY = 50


@pytest.fixture(autouse=True)
def _prepared(backend: Backend) -> None:
    """MLX may be imported."""


def reference(logits: Floats, sampling: Sampling) -> set[int]:
    """The tokens that pass the filters, most probable first until each filter has enough."""
    tempered = logits / sampling.temperature
    probabilities = np.exp(tempered - tempered.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    kept = set(order.tolist())
    if sampling.top_k is not None:
        kept &= set(order[: sampling.top_k].tolist())
    if sampling.top_p < 1:
        needed = int(np.searchsorted(np.cumsum(probabilities[order]), sampling.top_p)) + 1
        kept &= set(order[:needed].tolist())
    if sampling.min_p is not None:
        kept &= {token for token in kept if probabilities[token] >= sampling.min_p * probabilities.max()}
    return kept | {int(order[0])}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0.1, 8),
    temperature=st.floats(0.1, 2),
    top_p=st.floats(0.01, 1),
    top_k=st.none() | st.integers(1, VOCABULARY + 5),
    min_p=st.none() | st.floats(0.001, 0.9),
)
def test_the_filters_keep_what_the_reference_keeps(
    seed: int, spread: float, temperature: float, top_p: float, top_k: int | None, min_p: float | None
) -> None:
    import mlx.core as mx

    from osaurus.engine.sampling import filtered

    logits = np.random.default_rng(seed).normal(size=VOCABULARY) * spread
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    kept = np.isfinite(np.array(filtered(mx.array(logits[None], dtype=mx.float32), sampling)))[0]
    # A filter's edge may fall within float32's rounding of a token; then either answer is right.
    nudged = [
        reference(logits, Sampling(temperature=temperature, top_p=top_p * (1 + nudge), top_k=top_k, min_p=min_p))
        for nudge in (-1e-5, 0, 1e-5)
    ]
    found = set(np.flatnonzero(kept).tolist())
    assert min(nudged, key=len) <= found <= max(nudged, key=len)


def test_temperature_zero_takes_the_best() -> None:
    import mlx.core as mx

    from osaurus.engine.sampling import make_sampler

    logits = mx.array([[0.1, 3.0, 2.9], [5.0, 1.0, 4.9]])
    assert make_sampler(Sampling(temperature=0))(logits).tolist() == [1, 0]


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, -1, -(2**63)])
def test_a_seed_repeats_the_draws(seed: int) -> None:
    import mlx.core as mx

    from osaurus.engine.sampling import make_sampler

    logits = mx.zeros((1, 1000))
    draws = []
    for _ in range(2):
        sampler = make_sampler(Sampling(temperature=1, top_p=1, seed=seed))
        draws.append([sampler(logits).item() for _ in range(8)])
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 4


def test_draws_follow_the_distribution() -> None:
    import mlx.core as mx

    from osaurus.engine.sampling import make_sampler

    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    sampler = make_sampler(Sampling(temperature=1, top_p=0.9, seed=3))
    rows = mx.broadcast_to(mx.log(mx.array(probabilities)), (20_000, 4))
    counts = np.bincount(np.array(sampler(rows)), minlength=4) / 20_000
    expected = np.array([0.5, 0.3, 0.15, 0]) / 0.95
    # Five standard deviations of a count.
    tolerance = 5 * math.sqrt(0.25 / 20_000)
    assert np.abs(counts - expected).max() < tolerance
    assert counts[3] == 0
