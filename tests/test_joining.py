"""Joined caches are what mlx_lm's own merging makes of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("backend")

HEADS, DIMENSIONS = 2, 4
lengths = st.lists(st.integers(0, 300), min_size=1, max_size=3)


def alone(length: int, seed: int) -> Any:
    """A row that has read so many tokens."""
    import mlx.core as mx
    from mlx_lm.models.cache import KVCache

    cache = KVCache()
    if length:
        cache.update_and_fetch(
            mx.random.normal((1, HEADS, length, DIMENSIONS), key=mx.random.key(seed)),
            mx.random.normal((1, HEADS, length, DIMENSIONS + 1), key=mx.random.key(seed + 1)),
        )
    return cache


def row(cache: Any, index: int) -> tuple[Any, Any, int]:
    """What one row holds."""
    single = cache.extract(index)
    return single.keys.tolist(), single.values.tolist(), cache.offset.tolist()[index]


@given(st.none() | lengths, lengths)
def test_every_row_holds_what_it_held(before: list[int] | None, joining: list[int]) -> None:
    from mlx_lm.models.cache import BatchKVCache

    from osaurus.engine.joining import join

    first = None if before is None else join(None, [alone(length, 2 * n) for n, length in enumerate(before)])
    rows = [alone(length, 100 + 2 * n) for n, length in enumerate(joining)]
    joined = join(first, rows)
    expected = BatchKVCache.merge(rows)
    if before is not None:
        start = BatchKVCache.merge([alone(length, 2 * n) for n, length in enumerate(before)])
        start.extend(expected)
        expected = start
    assert joined.size() == expected.size()
    assert joined.left_padding.tolist() == expected.left_padding.tolist()
    assert joined.offset.tolist() == expected.offset.tolist()
    if joined.size():
        for index in range(len(before or []) + len(joining)):
            assert row(joined, index) == row(expected, index)


def test_the_next_token_has_its_place() -> None:
    import mlx.core as mx

    from osaurus.engine.joining import join

    joined = join(None, [alone(256, 0), alone(3, 2)])
    buffer = joined.keys.shape
    joined.update_and_fetch(mx.ones((2, HEADS, 1, DIMENSIONS)), mx.ones((2, HEADS, 1, DIMENSIONS + 1)))
    assert joined.keys.shape == buffer == (2, HEADS, 512, DIMENSIONS)


def test_other_caches_are_joined_by_their_own_class() -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import RotatingKVCache

    from osaurus.engine.joining import join

    rotating = RotatingKVCache(max_size=8)
    rotating.update_and_fetch(mx.ones((1, HEADS, 5, DIMENSIONS)), mx.ones((1, HEADS, 5, DIMENSIONS)))
    joined = join(join(None, [rotating]), [RotatingKVCache(max_size=8)])
    assert joined.left_padding.tolist() == [0, 5]
