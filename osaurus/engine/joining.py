"""The caches of several rows as one: their room, how rows join, and how they are lined up at their ends.

mlx_lm's `merge` and `extend` join every class of cache, but copy what is there four times over: into a batch of one,
behind padding, beside the others, and into a buffer with room for one more token. Behind a long prompt that was a gap
of five steps in everybody's stream. So plain keys and values are put together here, in one copy. Where rows read, or
drafted, unlike many tokens, mlx_lm moves each by looking up every element, which on a CPU took as long as eight steps;
the kernels move float16 keys and values where they are, or copy them once where a pass still needs them.

Everything here runs on the thread that owns MLX.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache

# Where osaurus-cpu is built for this machine.
try:
    from .packed import osaurus_cpu
except ImportError:
    osaurus_cpu = None


def join(writing: Any, joining: Sequence[Any]) -> Any:
    """Return the cache of one layer for the rows of `writing`, if there are any, and behind them those of `joining`.

    Rows are aligned at their ends; shorter ones have padding in front.
    """
    if any(type(cache) is not KVCache for cache in joining) or all(cache.keys is None for cache in joining):
        merged = type(joining[0]).merge(list(joining))
        if writing is not None:
            writing.extend(merged)
        return merged if writing is None else writing
    lengths = [cache.offset for cache in joining]
    if writing is None and len(joining) == 1:
        alone = BatchKVCache([0])
        alone.keys, alone.values, alone.offset = joining[0].keys, joining[0].values, mx.array(lengths)
        alone._idx = lengths[0]
        return alone
    before, past = (0, 0) if writing is None else (writing.left_padding.size, writing.size())
    end = max(past, *lengths)

    def together(several: mx.array | None, single: list[mx.array | None]) -> mx.array:
        shaped = next(array for array in single if array is not None)
        # As mlx_lm grows them: in whole steps, with room for the next token at least.
        capacity = (end // BatchKVCache.step + 1) * BatchKVCache.step
        whole = mx.zeros((before + len(single), shaped.shape[1], capacity, shaped.shape[3]), shaped.dtype)
        if several is not None:
            whole[:before, :, end - past : end] = several[:, :, :past]
        for row, (array, length) in enumerate(zip(single, lengths, strict=True), before):
            if array is not None:
                whole[row : row + 1, :, end - length : end] = array[:, :, :length]
        return whole

    joined = BatchKVCache([end - length for length in lengths])
    joined.keys = together(None if writing is None else writing.keys, [cache.keys for cache in joining])
    joined.values = together(None if writing is None else writing.values, [cache.values for cache in joining])
    joined.offset = mx.array(lengths)
    if writing is not None:
        joined.left_padding = mx.concatenate([writing.left_padding + (end - past), joined.left_padding])
        joined.offset = mx.concatenate([writing.offset, joined.offset])
    joined._idx = end
    return joined


def line_up(caches: Sequence[BatchKVCache], beyond: Sequence[int]) -> None:
    """Take back what each row has read last, so many tokens, and let all rows end at the same place.

    What is taken back becomes padding in front.
    """
    if not any(beyond):
        return
    on_cpu = osaurus_cpu is not None and mx.default_device().type == mx.DeviceType.cpu
    for cache in caches:
        if on_cpu and cache.keys.dtype == cache.values.dtype == mx.float16:
            cache.keys = osaurus_cpu.push(cache.keys, list(beyond), cache.size())
            cache.values = osaurus_cpu.push(cache.values, list(beyond), cache.size())
            padding = mx.array(list(beyond))
            cache.offset, cache.left_padding = cache.offset - padding, cache.left_padding + padding
        else:
            cache.prepare(right_padding=list(beyond))
            cache.finalize()


def make_room(cache: KVCache | BatchKVCache, length: int) -> None:
    """Have room in a cache that is not empty for so many tokens, in steps as it would make them itself.

    mlx_lm lets caches grow step by step, and copies all that is there each time: behind a long prompt's thousand tokens
    that took as long as several steps.
    """
    missing = -(-length // cache.step) * cache.step - cache.keys.shape[2]
    if missing > 0:
        padding = [(0, 0), (0, 0), (0, missing), (0, 0)]
        cache.keys, cache.values = mx.pad(cache.keys, padding), mx.pad(cache.values, padding)
