"""Bias and penalties against a plain reference that counts from the beginning."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osaurus.chat import Sampling
from osaurus.engine.backend import Backend

VOCABULARY = 12

tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=12)
samplings = st.builds(
    Sampling,
    repetition_penalty=st.just(1.0) | st.floats(0.5, 2),
    presence_penalty=st.just(0.0) | st.floats(-2, 2),
    frequency_penalty=st.just(0.0) | st.floats(-2, 2),
    penalty_window=st.none() | st.integers(0, 8),
    bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100), max_size=4).map(
        lambda biases: tuple(biases.items())
    ),
)


@pytest.fixture(autouse=True)
def _prepared(backend: Backend) -> None:
    """MLX may be imported."""


def reference(logits: list[float], sampling: Sampling, prompt: list[int], answer: list[int]) -> list[float]:
    """The logits as the definitions say, one by one."""
    history = [(token, False) for token in prompt] + [(token, True) for token in answer]
    if sampling.penalty_window is not None:
        history = history[len(history) - min(sampling.penalty_window, len(history)) :]
    seen = {token for token, _ in history}
    written = Counter(token for token, was_written in history if was_written)
    changed = []
    for token, logit in enumerate(logits):
        logit += dict(sampling.bias).get(token, 0)
        if token in seen:
            logit = logit / sampling.repetition_penalty if logit > 0 else logit * sampling.repetition_penalty
        if written[token]:
            logit -= written[token] * sampling.frequency_penalty + sampling.presence_penalty
        changed.append(logit)
    return changed


@settings(max_examples=120, deadline=None)
@given(rows=st.lists(st.tuples(samplings, tokens, tokens), min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_each_row_of_a_batch_changes_as_the_reference_does(
    rows: list[tuple[Sampling, list[int], list[int]]], seed: int
) -> None:
    import mlx.core as mx

    from osaurus.engine.penalties import penalise, penalties

    logits = np.random.default_rng(seed).normal(size=(len(rows), VOCABULARY)).astype(np.float32) * 4
    histories = []
    for sampling, prompt, answer in rows:
        history = penalties(sampling, prompt)
        for token in answer:
            if history is not None:
                history.wrote(token)
        histories.append(history)
    found = np.array(penalise(mx.array(logits), histories))
    expected = [reference(row.tolist(), *case) for row, case in zip(logits, rows, strict=True)]
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(repetition_penalty=1.5, penalty_window=0)])
def test_a_row_that_changes_nothing_keeps_no_account(sampling: Sampling) -> None:
    from osaurus.engine.penalties import penalties

    assert penalties(sampling, [1, 2, 3]) is None


def test_what_a_row_draws_counts_against_it_at_the_next_draw() -> None:
    import mlx.core as mx

    from osaurus.engine.sampling import RowSampler, sample

    logits = mx.array([[3.0, 2.5, 2.0], [3.0, 2.5, 2.0]])
    penalised = RowSampler.after([], Sampling(temperature=0, presence_penalty=2))
    plain = RowSampler.after([], Sampling(temperature=0))
    draws = []
    for _ in range(3):
        draws.append(sample(logits, [penalised, plain]))
        penalised.wrote(draws[-1][:1])
    assert draws == [[0, 0], [1, 0], [2, 0]]


def test_a_bias_bans_and_forces_tokens() -> None:
    import mlx.core as mx

    from osaurus.engine.sampling import RowSampler, sample

    logits = mx.array([[3.0, 2.5, 2.0]] * 2)
    banned = RowSampler.after([], Sampling(temperature=0, bias=((0, -100.0),)))
    forced = RowSampler.after([], Sampling(temperature=1, seed=1, bias=((2, 100.0),)))
    assert sample(logits, [banned, forced]) == [1, 2]
