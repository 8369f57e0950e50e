"""Having one network computed by the kernels of `osaurus_cpu`.

MLX composes most of a transformer's pass from small operations on CPUs, and multiplies quantised weights in scalar
loops. The kernels do both as the processor can, on float32 activations. The difficulty is to bring them into networks
that are written by others and call `mx.fast` and mlx_lm's functions by name, without another network, dtype or device
ever meeting them: nothing of MLX or mlx_lm is replaced. Instead

- modules with quantised weights give way to modules of ours, which hold the weights packed, and once;
- every other module of the network whose code names something that a kernel does becomes an instance of a subclass,
  made for this network, whose methods have the same code and see ours under that name.

What a kernel does not take (another dtype, a mask of other shape) is MLX's own again, call by call. Rejected: replacing
attributes of `mx.fast`, which every thread and model would see; code of ours for each architecture.
"""

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from types import FunctionType, ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from attrs import define, field, frozen
from mlx_lm.models import activations, base, gemma4_text, llama
from mlx_lm.models.cache import BatchKVCache, BatchRotatingKVCache, KVCache, RotatingKVCache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

# It has no types, and is not everywhere.
osaurus_cpu: Any = import_module("osaurus_cpu")

# What the kernels read; others are MLX's own business.
BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)

# Making the graph of a pass takes a quarter as long as computing it, for a single row. So what has been made of it is
# begun after every few layers.
LAYERS_AHEAD = 4

# Caches of keys and values that are arrays, one of each.
CACHES = (KVCache, BatchKVCache, RotatingKVCache, BatchRotatingKVCache)

# What networks ask for one after the other, of the same rows.
SIBLINGS = ("q_proj", "k_proj", "v_proj")


class Packed(nn.Module):
    """What modules with packed weights have in common; made from a module with quantised ones, which are read."""

    def __init__(self, quantised: nn.Module) -> None:
        super().__init__()
        arrays = [mx.contiguous(quantised[name]) for name in ("weight", "scales", "biases")]
        mx.eval(arrays)
        self.weights = osaurus_cpu.pack(*arrays, quantised.bits, quantised.group_size)
        # The same memory, as a parameter: it counts, and is told apart, like others.
        self.packed = self.weights.packed
        if "bias" in quantised:
            self.bias = quantised.bias.astype(mx.float32)
        self.freeze()


class Linear(Packed):
    """`nn.QuantizedLinear`."""

    def __call__(self, x: mx.array) -> mx.array:
        """Return x times the weights, float32; x: (…, columns)."""
        return osaurus_cpu.matmul(_float32(x), self.weights, self.get("bias"))


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
            self._products = osaurus_cpu.matmul_several(_float32(x), weights, [m.get("bias") for m in self.modules])
            self._rows = x
        if self._rows is not x:
            module = self.modules[place]
            return osaurus_cpu.matmul(_float32(x), module.weights, module.get("bias"))
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


class Embedding(Packed):
    """`nn.QuantizedEmbedding`; the output matrix as well, where a model ties both."""

    def __call__(self, x: mx.array) -> mx.array:
        """Return the rows of these tokens, float32; x: (…), the result (…, columns)."""
        return osaurus_cpu.rows_of(self.weights, x if x.dtype in (mx.int32, mx.uint32) else x.astype(mx.int32))

    def as_linear(self, x: mx.array) -> mx.array:
        """Return x times the weights, float32; x: (…, columns)."""
        return osaurus_cpu.matmul(_float32(x), self.weights)


class SwitchLinear(Packed):
    """mlx_lm's `QuantizedSwitchLinear`: the matrices of several experts."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:  # noqa: ARG002 - any order does
        """Return x times the weights of the experts that `indices` names for each row, float32."""
        x = osaurus_cpu.gather_matmul(_float32(x), self.weights, indices.astype(mx.uint32))
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
    """Return how many bytes more, or fewer if negative, the weights of a network take when they are packed."""
    return sum(map(_packed_nbytes, taken(network).values()))


def _packed_nbytes(module: nn.Module) -> int:
    *matrices, rows, groups = module.scales.shape
    width = 4 if module.bits <= 4 else 8
    group = module.group_size * width // 8 + 2 * module.scales.dtype.size
    packed = int(np.prod(matrices)) * -(-rows // 16) * 16 * groups * group
    return packed - sum(module[name].nbytes for name in ("weight", "scales", "biases"))


def install(network: nn.Module) -> None:
    """Have this network computed by the kernels; its quantised weights are read, the other arrays are left lazy."""
    quantised = taken(network)
    while quantised:
        # One after the other: what has been packed is let go of before the next is read.
        path, module = quantised.popitem()
        *parents, name = path.split(".")
        parent: Any = network
        for step in parents:
            parent = parent[int(step) if isinstance(parent, list) else step]
        parent[int(name) if isinstance(parent, list) else name] = REPLACEMENTS[type(module)](module)
    functions = _Functions()
    for _, module in network.named_modules():
        _join_siblings(module)
        if not isinstance(module, Packed):
            module.__class__ = functions.subclass(type(module))
    for layer in getattr(network, "layers", [])[LAYERS_AHEAD - 1 : -1 : LAYERS_AHEAD]:
        if isinstance(layer, nn.Module):
            layer.__class__ = _ahead(type(layer))


def _ahead(kind: type) -> type:
    """Return a subclass of a layer's class whose output is begun to be computed at once."""

    def __call__(self: nn.Module, *arguments: Any, **more: Any) -> Any:  # noqa: N807 - it becomes one
        output = kind.__call__(self, *arguments, **more)
        if isinstance(output, mx.array):
            mx.async_eval(output)
        return output

    return type(kind.__name__, (kind,), {"__call__": __call__})


def _join_siblings(module: nn.Module) -> None:
    """Have queries, keys and values computed together where the module's code asks for them in this order."""
    names = getattr(type(module).__call__, "__code__", install.__code__).co_names
    parts = [module.get(name) for name in SIBLINGS]
    if not any(names[place : place + 3] == SIBLINGS for place in range(len(names))):
        return
    if any(type(part) is not Linear or part.weights.columns != parts[0].weights.columns for part in parts):
        return
    siblings = _Siblings(parts)
    for part in parts:
        part.__class__ = Sibling
        part.join(siblings)


@frozen
class _HalfCache:
    """A cache as attention sees it that is computed here: it keeps keys and values as float16.

    Memory, and what is copied when rows join or their caches grow, is half of what float32 would take; kernels read
    them as fast. llama.cpp keeps them so as well.
    """

    _cache: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keep these, behind what is there; return all."""
        kept: tuple[mx.array, mx.array] = self._cache.update_and_fetch(
            keys.astype(mx.float16), values.astype(mx.float16)
        )
        return kept


def _keeps_keys(call: FunctionType) -> bool:
    """Tell whether a method puts keys and values into a cache that it is given, and attends to what is there."""
    names = {"update_and_fetch", "scaled_dot_product_attention"}
    return names.issubset(call.__code__.co_names) and "cache" in signature(call).parameters


def _halving(call: FunctionType) -> Callable[..., Any]:
    """Return the method of a module that attends, with its cache seen as one of float16."""
    place = list(signature(call).parameters).index("cache")

    def __call__(*arguments: Any, **named: Any) -> Any:  # noqa: N807 - it becomes one
        if len(arguments) > place:
            arguments = (*arguments[:place], _halved(arguments[place]), *arguments[place + 1 :])
        elif "cache" in named:
            named["cache"] = _halved(named["cache"])
        return call(*arguments, **named)

    return __call__


def _halved(cache: Any) -> Any:
    return _HalfCache(cache) if type(cache) in CACHES else cache


def argmax(logits: mx.array) -> npt.NDArray[np.uint32]:
    """Return the place of each row's highest logit, the first of equals. Logits: float32, (rows, vocabulary)."""
    return np.array(osaurus_cpu.argmax(logits))


def candidates(
    logits: mx.array, temperatures: mx.array, count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
    """Return each row's so many highest tempered logits in any order, which they are, and its logarithm of the sum.

    The sum is that of the exponentials of the whole row. Logits: float32, (rows, vocabulary), temperatures: (rows,).
    """
    best, places, totals = osaurus_cpu.candidates(logits, temperatures, count)
    mx.eval(best, places, totals)
    return np.array(best), np.array(places), np.array(totals)


def _float32(x: mx.array) -> mx.array:
    return x if x.dtype == mx.float32 else x.astype(mx.float32)


def _gate_of(kind: type) -> str | None:
    """Return the gate of a feed-forward network whose code is the one that most of mlx_lm's models have."""
    code = getattr(kind.__call__, "__code__", None)
    for gate, known in (("silu", llama.MLP.__call__), ("gelu", gemma4_text.MLP.__call__)):
        if code is not None and (code.co_code, code.co_names) == (known.__code__.co_code, known.__code__.co_names):
            return gate
    return None


def _gated(kind: type, gate: str) -> Callable[[nn.Module, mx.array], mx.array]:
    """Return that code with both products and the gate in one."""

    def __call__(self: nn.Module, x: mx.array) -> mx.array:  # noqa: N807 - it becomes one
        first, second = self["gate_proj"], self["up_proj"]
        if any(type(part) is not Linear for part in (first, second)) or ("bias" in first) != ("bias" in second):
            return kind.__call__(self, x)
        biases = first.get("bias"), second.get("bias")
        return self["down_proj"](osaurus_cpu.gated_matmul(_float32(x), first.weights, second.weights, gate, *biases))

    return __call__


@define(eq=False)
class _Functions:
    """What the code of one network's modules finds under the names that kernels stand behind."""

    _rotations: dict[Any, tuple[Any, osaurus_cpu.Rotation]] = field(factory=dict, init=False)
    _subclasses: dict[type, type] = field(factory=dict, init=False)
    _core: ModuleType = field(init=False)

    @_core.default
    def _make_core(self) -> ModuleType:
        core, fast = ModuleType("mlx.core"), ModuleType("mlx.core.fast")
        core.__dict__.update(vars(mx), fast=fast)
        fast.__dict__.update(
            vars(mx.fast),
            rms_norm=self.rms_norm,
            rope=self.rope,
            scaled_dot_product_attention=self.scaled_dot_product_attention,
        )
        return core

    def subclass(self, kind: type) -> type:
        """Return a subclass of a module's class whose methods see the kernels; the class itself where none is named."""
        if kind not in self._subclasses:
            methods: dict[str, Any] = {
                name: self._seeing(value)
                for ancestor in reversed(kind.__mro__[: kind.__mro__.index(nn.Module)])
                for name, value in vars(ancestor).items()
                if isinstance(value, FunctionType) and self._named(value)
            }
            call = methods.get("__call__")
            if call is not None and _keeps_keys(call):
                methods["__call__"] = _halving(call)
            gate = _gate_of(kind)
            if gate is not None:
                methods["__call__"] = _gated(kind, gate)
            self._subclasses[kind] = type(kind.__name__, (kind,), methods) if methods else kind
        return self._subclasses[kind]

    def _named(self, function: FunctionType) -> dict[str, Any]:
        """Return what of the names in a function's code stands for something else here."""
        names = function.__code__.co_names
        stand_ins = {
            "mx": (mx, self._core if "fast" in names else mx),
            "scaled_dot_product_attention": (base.scaled_dot_product_attention, self.attention),
            "swiglu": (activations.swiglu, self.swiglu),
            "geglu": (gemma4_text.geglu, self.geglu),
        }
        return {
            name: ours
            for name, (theirs, ours) in stand_ins.items()
            if name in names and function.__globals__.get(name) is theirs and ours is not theirs
        }

    def _seeing(self, function: FunctionType) -> FunctionType:
        seen = {**function.__globals__, **self._named(function)}
        copy = FunctionType(function.__code__, seen, function.__name__, function.__defaults__, function.__closure__)
        copy.__kwdefaults__ = function.__kwdefaults__
        return copy

    def rms_norm(self, x: mx.array, weight: mx.array | None, eps: float, **more: Any) -> mx.array:
        """`mx.fast.rms_norm`."""
        if more or x.dtype != mx.float32 or (weight is not None and weight.dtype != mx.float32):
            return mx.fast.rms_norm(x, weight, eps, **more)
        return osaurus_cpu.rms_norm(x, weight, eps)

    def rope(
        self,
        x: mx.array,
        dims: int,
        *,
        traditional: bool,
        base: float | None,
        scale: float,
        offset: int | mx.array,
        freqs: mx.array | None = None,
        **more: Any,
    ) -> mx.array:
        """`mx.fast.rope`."""
        if more or x.dtype != mx.float32 or x.ndim != 4:
            return mx.fast.rope(
                x, dims, traditional=traditional, base=base, scale=scale, offset=offset, freqs=freqs, **more
            )
        rotation = self._rotation(dims, traditional, base, scale, freqs)
        if isinstance(offset, mx.array):
            return osaurus_cpu.rotate(rotation, x, 0, offset if offset.dtype == mx.int32 else offset.astype(mx.int32))
        return osaurus_cpu.rotate(rotation, x, offset)

    def _rotation(
        self, dims: int, traditional: bool, base: float | None, scale: float, freqs: mx.array | None
    ) -> osaurus_cpu.Rotation:
        key = dims, traditional, base, scale, id(freqs)
        if key not in self._rotations:
            if freqs is None:
                assert base is not None, "mx.fast.rope has either a base or frequencies"
                periods = np.float64(base) ** (np.arange(0, dims, 2) / dims)
            else:
                periods = np.array(freqs.astype(mx.float32), dtype=np.float64)
            # The frequencies are kept with it: another array could get their identity.
            self._rotations[key] = freqs, osaurus_cpu.Rotation((scale / periods).tolist(), traditional)
        return self._rotations[key][1]

    def scaled_dot_product_attention(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        mask: mx.array | str | None = None,
        sinks: mx.array | None = None,
        **more: Any,
    ) -> mx.array:
        """`mx.fast.scaled_dot_product_attention`."""
        taken = q.ndim == 4 and q.dtype == mx.float32 and k.dtype == v.dtype and k.dtype in (mx.float32, mx.float16)
        if more or not taken:
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks, **more)
        if sinks is not None:
            sinks = _float32(sinks)
        if isinstance(mask, mx.array):
            shown = mask if mask.dtype == mx.bool_ else _float32(mask)
            return osaurus_cpu.attention(q, k, v, scale, mask=shown, sinks=sinks)
        return osaurus_cpu.attention(q, k, v, scale, causal=mask == "causal", sinks=sinks)

    def attention(
        self,
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """mlx_lm's function of the same name."""
        if hasattr(cache, "bits"):
            return base.scaled_dot_product_attention(queries, keys, values, cache, scale, mask, sinks)
        return self.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)

    def swiglu(self, gate: mx.array, x: mx.array) -> mx.array:
        """mlx_lm's function of the same name."""
        if gate.dtype != mx.float32 or x.dtype != mx.float32:
            return activations.swiglu(gate, x)
        return osaurus_cpu.glu(gate, x, "silu")

    def geglu(self, gate: mx.array, x: mx.array) -> mx.array:
        """mlx_lm's function of the same name."""
        if gate.dtype != mx.float32 or x.dtype != mx.float32:
            return gemma4_text.geglu(gate, x)
        return osaurus_cpu.glu(gate, x, "gelu")
