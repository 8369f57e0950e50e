"""Having one network computed by the kernels of `osaurus_cpu`.

MLX composes most of a transformer's pass from small operations on CPUs, and multiplies quantised weights in scalar
loops. The kernels do both as the processor can, on float32 activations. The difficulty is to bring them into networks
that are written by others and call `mx.fast` and mlx_lm's functions by name, without another network, dtype or device
ever meeting them: nothing of MLX or mlx_lm is replaced. Instead

- modules with quantised weights give way to modules of ours, which hold the weights packed, and once (`packed`);
- every other module of the network whose code names something that a kernel does becomes an instance of a subclass,
  made for this network, whose methods have the same code and see ours under that name;
- layers whose code is the one that most models have are computed as a whole (`whole_layers`).

What a kernel does not take (another dtype, a mask of other shape) is MLX's own again, call by call. Rejected: replacing
attributes of `mx.fast`, which every thread and model would see; code of ours for each architecture.
"""

from collections.abc import Callable
from inspect import signature
from types import FunctionType, ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from attrs import define, field, frozen
from mlx_lm.models import activations, base, gemma4_text
from mlx_lm.models.cache import BatchKVCache, BatchRotatingKVCache, KVCache, RotatingKVCache

from . import whole_layers
from .known_code import gate_of
from .packed import Linear, Packed, as_float32, osaurus_cpu, pack
from .rotations import Rotations

# Where layers are not computed as a whole, making the graph of a pass takes a quarter as long as computing it, for a
# single row. So what has been made of it is begun after every few layers.
LAYERS_AHEAD = 4

# Caches of keys and values that are arrays, one of each.
CACHES = (KVCache, BatchKVCache, RotatingKVCache, BatchRotatingKVCache)


def install(network: nn.Module) -> None:
    """Have this network computed by the kernels; its quantised weights are read, the other arrays are left lazy."""
    pack(network)
    functions = _Functions()
    # They are told by their code, before any of it is replaced.
    whole = whole_layers.find(network, functions.rotations)
    for _, module in network.named_modules():
        if not isinstance(module, Packed):
            module.__class__ = functions.subclass(type(module), gate_of(module))
    for layer, step in whole:
        whole_layers.install(layer, step)
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


def _gated(kind: type, gate: str) -> Callable[[nn.Module, mx.array], mx.array]:
    """Return that code with both products and the gate in one."""

    def __call__(self: nn.Module, x: mx.array) -> mx.array:  # noqa: N807 - it becomes one
        first, second = self["gate_proj"], self["up_proj"]
        if any(type(part) is not Linear for part in (first, second)) or ("bias" in first) != ("bias" in second):
            return kind.__call__(self, x)
        biases = first.get("bias"), second.get("bias")
        return self["down_proj"](osaurus_cpu.gated_matmul(as_float32(x), first.weights, second.weights, gate, *biases))

    return __call__


@define(eq=False)
class _Functions:
    """What the code of one network's modules finds under the names that kernels stand behind."""

    rotations: Rotations = field(factory=Rotations, init=False)
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

    def subclass(self, kind: type, gate: str | None) -> type:
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
        rotation = self.rotations.find(dims, traditional, base, scale, freqs)
        if isinstance(offset, mx.array):
            return osaurus_cpu.rotate(rotation, x, 0, offset if offset.dtype == mx.int32 else offset.astype(mx.int32))
        return osaurus_cpu.rotate(rotation, x, offset)

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
            sinks = as_float32(sinks)
        if isinstance(mask, mx.array):
            shown = mask if mask.dtype == mx.bool_ else as_float32(mask)
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
