"""The CPU kernels: each against float64, and networks that are computed by them against the same in plain MLX.

Where osaurus-cpu is not built there is nothing to test. Activations are rounded to eight bits for products with
quantised weights; a product may be off by what that rounding can do, and nothing more.
"""

import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from osaurus.engine.backend import Backend

from .conftest import RECURRENT_CONFIG, ROTATING_CONFIG, TINY_CONFIG, write_tiny_model
from .desk import PROMPTS, another

Array = npt.NDArray[np.float64]

SETS = ("portable", "avx2", "avx512", "avx512vnni", "neon")

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture
def whole(backend: Backend) -> Iterator[Any]:
    """The kernels; which instruction set they use is set back afterwards."""
    cpu = pytest.importorskip("osaurus_cpu", exc_type=ImportError)
    best = cpu.kernels()
    yield cpu
    cpu.use(best)


@pytest.fixture(params=SETS)
def cpu(request: pytest.FixtureRequest, whole: Any) -> Any:
    """The kernels, forced to an instruction set that this processor has."""
    if request.param not in whole.available():
        pytest.skip(f"no {request.param} here")
    return forced(whole, request.param)


def forced(whole: Any, name: str) -> Any:
    """Return the kernels, using an instruction set; the portable one in the place of one that is not here."""
    whole.use(name if name in whole.available() else "portable")
    return whole


@pytest.fixture
def kernels(backend: Backend) -> Any:
    """What installs the kernels in a network."""
    pytest.importorskip("osaurus_cpu", exc_type=ImportError)
    return import_module("osaurus.engine.kernels")


def normal(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def allowance(x: npt.NDArray[np.float32], dense: Array) -> Array:
    """What each product may be off by, activations being rounded to 1/127 of the greatest of 32; shape (rows, out)."""
    rows, columns = x.shape
    most = np.abs(x).reshape(rows, columns // 32, 32).max(-1)
    weight = np.abs(dense).reshape(len(dense), columns // 32, 32).sum(-1)
    bound: Array = 0.51 / 127 * most @ weight.T + 1e-5
    return bound


@QUICK
@given(
    name=st.sampled_from(SETS),
    seed=SEEDS,
    bits=st.sampled_from([2, 3, 4, 5, 6, 8]),
    group=st.sampled_from([32, 64, 128]),
    scales=st.sampled_from(["float16", "bfloat16", "float32"]),
    rows=st.integers(1, 40),
    out=st.integers(1, 70),
    groups=st.integers(1, 4),
    symmetric=st.booleans(),
)
def test_a_product_with_quantised_weights_is_right_and_its_rows_do_not_meet(
    whole: Any,
    name: str,
    seed: int,
    bits: int,
    group: int,
    scales: str,
    rows: int,
    out: int,
    groups: int,
    symmetric: bool,
) -> None:
    import mlx.core as mx

    cpu = forced(whole, name)
    weights = mx.array(normal(seed, out, group * groups)).astype(getattr(mx, scales))
    values, numbers, shifts = mx.quantize(weights, group, bits)
    middle = numbers * -(2 ** (bits - 1))
    if symmetric:
        shifts = middle
    mx.eval(values, numbers, shifts)
    packed = cpu.pack(values, numbers, shifts, bits, group)
    # The biases of symmetric weights of four and eight bits are not kept; a few groups may be so by chance.
    kept = 1 if bits in (4, 8) and mx.array_equal(shifts, middle).item() else 2
    tiles = -(-out // 16) * 16
    assert packed.packed.nbytes == tiles * groups * (group * (4 if bits <= 4 else 8) // 8 + kept * numbers.dtype.size)
    exact = mx.dequantize(values, numbers.astype(mx.float32), shifts.astype(mx.float32), group, bits)
    dense = np.array(exact).astype(float)
    x, bias = normal(seed + 1, rows, group * groups), normal(seed + 2, out)
    found = np.array(cpu.matmul(mx.array(x), packed, mx.array(bias)))
    assert (np.abs(found - (x.astype(float) @ dense.T + bias)) <= allowance(x, dense)).all()
    for row in range(rows):
        alone = np.array(cpu.matmul(mx.array(x[row : row + 1]), packed, mx.array(bias)))
        assert (alone[0] == found[row]).all()
    np.testing.assert_allclose(np.array(cpu.rows_of(packed, mx.array([0, out - 1, -1]))), dense[[0, -1, -1]], atol=1e-5)
    # Of several at once, each is what it is by itself.
    both = cpu.matmul_several(mx.array(x), [packed, packed], [mx.array(bias), None])
    assert (np.array(both[0]) == found).all()
    assert (np.array(both[1]) == np.array(cpu.matmul(mx.array(x), packed))).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_greatest_sums_there_can_be_do_not_overflow(cpu: Any, bits: int, symmetric: bool, sign: int) -> None:
    import mlx.core as mx

    words = mx.full((33, 64 * bits // 32), 2**32 - 1, mx.uint32)
    scales = mx.ones((33, 2), mx.float16)
    shifts = -(2.0 ** (bits - 1)) * scales if symmetric else mx.ones((33, 2), mx.float16)
    words, scales, shifts = map(mx.contiguous, (words, scales, shifts))
    mx.eval(words, scales, shifts)
    packed = cpu.pack(words, scales, shifts, bits, 32)
    weight = 2 ** (bits - 1) - 1 if symmetric else 2**bits
    for rows in (1, 8):
        # What is the greatest of its block is 127 or -127.
        found = np.array(cpu.matmul(mx.full((rows, 64), 127.0 * sign), packed))
        np.testing.assert_allclose(found, 64 * 127 * sign * weight, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_comes_out_as_no_number_and_stays_in_its_row(cpu: Any, value: float) -> None:
    import mlx.core as mx

    quantised = mx.quantize(mx.array(normal(0, 33, 64)), 32, 4)
    mx.eval(quantised)
    x = normal(1, 5, 64)
    x[3, 40] = value
    found = np.array(cpu.matmul(mx.array(x), cpu.pack(*quantised, 4, 32)))
    assert np.isnan(found[3]).all()
    assert np.isfinite(found[[0, 1, 2, 4]]).all()


def test_nothing_gives_nothing(cpu: Any) -> None:
    import mlx.core as mx

    quantised = mx.quantize(mx.array(normal(0, 33, 64)), 32, 4)
    mx.eval(quantised)
    packed = cpu.pack(*quantised, 4, 32)
    assert np.array(cpu.matmul(mx.zeros((0, 64)), packed)).shape == (0, 33)
    assert (np.array(cpu.matmul(mx.zeros((2, 64)), packed)) == 0).all()
    # So small that it has no reciprocal.
    assert (np.array(cpu.matmul(mx.full((2, 64), 1e-40), packed)) == 0).all()
    assert np.array(cpu.rms_norm(mx.zeros((0, 8)), None, 1e-5)).shape == (0, 8)


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_attention_of_nothing_is_nothing(cpu: Any, empty: int) -> None:
    import mlx.core as mx

    shape, kept = [2, 4, 3, 8], [2, 2, 5, 8]
    shape[empty] = 0
    if empty == 0:
        kept[0] = 0
    found = cpu.attention(mx.zeros(shape), mx.zeros(kept), mx.zeros(kept), 1.0)
    assert np.array(found).shape == tuple(shape)


@pytest.mark.parametrize("shape", [(0, 64), (5, 0), (0, 5, 64), (3, 0, 64)])
def test_weights_without_a_number_are_refused(cpu: Any, shape: tuple[int, ...]) -> None:
    import mlx.core as mx

    *before, columns = shape
    values, scales = mx.zeros((*before, columns // 8), mx.uint32), mx.zeros((*before, columns // 32))
    mx.eval(values, scales)
    with pytest.raises(ValueError, match="there must be weights"):
        cpu.pack(values, scales, scales, 4, 32)


def test_a_bias_may_lie_in_memory_as_it_likes(cpu: Any) -> None:
    import mlx.core as mx

    quantised = mx.quantize(mx.array(normal(0, 33, 64)), 32, 4)
    mx.eval(quantised)
    packed, x, numbers = cpu.pack(*quantised, 4, 32), mx.array(normal(1, 5, 64)), mx.array(normal(2, 66))
    for bias in (numbers[::2], numbers[32::-1], mx.broadcast_to(numbers[:1], (33,))):
        straight = mx.array(np.array(bias))
        assert mx.array_equal(cpu.matmul(x, packed, bias), cpu.matmul(x, packed, straight)).item()
        both = cpu.gated_matmul(x, packed, packed, "silu", bias, bias)
        assert mx.array_equal(both, cpu.gated_matmul(x, packed, packed, "silu", straight, straight)).item()


@QUICK
@given(
    name=st.sampled_from(SETS),
    seed=SEEDS,
    bits=st.sampled_from([4, 8]),
    rows=st.integers(1, 40),
    chosen=st.integers(1, 3),
    length=st.integers(1, 2),
)
def test_experts_are_those_that_each_row_names(
    whole: Any, name: str, seed: int, bits: int, rows: int, chosen: int, length: int
) -> None:
    import mlx.core as mx

    cpu = forced(whole, name)
    quantised = mx.quantize(mx.array(normal(seed, 5, 20, 64)), 32, bits)
    mx.eval(quantised)
    dense = np.array(mx.dequantize(*quantised, 32, bits)).astype(float)
    x = normal(seed + 1, rows, 1, length, 64)
    indices = np.random.default_rng(seed).integers(0, 5, (rows, chosen)).astype(np.uint32)
    found = np.array(cpu.gather_matmul(mx.array(x), cpu.pack(*quantised, bits, 32), mx.array(indices)))
    expected = np.einsum("rclk,rcok->rclo", np.broadcast_to(x, (rows, chosen, length, 64)), dense[indices])
    assert found.shape == expected.shape
    bounds = [allowance(x[row, 0], dense[indices[row, place]]) for row in range(rows) for place in range(chosen)]
    assert (np.abs(found - expected) <= np.array(bounds).reshape(expected.shape)).all()


@QUICK
@given(
    name=st.sampled_from(SETS),
    seed=SEEDS,
    batch=st.integers(1, 3),
    shared=st.integers(1, 4),
    heads=st.integers(1, 3),
    queries=st.integers(1, 80),
    past=st.integers(0, 90),
    width=st.integers(1, 130),
    half=st.booleans(),
    masking=st.sampled_from(["none", "causal", "window", "bool", "float"]),
    sunk=st.booleans(),
)
def test_attention_is_what_its_formula_says(
    whole: Any,
    name: str,
    seed: int,
    batch: int,
    shared: int,
    heads: int,
    queries: int,
    past: int,
    width: int,
    half: bool,
    masking: str,
    sunk: bool,
) -> None:
    import mlx.core as mx

    cpu = forced(whole, name)
    keys, random = queries + past, np.random.default_rng(seed)
    q, scale = normal(seed, batch, heads * shared, queries, width), width**-0.5
    k, v = normal(seed + 1, batch, heads, keys, width), normal(seed + 2, batch, heads, keys, width + 3)
    if half:
        k, v = k.astype(np.float16), v.astype(np.float16)
    shown = random.random((batch, 1, queries, keys)) < 0.6
    added = np.zeros(shown.shape)
    options: dict[str, Any] = {}
    if masking in ("causal", "window"):
        places = np.arange(keys) - np.arange(past, keys)[:, None]
        shown = np.broadcast_to((places <= 0) & (places > (-7 if masking == "window" else -keys)), shown.shape)
        options = {"causal": True, "window": 7 if masking == "window" else 0}
    elif masking == "bool":
        options = {"mask": mx.array(shown)}
    elif masking == "float":
        added = normal(seed + 3, *shown.shape).astype(float)
        options = {"mask": mx.array(np.where(shown, added, -np.inf).astype(np.float32))}
    else:
        shown = np.ones_like(shown)
    sinks = normal(seed + 4, heads * shared)
    if sunk:
        options["sinks"] = mx.array(sinks)
    # As networks have them: heads behind the length in memory.
    turned = mx.array(q.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    found = np.array(cpu.attention(turned, mx.array(k), mx.array(v), scale, **options))
    scores = q.astype(float) @ np.repeat(k, shared, 1).astype(float).swapaxes(2, 3) * scale + added
    weights = np.where(shown, np.exp(scores), 0)
    total = weights.sum(-1, keepdims=True) + (np.exp(sinks.astype(float))[:, None, None] if sunk else 0)
    expected = weights @ np.repeat(v, shared, 1).astype(float) / np.where(total == 0, 1, total)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_attention_behind_padding_is_exactly_that_without(cpu: Any) -> None:
    import mlx.core as mx

    for queries, padding in ((1, 37), (1, 64), (3, 1), (70, 20)):
        q, k, v = (mx.array(normal(seed, 2, heads, 90, 16)) for seed, heads in ((0, 6), (1, 2), (2, 2)))
        q = q[:, :, :queries]
        alone = cpu.attention(q, k, v, 0.25, causal=True)
        places = mx.arange(90 + padding)
        mask = (places >= padding) & (places - padding <= mx.arange(90 - queries, 90)[:, None])
        padded = [mx.pad(part, [(0, 0), (0, 0), (padding, 0), (0, 0)], constant_values=1) for part in (k, v)]
        assert (np.array(cpu.attention(q, *padded, 0.25, mask=mask)) == np.array(alone)).all()


@pytest.mark.parametrize("window", [0, 7, 70])
def test_attention_does_not_depend_on_how_a_prompt_is_cut(cpu: Any, window: int) -> None:
    import mlx.core as mx

    q, k, v = (mx.array(normal(seed, 1, heads, 150, 24)) for seed, heads in ((0, 6), (1, 2), (2, 2)))
    whole = np.array(cpu.attention(q, k, v, 0.25, causal=True, window=window))
    for begin, end in ((0, 1), (1, 3), (3, 40), (40, 149), (149, 150)):
        part = cpu.attention(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], 0.25, causal=True, window=window)
        assert (np.array(part) == whole[:, :, begin:end]).all()


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("queries", [2, 16, 20])
def test_a_number_that_is_none_stays_in_sight_in_attention(cpu: Any, heads: int, queries: int) -> None:
    import mlx.core as mx

    k, seeing = normal(1, 1, 1, 20, 8), queries // 2
    k[0, 0, 20 - queries + seeing, 3] = np.nan
    q, v = mx.array(normal(0, 1, heads, queries, 8)), mx.array(normal(2, 1, 1, 20, 8))
    found = np.array(cpu.attention(q, mx.array(k), v, 1.0, causal=True))
    assert np.isnan(found[:, :, seeing:]).all()
    assert np.isfinite(found[:, :, :seeing]).all()


def test_where_masks_leave_little_attention_is_what_is_left(cpu: Any) -> None:
    import mlx.core as mx

    least = float(np.finfo(np.float32).min)
    for queries in (1, 20):
        q, k, v = (mx.array(normal(seed, 1, 1, n, 8)) for seed, n in ((0, queries), (1, 30), (2, 30)))
        shape = (1, 1, queries, 30)
        assert (np.array(cpu.attention(q, k, v, 1.0, mask=mx.zeros(shape, mx.bool_))) == 0).all()
        assert (np.array(cpu.attention(q, k, v, 1.0, mask=mx.full(shape, -np.inf))) == 0).all()
        # What is hidden from nobody more than from others is seen by all.
        even = np.array(cpu.attention(q, k, v, 1.0, mask=mx.full(shape, least)))
        np.testing.assert_allclose(even, np.broadcast_to(np.array(v).mean(2, keepdims=True), even.shape), atol=2e-6)


@QUICK
@given(
    name=st.sampled_from(SETS),
    seed=SEEDS,
    half=st.integers(1, 40),
    extra=st.integers(0, 5),
    neighbours=st.booleans(),
    offset=st.sampled_from([0, 3, 255, 8191, 5_000_000]),
)
def test_rotation_is_by_the_angles_of_each_position(
    whole: Any, name: str, seed: int, half: int, extra: int, neighbours: bool, offset: int
) -> None:
    import mlx.core as mx

    cpu = forced(whole, name)
    frequencies = 10000.0 ** (-np.arange(half) / half)
    x = normal(seed, 2, 3, 4, 2 * half + extra)
    offsets = np.array([offset, -2], np.int32)
    found = np.array(cpu.rotate(cpu.Rotation(frequencies.tolist(), neighbours), mx.array(x), 0, mx.array(offsets)))
    angles = (offsets[:, None] + np.arange(4))[:, None, :, None] * frequencies
    cosines, sines = np.cos(angles), np.sin(angles)
    expected = x.astype(float)
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if neighbours else (slice(0, half), slice(half, 2 * half))
    )
    expected[..., first] = x[..., first] * cosines - x[..., second] * sines
    expected[..., second] = x[..., first] * sines + x[..., second] * cosines
    np.testing.assert_allclose(found, expected, atol=2e-6 * (1 + np.abs(x).max()))


@QUICK
@given(
    name=st.sampled_from(SETS),
    seed=SEEDS,
    rows=st.integers(1, 5),
    width=st.integers(1, 100),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_what_is_done_to_rows_is_right(whole: Any, name: str, seed: int, rows: int, width: int, scale: float) -> None:
    import mlx.core as mx

    cpu = forced(whole, name)
    x, y, weight = normal(seed, rows, width) * scale, normal(seed + 1, rows, width), normal(seed + 2, width)
    exact = x.astype(float)
    norm = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(np.array(cpu.rms_norm(mx.array(x), mx.array(weight), 1e-5)), norm * weight, atol=1e-5)
    np.testing.assert_allclose(np.array(cpu.rms_norm(mx.array(x), None, 1e-5)), norm, atol=1e-5)
    silu = exact / (1 + np.exp(-exact)) * y
    np.testing.assert_allclose(np.array(cpu.glu(mx.array(x), mx.array(y), "silu")), silu, atol=2e-6 * scale, rtol=1e-5)
    gelu = exact / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3))) * y
    np.testing.assert_allclose(np.array(cpu.glu(mx.array(x), mx.array(y), "gelu")), gelu, atol=1e-5 * scale, rtol=1e-4)
    highest = exact.max(-1)
    total = np.log(np.exp(exact - highest[:, None]).sum(-1)) + highest
    np.testing.assert_allclose(np.array(cpu.log_sum_exp(mx.array(x))), total, atol=1e-5, rtol=1e-6)
    assert (np.array(cpu.argmax(mx.array(x))) == x.argmax(-1)).all()


@QUICK
@given(
    name=st.sampled_from(SETS),
    seed=SEEDS,
    rows=st.integers(1, 4),
    width=st.integers(1, 6000),
    part=st.floats(0, 1),
    coarse=st.booleans(),
)
def test_candidates_are_the_greatest_and_of_equals_the_first(
    whole: Any, name: str, seed: int, rows: int, width: int, part: float, coarse: bool
) -> None:
    import mlx.core as mx

    cpu = forced(whole, name)
    x, temperatures = normal(seed, rows, width), np.random.default_rng(seed).random(rows).astype(np.float32) + 0.1
    if coarse:
        x = np.round(x)
    tempered = x / temperatures[:, None]
    count = max(1, min(200, int(part * width)))
    best, places, totals = map(np.array, cpu.candidates(mx.array(x), mx.array(temperatures), count))
    assert np.array_equal(best, np.take_along_axis(tempered, places, axis=-1))
    expected = np.argsort(-tempered, axis=-1, kind="stable")[:, :count]
    assert np.array_equal(np.sort(places, axis=-1), np.sort(expected, axis=-1))
    exact = np.log(np.exp(tempered.astype(float)).sum(-1))
    np.testing.assert_allclose(totals, exact, atol=1e-5, rtol=1e-6)


def test_the_strangest_logits_have_a_sum_and_a_best(cpu: Any) -> None:
    import mlx.core as mx

    rows = np.full((5, 70), -np.inf, np.float32)
    rows[1, 3], rows[2, 68], rows[3, 10:12], rows[4, 5] = np.inf, np.nan, 3.4e38, 1e4
    assert np.array(cpu.argmax(mx.array(rows))).tolist() == [0, 3, 68, 10, 5]
    with np.errstate(over="ignore"):
        expected = np.array([-np.inf, np.inf, np.nan, np.float32(3.4e38), 1e4], np.float32)
    np.testing.assert_allclose(np.array(cpu.log_sum_exp(mx.array(rows))), expected)


@QUICK
@given(
    seed=SEEDS,
    places=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    behind=st.integers(0, 3),
    shared=st.booleans(),
    slanted=st.booleans(),
)
def test_rows_are_moved_on_where_they_are(
    whole: Any, seed: int, places: list[int], behind: int, shared: bool, slanted: bool
) -> None:
    import mlx.core as mx

    before, end = normal(seed, len(places), 2, 6 + behind, 5).astype(np.float16), 6
    kept = mx.array(before)
    if slanted:
        kept = mx.array(np.ascontiguousarray(before.swapaxes(1, 2))).swapaxes(1, 2)
    mx.eval(kept)
    other = kept if shared else None
    moved = whole.push(kept, places, end)
    del kept
    after = np.array(moved)
    for row, count in enumerate(places):
        assert np.array_equal(after[row, :, count:end], before[row, :, : end - count])
        assert np.array_equal(after[row, :, end:], before[row, :, end:])
    # Who still holds what was there has it as it was.
    assert other is None or np.array_equal(np.array(other), before)


def test_rows_that_are_one_in_memory_are_moved_apart(cpu: Any) -> None:
    import mlx.core as mx

    one = normal(0, 1, 2, 6, 5).astype(np.float16)
    moved = np.array(cpu.push(mx.broadcast_to(mx.array(one), (3, 2, 6, 5)), [0, 1, 2], 6))
    for count in range(3):
        assert np.array_equal(moved[count, :, count:], one[0, :, : 6 - count])


@pytest.mark.parametrize(
    "call",
    [
        lambda cpu, mx, w: cpu.matmul(mx.zeros((2, 32)), w),
        lambda cpu, mx, w: cpu.matmul(mx.zeros((2, 64), mx.float16), w),
        lambda cpu, mx, w: cpu.matmul(mx.zeros((2, 64)), w, mx.zeros((3,))),
        lambda cpu, mx, w: cpu.matmul_several(mx.zeros((2, 64)), [w, None], [None, None]),
        lambda cpu, mx, w: cpu.pack(mx.zeros((4, 8)), mx.zeros((4, 2)), mx.zeros((4, 2)), 4, 32),
        lambda cpu, mx, w: cpu.pack(mx.zeros((4, 8), mx.uint32), mx.zeros((4, 3)), mx.zeros((4, 3)), 4, 32),
        lambda cpu, mx, w: cpu.attention(*(mx.zeros((1, n, 2, 8)) for n in (3, 2, 2)), 1.0),
        lambda cpu, mx, w: cpu.attention(*[mx.zeros((1, 2, 2, 8))] * 3, 1.0, mask=mx.zeros((3, 3, 3))),
        lambda cpu, mx, w: cpu.attention(*(mx.zeros((1, 2, 2, n)) for n in (0, 0, 8)), 1.0),
        lambda cpu, mx, w: cpu.push(mx.zeros((2, 1, 8, 4)), [0, 1], 4),
        lambda cpu, mx, w: cpu.push(mx.zeros((2, 1, 8, 4), mx.float16), [1], 4),
        lambda cpu, mx, w: cpu.push(mx.zeros((2, 1, 8, 4), mx.float16), [0, 5], 4),
        lambda cpu, mx, w: cpu.push(mx.zeros((2, 1, 8, 4), mx.float16), [0, -1], 4),
        lambda cpu, mx, w: cpu.push(mx.zeros((2, 1, 8, 4), mx.float16), [0, 1], 9),
        lambda cpu, mx, w: cpu.use("abacus"),
    ],
)
def test_what_does_not_fit_is_refused(cpu: Any, call: Any) -> None:
    import mlx.core as mx

    quantised = mx.quantize(mx.zeros((5, 64)), 32, 4)
    mx.eval(quantised)
    with pytest.raises(ValueError, match=" "):
        call(cpu, mx, cpu.pack(*quantised, 4, 32))


def test_several_threads_with_streams_of_their_own_get_the_same(backend: Backend) -> None:
    cpu = pytest.importorskip("osaurus_cpu", exc_type=ImportError)
    import mlx.core as mx

    quantised = mx.quantize(mx.array(normal(0, 500, 128)), 32, 4)
    mx.eval(quantised)
    packed, x = cpu.pack(*quantised, 4, 32), normal(1, 20, 128)
    expected = np.array(cpu.matmul(mx.array(x), packed))
    different = []

    def compute() -> None:
        for _ in range(50):
            if (np.array(cpu.matmul(mx.array(x), packed)) != expected).any():
                different.append(1)
        mx.synchronize()
        mx.clear_streams()

    threads = [Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not different


def test_there_are_as_many_threads_as_wanted(whole: Any) -> None:
    import mlx.core as mx

    quantised = mx.quantize(mx.array(normal(0, 500, 128)), 32, 4)
    mx.eval(quantised)
    packed, x = whole.pack(*quantised, 4, 32), mx.array(normal(1, 20, 128))
    before, expected = whole.threads(), np.array(whole.matmul(x, packed))
    for count in (1, 3, 2):
        whole.set_threads(count)
        assert whole.threads() == count
        assert (np.array(whole.matmul(x, packed)) == expected).all()
    whole.set_threads(before)


LIMITED = """
import resource
import mlx.core as mx, osaurus_cpu
taken = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
_, most = resource.getrlimit(resource.RLIMIT_AS)
before = osaurus_cpu.threads()
# Room for the stacks of some.
resource.setrlimit(resource.RLIMIT_AS, (taken + 200 * 2**20, most))
all_started = osaurus_cpu.set_threads(64)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(all_started, 1 <= osaurus_cpu.threads() < 64, osaurus_cpu.argmax(mx.eye(70)).tolist() == list(range(70)))
print(osaurus_cpu.set_threads(before), osaurus_cpu.threads() == before)
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere there is no /proc")
def test_where_no_more_threads_can_be_started_those_there_are_do(whole: Any) -> None:
    command = [sys.executable, "-c", LIMITED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == ["False", "True", "True", "True", "True"], done.stderr


def test_there_are_no_more_threads_than_anybody_has_use_for(whole: Any) -> None:
    before = whole.threads()
    assert not whole.set_threads(300)
    assert whole.threads() < 300
    assert whole.set_threads(before)


MIXTURE = TINY_CONFIG | {
    "model_type": "qwen3_moe",
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
SCALED = TINY_CONFIG | {
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "attention_bias": True,
}
BIASED = TINY_CONFIG | {"model_type": "qwen2"}
CAPPED = TINY_CONFIG | {
    "model_type": "gemma2",
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
# Multiply with the weights of their embedding by themselves.
TIED = TINY_CONFIG | {"model_type": "seed_oss", "head_dim": 16, "tie_word_embeddings": True}
ARCHITECTURES = {
    "llama": SCALED,
    "qwen2": BIASED,
    "qwen3_moe": MIXTURE,
    "gemma2": CAPPED,
    "gemma3": ROTATING_CONFIG,
    "qwen3_next": RECURRENT_CONFIG,
    "seed_oss": TIED,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("bits", [8, None])
@pytest.mark.parametrize("halved", [True, False])
def test_a_network_computes_with_the_kernels_what_it_computes_without(
    kernels: Any, name: str, bits: int | None, halved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import dequantize_model

    def network() -> Any:
        return random_network(ARCHITECTURES[name], bits)

    if not halved:
        keep_float32(kernels, monkeypatch)
    plain, ours = dequantize_model(network()), network()
    packed = import_module("osaurus.engine.packed")
    expected_bytes = _nbytes(ours) + packed.packed_nbytes(ours)
    kernels.install(ours)
    assert _nbytes(ours) == expected_bytes
    tokens = mx.array([[5, 17, 3, 99, 4, 5, 6, 7, 8, 150]])
    caches = make_prompt_cache(ours)
    expectations = _read(plain, make_prompt_cache(plain), tokens)
    for found, expected in zip(_read(ours, caches, tokens), expectations, strict=True):
        # Float32 all the way, or keys and values of float16, or activations of eight bits before every product.
        allowed = 0.1 if bits is not None else 3e-3 if halved else 1e-4
        assert np.abs(found - expected).max() < allowed * np.abs(expected).max()
    # What is computed with by itself takes memory, too.
    expanded = 200 * 64 * 4 if name == "seed_oss" and bits is not None else 0
    assert packed.expanded_nbytes(ours) == expanded
    kept = {cache.keys.dtype for cache in caches if hasattr(cache, "keys")}
    # Gemma 2 attends with code of its own.
    assert kept == {mx.float16 if halved and name != "gemma2" else mx.float32}


def random_network(config: dict[str, Any], bits: int | None) -> Any:
    """Return a network of random weights with so many bits, or none quantised, which the kernels have not touched."""
    import mlx.core as mx
    import mlx.nn as nn

    config = {**config, "vocab_size": 200}
    module = import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(3)
    made = module.Model(module.ModelArgs.from_dict(config))
    if bits is not None:
        nn.quantize(made, 32, bits, class_predicate=lambda _, part: _divides(part))
    return made


def keep_float32(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have caches keep keys and values as they come."""
    monkeypatch.setattr(kernels, "_halved", lambda cache: cache)
    monkeypatch.setattr(kernels.whole_layers, "find", lambda *_: [])


def _divides(part: Any) -> bool:
    return hasattr(part, "to_quantized") and part.weight.shape[-1] % 32 == 0


def _nbytes(network: Any) -> int:
    from mlx.utils import tree_flatten

    return sum(array.nbytes for _, array in tree_flatten(network.parameters()))


def _read(network: Any, cache: Any, tokens: Any) -> list[npt.NDArray[np.float32]]:
    """Return the logits of reading most tokens at once, and the others one by one."""
    chunks = [tokens[:, :7], *(tokens[:, place : place + 1] for place in range(7, tokens.shape[1]))]
    return [np.array(network(chunk, cache=cache)[:, -1]) for chunk in chunks]


def test_networks_without_the_kernels_do_not_meet_them(kernels: Any, backend: Backend) -> None:
    import mlx.core as mx
    import mlx.nn as nn

    norm, other = nn.Sequential(nn.RMSNorm(8)), nn.RMSNorm(8)
    kernels.install(norm)
    assert type(other) is nn.RMSNorm
    assert type(norm.layers[0]) is not nn.RMSNorm
    assert isinstance(norm.layers[0], nn.RMSNorm)
    x = mx.array(normal(0, 2, 8))
    assert mx.allclose(norm(x), other(x)).item()
    # What the kernels do not take is MLX's own, with MLX's own result.
    half = x.astype(mx.bfloat16)
    assert norm(half).dtype == other(half).dtype
    assert mx.array_equal(norm(half), other(half)).item()


@pytest.fixture(scope="module")
def quantised_models(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, backend: Backend) -> Path:
    """A models folder with `tests/tiny`, in bfloat16 with four bits."""
    import json

    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model, quantize_model

    folder = tmp_path_factory.mktemp("quantised") / "tests" / "tiny"
    write_tiny_model(folder, tiny_tokenizer)
    network, config = load_model(folder)
    network.set_dtype(mx.bfloat16)
    network, config = quantize_model(network, config, 32, 4)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder.parent.parent


def test_rows_in_a_batch_say_what_each_says_alone(backend: Backend, quantised_models: Path) -> None:
    if backend.kernels is None:
        pytest.skip("osaurus-cpu is not built")
    alone = another(backend, quantised_models)
    expected = [alone.alone(prompt) for prompt in PROMPTS]
    desk = another(backend, quantised_models)
    for number, prompt in enumerate(PROMPTS):
        desk.add(number, prompt)
        desk.step()
    while desk.engine.busy:
        desk.step()
    assert [desk.texts[number] for number in range(len(PROMPTS))] == expected


def test_weights_take_what_their_bits_take(backend: Backend, quantised_models: Path) -> None:
    if backend.kernels is None:
        pytest.skip("osaurus-cpu is not built")
    from osaurus.engine.loader import load

    def nbytes(here: Backend) -> int:
        return load("tiny", quantised_models / "tests" / "tiny", here, 2**30, lambda _: None).nbytes

    assert nbytes(backend) < nbytes(evolve(backend, kernels=None)) / 5


def test_what_was_read_into_caches_of_another_kind_is_not_found_again(
    backend: Backend, quantised_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend.kernels is None:
        pytest.skip("osaurus-cpu is not built")
    from osaurus.engine import kernels
    from osaurus.engine.loader import load

    def key() -> str:
        return load("tiny", quantised_models / "tests" / "tiny", backend, 2**30, lambda _: None).key

    halved = key()
    assert key() == halved
    keep_float32(kernels, monkeypatch)
    assert key() != halved
