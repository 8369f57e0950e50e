"""GGUF's blocks in MLX's groups: what MLX reads from them is what the gguf package says they stand for.

Blocks that the package can make are made from numbers; of the others the bytes are random, but for the scales.
"""

from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from osaurus.engine.backend import Backend
from osaurus.library.gguf import UnsupportedGGUF
from osaurus.library.gguf.blocks import FLOATS, QUANTISED_ANEW, TAKEN_APART, fits_half, pack, regroup, setting_of

Array = npt.NDArray[Any]

# Where the float16 numbers of a block are; in IQ1_M four bits of one are in each of four words.
SCALES = {
    Kind.Q4_0: [0],
    Kind.Q4_1: [0, 2],
    Kind.Q5_0: [0],
    Kind.Q5_1: [0, 2],
    Kind.Q8_0: [0],
    Kind.Q2_K: [80, 82],
    Kind.Q3_K: [108],
    Kind.Q4_K: [0, 2],
    Kind.Q5_K: [0, 2],
    Kind.Q6_K: [208],
    Kind.TQ1_0: [52],
    Kind.TQ2_0: [64],
    Kind.IQ1_S: [0],
    Kind.IQ1_M: [],
    Kind.IQ2_XXS: [0],
    Kind.IQ2_XS: [0],
    Kind.IQ2_S: [0],
    Kind.IQ3_XXS: [0],
    Kind.IQ3_S: [0],
    Kind.IQ4_NL: [0],
    Kind.IQ4_XS: [0],
    Kind.MXFP4: [],
    Kind.NVFP4: [],
}
EXACT = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.TQ1_0, Kind.TQ2_0, Kind.MXFP4, Kind.NVFP4]
MADE_ANEW = sorted(QUANTISED_ANEW)

# What quantising anew adds, of the weights' own size. The kinds themselves are wrong by about 0.3 with one or two
# bits, 0.13 with three, 0.07 with four, 0.018 with six.
ADDED = {3: 0.165, 4: 0.075, 5: 0.03, 8: 0.006}


def name_of(kind: Kind) -> str:
    return str(kind.name)


def random_blocks(kind: Kind, rows: int = 16, columns: int = 512, seed: int = 0) -> Array:
    """Return rows of blocks, [rows, bytes]: the numbers are random, the scales those of weights."""
    random = np.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    for place in SCALES[kind]:
        scales = random.uniform(0.001, 0.01, (len(blocks), 1)) * random.choice([-1, 1], (len(blocks), 1))
        blocks[:, place : place + 2] = scales.astype(np.float16).view(np.uint8)
    if kind is Kind.IQ1_M:
        scales = random.uniform(0.001, 0.01, len(blocks)).astype(np.float16).view(np.uint16)
        words = blocks[:, 48:56].copy().view(np.uint16)
        for number in range(4):
            words[:, number] = words[:, number] & 0x0FFF | (scales >> (4 * number) & 0xF) << 12
        blocks[:, 48:56] = words.view(np.uint8)
    if kind is Kind.MXFP4:
        blocks[:, 0] = random.integers(110, 130, len(blocks))
    if kind is Kind.NVFP4:
        blocks[:, :4] = random.integers(0, 0x7F, (len(blocks), 4))
    return blocks.reshape(rows, -1)


def read_by_mlx(rows: Array, kind: Kind) -> Array:
    """Return what MLX makes of the groups that blocks have become, in float32."""
    import mlx.core as mx

    setting, groups = setting_of(kind), regroup(rows, kind)
    assert setting is not None
    biases = mx.array(groups.biases) if setting.mode == "affine" else None
    scales = mx.array(np.ascontiguousarray(groups.scales))
    found = mx.dequantize(mx.array(groups.weight), scales, biases, setting.group, setting.bits, setting.mode)
    return np.array(found.astype(mx.float32))


def meant(rows: Array, kind: Kind) -> Array:
    values: Array = gguf.quants.dequantize(rows, kind)
    return values


def test_every_kind_that_the_package_can_dequantise_is_converted() -> None:
    known = []
    for kind in Kind:
        try:
            gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            with pytest.raises(UnsupportedGGUF, match=kind.name):
                setting_of(kind)
        else:
            known.append(kind)
    assert set(known) == FLOATS | set(TAKEN_APART) | set(QUANTISED_ANEW)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", EXACT, ids=name_of)
def test_kinds_that_mlx_has_too_are_exactly_the_same(kind: Kind, seed: int, backend: Backend) -> None:
    rows = random_blocks(kind, seed=seed)
    if kind is Kind.TQ2_0:
        # The package makes no threes, which two bits would have room for.
        rows = gguf.quants.quantize(np.random.default_rng(seed).normal(0, 1, (16, 512)).astype(np.float32), kind)
    assert np.array_equal(read_by_mlx(rows, kind), meant(rows, kind))


@pytest.mark.parametrize("kind", [kind for kind in EXACT if kind is not Kind.NVFP4], ids=name_of)
def test_blocks_of_nothing_and_of_extremes_stay_the_same(kind: Kind, backend: Backend) -> None:
    values = np.zeros((4, 512), np.float32)
    values[1] = np.linspace(-500, 500, 512)
    values[2] = np.linspace(-1e-3, 1e-3, 512)
    values[3, 100] = -3.0
    rows = gguf.quants.quantize(values, kind)
    assert np.array_equal(read_by_mlx(rows, kind), meant(rows, kind))


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q5_K], ids=name_of)
def test_k_kinds_of_four_and_five_bits_keep_their_numbers_and_the_products_of_their_scales(
    kind: Kind, backend: Backend
) -> None:
    rows = random_blocks(kind)
    assert np.allclose(read_by_mlx(rows, kind), meant(rows, kind), rtol=0, atol=1e-6)
    groups = regroup(rows, kind)
    # What is kept of the products is their float16.
    assert fits_half([groups.scales])
    assert fits_half([groups.biases])


@pytest.mark.parametrize("kind", MADE_ANEW, ids=name_of)
def test_what_is_quantised_anew_is_near(kind: Kind, backend: Backend) -> None:
    rows = random_blocks(kind)
    expected = meant(rows, kind)
    assert np.isfinite(expected).all()
    setting = setting_of(kind)
    assert setting is not None
    error = np.sqrt(((read_by_mlx(rows, kind) - expected) ** 2).mean() / (expected**2).mean())
    assert error < ADDED[setting.bits]


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([2, 3, 4, 5, 6, 8]), rows=st.integers(1, 3), words=st.integers(1, 4), data=st.data())
def test_numbers_are_packed_from_the_lowest_bits_on(bits: int, rows: int, words: int, data: st.DataObject) -> None:
    # 32 numbers of n bits are n words.
    numbers = np.array(
        data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=rows * words * 32, max_size=rows * words * 32)),
        np.uint8,
    ).reshape(rows, -1)
    packed = pack(numbers, bits)
    assert packed.shape == (rows, words * bits)
    for found, expected in zip(packed, numbers, strict=True):
        stream = int.from_bytes(found.tobytes(), "little")
        assert [stream >> place * bits & (2**bits - 1) for place in range(len(expected))] == list(expected)


def test_scales_too_large_or_too_small_for_float16_keep_float32() -> None:
    assert fits_half([np.array([1.0, 0.5, 0.0], np.float32), np.array([65504.0], np.float32)])
    assert not fits_half([np.array([1.0], np.float32), np.array([65536.0], np.float32)])
    assert not fits_half([np.array([1e-8, 2e-8], np.float32)])
    # Beside those of other blocks it makes no difference.
    assert fits_half([np.array([1e-8, 1.0], np.float32)])
