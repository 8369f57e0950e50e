"""Layers that are computed as a whole, where their code is the one that most models have.

Each operation of MLX's graph costs some microseconds to make and to hand out, and a layer has almost thirty: for a
single row that took as long as its products. `osaurus_cpu.Layer` does what lies between two layers in four operations,
by the same kernels in the same order, so that nothing differs but the time.

A layer is known by the code of its class and of its parts' classes, whatever the model is called. It writes to
mlx_lm's plain caches as their own methods would; where one is of another kind, or anything else is not as expected,
the layer's own code takes the step as before.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from attrs import define, field
from mlx_lm.models import llama, qwen3
from mlx_lm.models.cache import BatchKVCache, KVCache
from mlx_lm.models.rope_utils import Llama3RoPE

from .joining import make_room
from .known_code import gate_of, runs_code_of
from .packed import Linear, as_float32, osaurus_cpu
from .rotations import Rotations

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
NETWORK = ("gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")
HEAD_NORMS = ("q_norm", "k_norm")


def find(network: nn.Module, rotations: Rotations) -> list[tuple[nn.Module, "WholeLayer"]]:
    """Return the layers of a network, whose weights have been packed, that can be computed as a whole."""
    layers = [layer for layer in getattr(network, "layers", []) if isinstance(layer, nn.Module)]
    return [(layer, WholeLayer(layer, gate, rotations)) for layer in layers if (gate := _gate_of(layer))]


def _gate_of(layer: nn.Module) -> str | None:
    """Return the gate of a layer that is known; None for others."""
    attention, network = layer.get("self_attn"), layer.get("mlp")
    if not runs_code_of(layer, llama.TransformerBlock) or not runs_code_of(attention, llama.Attention, qwen3.Attention):
        return None
    gate = gate_of(network)
    if gate is None or not runs_code_of(attention.get("rope"), nn.RoPE, Llama3RoPE):
        return None
    norms = [layer.get(name) for name in NORMS] + [attention[name] for name in HEAD_NORMS if name in attention]
    matrices = [attention.get(name) for name in PROJECTIONS] + [network.get(name) for name in NETWORK]
    if not all(runs_code_of(norm, nn.RMSNorm) for norm in norms) or not all(
        isinstance(one, Linear) for one in matrices
    ):
        return None
    # Values may be of another width than keys.
    return gate if attention["k_proj"].weights.rows == attention["v_proj"].weights.rows else None


def install(layer: nn.Module, whole: "WholeLayer") -> None:
    """Have a layer computed as a whole wherever that can be."""
    kind: Any = type(layer)

    def __call__(  # noqa: N807 - it becomes one
        self: nn.Module, x: mx.array, mask: mx.array | str | None = None, cache: Any = None
    ) -> mx.array:
        output = whole.step(x, mask, cache)
        return kind.__call__(self, x, mask, cache) if output is None else output

    layer.__class__ = type(kind.__name__, (kind,), {"__call__": __call__})


@define(eq=False)
class WholeLayer:
    """How one layer is computed."""

    _layer: Any
    _gate: str
    _rotations: Rotations
    _parts: Any = field(default=None, init=False)

    def step(self, x: mx.array, mask: mx.array | str | None, cache: Any) -> mx.array | None:
        """Return the layer's output, the cache having what was read; None if its own code is to do that.

        x: float32, (rows, length, size).
        """
        length = x.shape[1]
        masked = isinstance(mask, mx.array) or mask == "causal" or (mask is None and length == 1)
        if x.dtype != mx.float32 or not masked:
            return None
        if type(cache) is KVCache:
            first, offset, offsets = cache.offset, cache.offset, None
        elif type(cache) is BatchKVCache:
            first, offset, offsets = cache._idx, 0, cache.offset
        else:
            return None
        if cache.keys is None:
            self._begin(cache, x.shape[0])
        elif cache.keys.dtype != mx.float16:
            return None
        make_room(cache, first + length)
        if self._parts is None:
            self._parts = self._make_parts()
        projected, cache.keys, cache.values = self._parts.begin(x, cache.keys, cache.values, first, offset, offsets)
        cache.offset = cache.offset + length
        if offsets is not None:
            cache._idx = first + length
        shown = mask if isinstance(mask, mx.array) else None
        if shown is not None and shown.dtype != mx.bool_:
            shown = as_float32(shown)
        output: mx.array = self._parts.finish(x, projected, cache.keys, cache.values, first + length, shown)
        return output

    def _make_parts(self) -> Any:
        # It takes them as they are in memory.
        mx.eval(self._layer.parameters())
        attention, network = self._layer.self_attn, self._layer.mlp
        rope = attention.rope
        if runs_code_of(rope, Llama3RoPE):
            rotation = self._rotations.find(rope.dims, rope.traditional, None, 1.0, rope._freqs)
        else:
            rotation = self._rotations.find(rope.dims, rope.traditional, rope.base, rope.scale, None)
        return osaurus_cpu.Layer(
            heads=attention.n_heads,
            scale=attention.scale,
            rotation=rotation,
            norms=_norms(self._layer, NORMS),
            head_norms=_norms(attention, HEAD_NORMS) if HEAD_NORMS[0] in attention else None,
            projections=_matrices(attention, PROJECTIONS),
            network=_matrices(network, NETWORK),
            gate=self._gate,
        )

    def _begin(self, cache: KVCache | BatchKVCache, rows: int) -> None:
        """Make an empty cache one of so many rows."""
        attention = self._layer.self_attn
        shape = (rows, attention.n_kv_heads, 0, attention.k_proj.weights.rows // attention.n_kv_heads)
        cache.keys, cache.values = mx.zeros(shape, mx.float16), mx.zeros(shape, mx.float16)


def _norms(module: nn.Module, names: tuple[str, ...]) -> tuple[tuple[mx.array, float], ...]:
    return tuple((module[name].weight, module[name].eps) for name in names)


def _matrices(module: nn.Module, names: tuple[str, ...]) -> list[tuple[Any, mx.array | None]]:
    return [(module[name].weights, module[name].get("bias")) for name in names]
