"""Modules whose quantised weights are packed for the kernels of `osaurus_cpu`, in the place of MLX's and mlx_lm's.

They hold their weights once, packed, and compute in float32. Queries, keys and values, which networks ask for one after
the other, are computed together.
"""

from functools import cached_property
from importlib import import_module
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from attrs import define, field
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

# It has no types, and is not everywhere.
osaurus_cpu: Any = import_module("osaurus_cpu")

# What the kernels read; others are MLX's own business.
BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)

# What networks ask for one after the other, of the same rows.
SIBLINGS = ("q_proj", "k_proj", "v_proj")


class Packed(nn.Module):
    """What modules with packed weights have in common; made from a module with quantised ones, which are read."""

    def __init__(self, quantised: nn.Module, arena: Any) -> None:
        super().__init__()
        arrays = [mx.contiguous(quantised[name]) for name in ("weight", "scales", "biases")]
        mx.eval(arrays)
        self.weights = osaurus_cpu.pack(*arrays, quantised.bits, quantised.group_size, arena)
        # The same memory, as a parameter: it counts, and is told apart, like others.
        self.packed = self.weights.packed
        if "bias" in quantised:
            self.bias = mx.contiguous(quantised.bias.astype(mx.float32))
        self.freeze()


class Matrix(Packed):
    """One matrix."""

    @cached_property
    def weight(self) -> mx.array:
        """The matrix as float32, for code that asks for it by itself: some models' output from their embedding.

        It takes memory as soon as it is computed with, and stays; who asks only what it is like pays nothing.
        """
        return osaurus_cpu.rows_of(self.weights, mx.arange(self.weights.rows))


def expanded_nbytes(network: nn.Module) -> int:
    """Return what the matrices take that the network's code has asked for by themselves, up to now."""
    modules = [module for _, module in network.named_modules() if isinstance(module, Matrix)]
    return sum(module.weight.nbytes for module in modules if "weight" in vars(module))


class Linear(Matrix):
    """`nn.QuantizedLinear`."""

    def __call__(self, x: mx.array) -> mx.array:
        """Return x times the weights, float32; x: (…, columns)."""
        return osaurus_cpu.matmul(as_float32(x), self.weights, self.get("bias"))


@define(eq=False)
class _Siblings:
    """Queries, keys and values: products with the same rows, which are called one after the other and computed once."""

    modules: list[Linear]
    _rows: mx.array | None = field(default=None, init=False)
    _products: list[mx.array] = field(factory=list, init=False)

    def product(self, place: int, x: mx.array) -> mx.array:
        """Return x times the weights of the module at this place."""
        if place == 0:
            weights = [module.weights for module in self.modules]
            self._products = osaurus_cpu.matmul_several(as_float32(x), weights, [m.get("bias") for m in self.modules])
            self._rows = x
        if self._rows is not x:
            module = self.modules[place]
            return osaurus_cpu.matmul(as_float32(x), module.weights, module.get("bias"))
        product = self._products[place]
        if place == len(self.modules) - 1:
            self._rows, self._products = None, []
        return product


class Sibling(Linear):
    """A `Linear` that is computed together with others."""

    def join(self, siblings: _Siblings) -> None:
        """Be computed together with these, of which it is one."""
        self.siblings, self.place = siblings, next(place for place, one in enumerate(siblings.modules) if one is self)

    def __call__(self, x: mx.array) -> mx.array:
        """Return x times the weights, float32; x: (…, columns)."""
        return self.siblings.product(self.place, x)


class Embedding(Matrix):
    """`nn.QuantizedEmbedding`; the output matrix as well, where a model ties both."""

    def __call__(self, x: mx.array) -> mx.array:
        """Return the rows of these tokens, float32; x: (…), the result (…, columns)."""
        return osaurus_cpu.rows_of(self.weights, x if x.dtype in (mx.int32, mx.uint32) else x.astype(mx.int32))

    def as_linear(self, x: mx.array) -> mx.array:
        """Return x times the weights, float32; x: (…, columns)."""
        return osaurus_cpu.matmul(as_float32(x), self.weights)


class SwitchLinear(Packed):
    """mlx_lm's `QuantizedSwitchLinear`: the matrices of several experts."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:  # noqa: ARG002 - any order does
        """Return x times the weights of the experts that `indices` names for each row, float32."""
        x = osaurus_cpu.gather_matmul(as_float32(x), self.weights, indices.astype(mx.uint32))
        return x + mx.expand_dims(self.bias[indices], -2) if "bias" in self else x


REPLACEMENTS: dict[type, type[Packed]] = {
    nn.QuantizedLinear: Linear,
    nn.QuantizedEmbedding: Embedding,
    QuantizedSwitchLinear: SwitchLinear,
}


def taken(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a network whose weights the kernels take as they are, by their paths."""
    return {path: module for path, module in network.named_modules() if _is_taken(module)}


def _is_taken(module: nn.Module) -> bool:
    return (
        type(module) in REPLACEMENTS
        and module.mode == "affine"
        and module.bits in BITS
        and module.group_size in GROUPS
        and module.get("global_scale") is None
    )


def packed_nbytes(network: nn.Module) -> int:
    """Return how many bytes more at most, or fewer if negative, a network's weights take when they are packed."""
    return sum(map(_packed_nbytes, taken(network).values()))


def _packed_nbytes(module: nn.Module) -> int:
    *matrices, rows, groups = module.scales.shape
    width = 4 if module.bits <= 4 else 8
    group = module.group_size * width // 8 + 2 * module.scales.dtype.size
    packed = int(np.prod(matrices)) * -(-rows // 16) * 16 * groups * group
    return packed - sum(module[name].nbytes for name in ("weight", "scales", "biases"))


def pack(network: nn.Module) -> None:
    """Have packed weights in the place of a network's quantised ones, which are read."""
    quantised, arena = taken(network), osaurus_cpu.Arena()
    while quantised:
        # One after the other: what has been packed is let go of before the next is read.
        path, module = quantised.popitem()
        *parents, name = path.split(".")
        parent: Any = network
        for step in parents:
            parent = parent[int(step) if isinstance(parent, list) else step]
        parent[int(name) if isinstance(parent, list) else name] = REPLACEMENTS[type(module)](module, arena)
    for _, module in network.named_modules():
        _join_siblings(module)


def _join_siblings(module: nn.Module) -> None:
    """Have queries, keys and values computed together where the module's code asks for them in this order."""
    names = getattr(type(module).__call__, "__code__", _join_siblings.__code__).co_names
    parts = [module.get(name) for name in SIBLINGS]
    if not any(names[place : place + 3] == SIBLINGS for place in range(len(names))):
        return
    if any(type(part) is not Linear or part.weights.columns != parts[0].weights.columns for part in parts):
        return
    siblings = _Siblings(parts)
    for part in parts:
        part.__class__ = Sibling
        part.join(siblings)


def as_float32(x: mx.array) -> mx.array:
    """Return an array as float32; itself, if it is."""
    return x if x.dtype == mx.float32 else x.astype(mx.float32)
