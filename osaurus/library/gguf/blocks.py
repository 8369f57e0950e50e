"""GGUF's blocks of numbers → MLX's groups.

MLX's affine quantisation holds a group of numbers as q of few bits with a scale s and an offset b, the weight being
s·q + b. Several of GGUF's kinds are just that under other names: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 (a scale d for 32
numbers; an offset m, or a fixed one in steps of d), TQ1_0 and TQ2_0 (−d, 0 or d), and Q4_K and Q5_K, whose scales and
offsets are products of two numbers. Their blocks are only taken apart and packed in MLX's order. MXFP4 and NVFP4 are
MLX's modes of the same names. The other kinds (more than one scale for 32 numbers, or numbers from a table) are
dequantised by the gguf package and quantised anew, with the smallest setting of MLX that adds less than half of the
noise the kind itself has; tests/test_gguf_blocks.py measures it.

Scales and offsets are made as float32. They are kept as float16 where that stands for them, which is what is computed
with afterwards: MLX's results have the dtype of the scales.
"""

from collections.abc import Callable
from typing import Any

import gguf.quants
import numpy as np
import numpy.typing as npt
from attrs import frozen
from gguf import GGMLQuantizationType as Kind

from .header import UnsupportedGGUF

Array = npt.NDArray[Any]

FLOATS = frozenset({Kind.F32, Kind.F16, Kind.BF16})

GREATEST_HALF, LEAST_NORMAL_HALF = 65504.0, 2.0**-14

# How much of the largest scale of a tensor its float16 may be wrong by: the smallest step at full precision.
TOLERANCE = 2.0**-10


@frozen
class Setting:
    """How MLX quantises a tensor."""

    bits: int
    group: int
    mode: str = "affine"

    def config(self) -> dict[str, int | str]:
        """Return it as configurations have it."""
        return {"group_size": self.group, "bits": self.bits} | ({} if self.mode == "affine" else {"mode": self.mode})


@frozen
class Groups:
    """Rows in MLX's form: `weight` [rows, words] of uint32, `scales` and `biases` [rows, groups].

    Scales are float32; where the mode is not affine they are uint8, and no biases belong to them.
    """

    weight: Array
    scales: Array
    biases: Array


# The numbers of blocks, [blocks, numbers] of uint8, with the scales and biases of their groups, [blocks, groups].
Numbers = tuple[Array, Array, Array]


def _nibbles(quants: Array) -> Array:
    """Return the numbers of bytes whose low halves come first: [blocks, n] → [blocks, 2n]."""
    return np.concatenate([quants & 0x0F, quants >> 4], axis=-1)


def _float32(pairs: Array) -> Array:
    return np.ascontiguousarray(pairs).view("<f2").astype(np.float32)


def _q4_0(blocks: Array) -> Numbers:
    scales = _float32(blocks[:, :2])
    return _nibbles(blocks[:, 2:]), scales, -8 * scales


def _q4_1(blocks: Array) -> Numbers:
    return _nibbles(blocks[:, 4:]), _float32(blocks[:, :2]), _float32(blocks[:, 2:4])


def _fifth_bits(words: Array) -> Array:
    """Return the highest bits of 32 numbers of five, in their place: [blocks, 4] → [blocks, 32]."""
    return np.unpackbits(words, axis=-1, bitorder="little") << 4


def _q5_0(blocks: Array) -> Numbers:
    scales = _float32(blocks[:, :2])
    return _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6]), scales, -16 * scales


def _q5_1(blocks: Array) -> Numbers:
    numbers = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return numbers, _float32(blocks[:, :2]), _float32(blocks[:, 2:4])


def _q8_0(blocks: Array) -> Numbers:
    scales = _float32(blocks[:, :2])
    # Flipping the sign bit adds 128 to a byte in two's complement.
    return blocks[:, 2:] ^ 0x80, scales, -128 * scales


def _k_scales(blocks: Array) -> tuple[Array, Array]:
    """Return the scales and offsets of a K block's eight groups: [blocks, 8] each."""
    scales, offsets = gguf.quants.Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
    return _float32(blocks[:, :2]) * scales, -_float32(blocks[:, 2:4]) * offsets


def _q4_k(blocks: Array) -> Numbers:
    numbers = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 256)
    return numbers, *_k_scales(blocks)


def _q5_k(blocks: Array) -> Numbers:
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    # Byte n has the highest bits of the n-th number of each group, the first group's lowest.
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return (low | high << 4).reshape(-1, 256), *_k_scales(blocks)


def _ternary(kind: Kind) -> Callable[[Array], Numbers]:
    def take(blocks: Array) -> Numbers:
        scales = _float32(blocks[:, -2:])
        numbers = np.sign(gguf.quants.dequantize(blocks, kind)) * np.sign(scales) + 1
        # One scale for both of MLX's groups.
        return numbers.astype(np.uint8), np.repeat(scales, 2, axis=-1), np.repeat(-scales, 2, axis=-1)

    return take


def _mxfp4(blocks: Array) -> Numbers:
    return _nibbles(blocks[:, 1:]), blocks[:, :1], blocks[:, :0]


def _nvfp4(blocks: Array) -> Numbers:
    # 0x7F is no number in MLX; in GGUF it is 0.
    scales = np.where(blocks[:, :4] == 0x7F, np.uint8(0), blocks[:, :4])
    return _nibbles(blocks[:, 4:].reshape(-1, 4, 8)).reshape(-1, 64), scales, blocks[:, :0]


TAKEN_APART: dict[Kind, tuple[Setting, Callable[[Array], Numbers]]] = {
    Kind.Q4_0: (Setting(4, 32), _q4_0),
    Kind.Q4_1: (Setting(4, 32), _q4_1),
    Kind.Q5_0: (Setting(5, 32), _q5_0),
    Kind.Q5_1: (Setting(5, 32), _q5_1),
    Kind.Q8_0: (Setting(8, 32), _q8_0),
    Kind.Q4_K: (Setting(4, 32), _q4_k),
    Kind.Q5_K: (Setting(5, 32), _q5_k),
    Kind.TQ1_0: (Setting(2, 128), _ternary(Kind.TQ1_0)),
    Kind.TQ2_0: (Setting(2, 128), _ternary(Kind.TQ2_0)),
    Kind.MXFP4: (Setting(4, 32, "mxfp4"), _mxfp4),
    Kind.NVFP4: (Setting(4, 16, "nvfp4"), _nvfp4),
}

QUANTISED_ANEW: dict[Kind, Setting] = {
    Kind.IQ1_S: Setting(3, 32),
    Kind.IQ1_M: Setting(3, 32),
    Kind.Q2_K: Setting(3, 32),
    Kind.IQ2_XXS: Setting(3, 32),
    Kind.IQ2_XS: Setting(3, 32),
    Kind.IQ2_S: Setting(3, 32),
    Kind.IQ3_XXS: Setting(4, 32),
    Kind.IQ3_S: Setting(4, 32),
    Kind.Q3_K: Setting(4, 32),
    Kind.IQ4_NL: Setting(5, 32),
    Kind.IQ4_XS: Setting(5, 32),
    Kind.Q6_K: Setting(8, 64),
}


def setting_of(kind: Kind) -> Setting | None:
    """Return how MLX is to hold a kind of blocks; None where they are floats. Raises UnsupportedGGUF."""
    if kind in FLOATS:
        return None
    if kind in TAKEN_APART:
        return TAKEN_APART[kind][0]
    if kind in QUANTISED_ANEW:
        return QUANTISED_ANEW[kind]
    raise UnsupportedGGUF(f"weights stored as {kind.name} are not converted")


def regroup(rows: Array, kind: Kind) -> Groups:
    """Return rows of a kind's blocks, [rows, bytes] of uint8, in MLX's form."""
    setting = setting_of(kind)
    assert setting is not None
    if kind in TAKEN_APART:
        block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
        numbers, scales, biases = TAKEN_APART[kind][1](np.ascontiguousarray(rows).reshape(-1, block_bytes))
    else:
        numbers, scales, biases = quantise(floats(rows, kind), setting)
    count = len(rows)
    return Groups(
        pack(numbers.reshape(count, -1), setting.bits),
        scales.reshape(count, -1),
        biases.reshape(count, -1),
    )


def floats(rows: Array, kind: Kind) -> Array:
    """Return what rows of a kind's blocks stand for: [rows, columns] of float32."""
    values: Array = gguf.quants.dequantize(np.ascontiguousarray(rows), kind)
    return values.astype(np.float32, copy=False)


def quantise(values: Array, setting: Setting) -> Numbers:
    """Return values in groups between their least and their greatest, in even steps.

    Scales and offsets are those that float16 has, where it has them at full precision, so that the numbers are the
    nearest with what will be kept.
    """
    groups = values.reshape(-1, setting.group)
    least = groups.min(axis=-1, keepdims=True)
    scales = _as_half(((groups.max(axis=-1, keepdims=True) - least) / (2**setting.bits - 1)).astype(np.float32))
    biases = _as_half(least)
    steps = (groups - biases) / np.where(scales == 0, np.float32(1), scales)
    numbers = np.clip(np.rint(steps), 0, 2**setting.bits - 1).astype(np.uint8)
    return numbers, scales, biases


def _as_half(values: Array) -> Array:
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).astype(np.float32)
    sizes = np.abs(values)
    return np.where((sizes <= GREATEST_HALF) & (sizes >= LEAST_NORMAL_HALF), halves, values)


def pack(numbers: Array, bits: int) -> Array:
    """Return numbers of few bits, [rows, columns] of uint8, in words of 32: the first in the lowest bits."""
    # Eight numbers are as many bytes as a number has bits.
    words = numbers[:, 0::8].astype("<u8")
    for place in range(1, 8):
        words |= numbers[:, place::8].astype("<u8") << np.uint64(place * bits)
    whole = words.view(np.uint8).reshape(len(numbers), -1, 8)[..., :bits]
    return np.ascontiguousarray(whole).reshape(len(numbers), -1).view("<u4")


def fits_half(pieces: list[Array]) -> bool:
    """Return whether float16 stands for the scales or offsets of a tensor, as near as makes no difference to it."""
    largest = max(float(np.abs(piece).max(initial=0)) for piece in pieces)
    if largest > GREATEST_HALF:
        return False
    return all(
        np.abs(piece.astype(np.float16).astype(np.float32) - piece).max(initial=0) <= TOLERANCE * largest
        for piece in pieces
    )
