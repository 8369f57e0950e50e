"""The sampler against a plain reference that sorts."""

import math
from typing import Any

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
    from osaurus.engine.sampling import kept

    logits = np.random.default_rng(seed).normal(size=VOCABULARY) * spread
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    tempered = logits / temperature
    probabilities = np.exp(tempered - tempered.max())
    probabilities = np.sort(probabilities / probabilities.sum())[::-1]
    expected = len(reference(logits, sampling))
    assert kept(probabilities, sampling, whole=True) == expected
    for few in (1, 5, VOCABULARY - 1):
        # What is found among a few must be what is found among all, or nothing.
        assert kept(probabilities[:few], sampling, whole=False) in (None, expected)


@pytest.mark.parametrize("vocabulary", [40, 1000, 5000])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 1])
def test_rows_draw_the_same_from_a_few_candidates_as_from_everything(
    vocabulary: int, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    from osaurus.engine import sampling as module

    logits = mx.array(np.random.default_rng(0).normal(size=(6, vocabulary)) * 3)

    def draws() -> list[list[int]]:
        rows = [module.RowSampler(Sampling(temperature=1, top_p=top_p, seed=seed)) for seed in range(6)]
        return [module.sample(logits, rows) for _ in range(10)]

    few = draws()
    monkeypatch.setattr(module, "CANDIDATES", vocabulary)
    assert draws() == few


def test_temperature_zero_takes_the_best_in_any_company() -> None:
    import mlx.core as mx

    from osaurus.engine.sampling import RowSampler, sample

    logits = mx.array([[0.1, 3.0, 2.9], [5.0, 1.0, 4.9], [0.0, 0.0, 9.0]])
    greedy, random = RowSampler(Sampling(temperature=0)), RowSampler(Sampling(temperature=0.1))
    assert sample(logits, [greedy, greedy, greedy]) == [1, 0, 2]
    assert sample(logits, [greedy, greedy, random]) == [1, 0, 2]
    # Of equals it is the first.
    ties = mx.array([[0.0, 7.0, 7.0, 1.0] * 100] * 2)
    assert sample(ties, [greedy, greedy]) == [1, 1]
    assert sample(ties, [greedy, random])[0] == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6, 1e-3])
def test_a_tiny_temperature_takes_the_best(temperature: float) -> None:
    import mlx.core as mx

    from osaurus.engine.sampling import RowSampler, sample

    logits = mx.array([[0.1, 30.0, 29.0], [5.0, 1.0, 4.0]])
    rows = [RowSampler(Sampling(temperature=temperature)), RowSampler(Sampling(temperature=1))]
    assert sample(logits, rows)[0] == 1


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, -1, -(2**63)])
def test_a_seed_repeats_the_draws(seed: int) -> None:
    import mlx.core as mx

    from osaurus.engine.sampling import RowSampler, sample

    logits = mx.zeros((1, 1000))
    draws = []
    for _ in range(2):
        sampler = RowSampler(Sampling(temperature=1, top_p=1, seed=seed))
        draws.append([sample(logits, [sampler])[0] for _ in range(8)])
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 4


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_where_there_is_no_choice_nothing_is_drawn(top_p: float) -> None:
    import mlx.core as mx

    from osaurus.engine.sampling import RowSampler, sample

    logits, only = mx.zeros((1, VOCABULARY)), np.arange(64) == 7

    def drawn(masks: list[npt.NDArray[np.bool_] | None]) -> list[int]:
        sampler = RowSampler(Sampling(temperature=1, top_p=top_p, seed=5))
        return [token for mask in masks for token in sample(logits, [sampler], [mask])]

    first, second = drawn([None, None])
    assert drawn([only, None, only, only, None]) == [7, first, 7, 7, second]


def test_draws_follow_the_distribution() -> None:
    import mlx.core as mx

    from osaurus.engine.sampling import RowSampler, sample

    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = mx.log(mx.array(probabilities))[None]
    sampler = RowSampler(Sampling(temperature=1, top_p=0.9, seed=3))
    times = 4000
    counts = np.bincount([sample(logits, [sampler])[0] for _ in range(times)], minlength=4) / times
    # Five standard deviations of a count.
    assert np.abs(counts - np.array([0.5, 0.3, 0.15, 0]) / 0.95).max() < 5 * math.sqrt(0.25 / times)
    assert counts[3] == 0


def test_without_filters_draws_follow_the_whole_distribution() -> None:
    import mlx.core as mx

    from osaurus.engine.sampling import CANDIDATES, RowSampler, sample

    # Half of the probability is that of many tokens beyond the candidates.
    others = 1000
    logits = mx.log(mx.array([0.3, 0.2] + [0.5 / others] * others))[None]
    assert others > 2 * CANDIDATES
    sampler = RowSampler(Sampling(temperature=1, top_p=1, seed=5))
    times = 4000
    drawn = np.array([sample(logits, [sampler])[0] for _ in range(times)])
    assert abs((drawn == 0).mean() - 0.3) < 5 * math.sqrt(0.25 / times)
    assert abs((drawn > 1).mean() - 0.5) < 5 * math.sqrt(0.25 / times)
    assert drawn.max() > 0.9 * others


def test_without_filters_the_whole_vocabulary_is_hardly_ever_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    from osaurus.engine import sampling as module

    sorted_: list[int] = []
    argsort: Any = np.argsort

    def count(values: Any, **options: Any) -> Any:
        sorted_.append(len(values))
        return argsort(values, **options)

    logits = mx.array(np.random.default_rng(0).normal(size=(4, 20_000)) * 3)
    rows = [module.RowSampler(Sampling(temperature=1, top_p=1, seed=seed)) for seed in range(4)]
    monkeypatch.setattr(np, "argsort", count)
    for _ in range(20):
        module.sample(logits, rows)
    assert len(sorted_) < 8


def test_what_may_not_come_is_not_drawn_without_filters() -> None:
    import mlx.core as mx

    from osaurus.engine.sampling import RowSampler, sample

    logits = mx.array(np.random.default_rng(0).normal(size=(1, 1000)))
    allowed = np.zeros(1024, np.bool_)
    allowed[[3, 500, 999]] = True
    sampler = RowSampler(Sampling(temperature=2, top_p=1, seed=1))
    assert {sample(logits, [sampler], [allowed])[0] for _ in range(200)} == {3, 500, 999}
