"""Log probabilities against NumPy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osaurus.engine.backend import Backend

VOCABULARY = 30


@pytest.fixture(autouse=True)
def _prepared(backend: Backend) -> None:
    """MLX may be imported."""


@settings(max_examples=60, deadline=None)
@given(wanted=st.lists(st.none() | st.integers(0, 20), min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_rows_that_asked_get_the_log_probabilities_of_the_model(wanted: list[int | None], seed: int) -> None:
    import mlx.core as mx

    from osaurus.engine.scores import score

    random = np.random.default_rng(seed)
    logits = random.normal(size=(len(wanted), VOCABULARY)).astype(np.float32) * 5
    tokens = random.integers(0, VOCABULARY, len(wanted)).tolist()
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=-1, keepdims=True))
    for row, count, token, found in zip(expected, wanted, tokens, score(mx.array(logits), tokens, wanted), strict=True):
        if count is None:
            assert found is None
            continue
        assert found is not None
        assert found.token == token
        assert found.logprob == pytest.approx(row[token], abs=1e-4)
        assert [place for place, _ in found.best] == np.argsort(-row)[:count].tolist()
        assert [value for _, value in found.best] == pytest.approx(np.sort(row)[::-1][:count].tolist(), abs=1e-4)


def test_impossible_tokens_have_a_finite_score() -> None:
    import mlx.core as mx

    from osaurus.engine.scores import LEAST, score

    [found] = score(mx.array([[0.0, -math.inf, -math.inf]]), [1], [3])
    assert found is not None
    assert found.logprob == LEAST
    assert found.best == ((0, 0.0), (1, LEAST), (2, LEAST))
