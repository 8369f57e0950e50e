"""Joined caches are what mlx_lm's own merging makes of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("backend")

HEADS, DIMENSIONS = 2, 4
lengths = st.lists(st.integers(0, 300), min_size=1, max_size=3)


def alone(length: int, seed: int, kind: str = "float32") -> Any:
    """A row that has read so many tokens."""
    import mlx.core as mx
    from mlx_lm.models.cache import KVCache

    cache = KVCache()
    if length:
        cache.update_and_fetch(
            mx.random.normal((1, HEADS, length, DIMENSIONS), key=mx.random.key(seed)).astype(getattr(mx, kind)),
            mx.random.normal((1, HEADS, length, DIMENSIONS + 1), key=mx.random.key(seed + 1)).astype(getattr(mx, kind)),
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


# The kernels keep float16.
@given(
    kind=st.sampled_from(["float16", "float32"]),
    rows=st.lists(st.tuples(st.integers(0, 270), st.integers(0, 9)), min_size=1, max_size=4),
)
def test_rows_that_are_lined_up_hold_all_but_what_is_taken_back(kind: str, rows: list[tuple[int, int]]) -> None:
    from osaurus.engine.joining import join, line_up

    # Each read so many tokens, and some that are taken back; shorter ones have padding in front.
    caches = [alone(length + beyond + 1, 2 * n, kind) for n, (length, beyond) in enumerate(rows)]
    joined = join(None, caches)
    before = [row(joined, n) for n in range(len(rows))]
    line_up([joined], [beyond for _, beyond in rows])
    for n, (length, _) in enumerate(rows):
        keys, values, offset = row(joined, n)
        assert offset == length + 1
        assert keys == [[head[: length + 1] for head in before[n][0][0]]]
        assert values == [[head[: length + 1] for head in before[n][1][0]]]


@pytest.mark.parametrize(("length", "room"), [(1, 256), (256, 256), (257, 512), (1000, 1024)])
def test_room_is_made_in_whole_steps_and_what_is_there_stays(length: int, room: int) -> None:
    from osaurus.engine.joining import make_room

    cache = alone(200, 0)
    before = [part.tolist() for part in cache.keys_and_values()]
    make_room(cache, length)
    assert cache.keys.shape[2] == cache.values.shape[2] == room
    assert cache.offset == 200
    assert [part.tolist() for part in cache.keys_and_values()] == before
