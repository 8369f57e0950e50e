"""A GGUF file → an MLX model folder, without losing a bit of the weights.

Two of GGUF's block formats are exactly MLX's affine quantisation: a Q4_1 block is 32 four-bit numbers q with a scale
d and an offset m, the weight being d·q + m, and MLX stores the same three. A Q8_0 block has signed bytes and no
offset; shifted by 128 they become MLX's unsigned ones with the offset −128·d. So nothing is quantised anew: blocks are
only taken apart and packed in MLX's order. (MLX's own GGUF reader does the same, but needs MLX and trusts the file.)

llama.cpp interleaves the two halves of each attention head's query and key rows for its kind of rotary embedding;
that is undone. The tokenizer, the chat template and the settings come from the file's metadata.

What is converted: the `llama` architecture with weights in Q4_1, Q8_0, F16 and F32, and a byte-level BPE tokenizer.
Anything else is refused by name. The file is trusted: the caller has checked its SHA-256.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Array = npt.NDArray[Any]

GROUP = 32
CONTROL_TOKEN = 3

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

# How each kind of tokenizer splits text before byte-pair encoding, by GGUF's name for it.
PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


class UnsupportedGGUF(Exception):
    """The file is of a kind that is not converted; the message says which."""


def convert(file: Path, folder: Path) -> None:
    """Write the model in `file` to `folder`, which exists and is empty. Raises UnsupportedGGUF."""
    reader = GGUFReader(file)
    metadata = {name: entry.contents() for name, entry in reader.fields.items()}
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedGGUF(f"the architecture {architecture!r} is not converted, only 'llama'")
    tokenizer = _tokenizer(metadata)
    config = _config(metadata, [tensor.name for tensor in reader.tensors])
    weights: dict[str, Array] = {}
    for tensor in reader.tensors:
        name = _mlx_name(tensor.name)
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.rpartition(".")[2])
        parts, bits = _unpack(tensor)
        if bits is not None:
            config["quantization"][name] = {"group_size": GROUP, "bits": bits}
        for part, array in parts.items():
            rows = array if heads is None else _head_halves(array, config[heads])
            weights[f"{name}.{part}"] = np.ascontiguousarray(rows)
    save_file(weights, folder / "model.safetensors", metadata={"format": "mlx"})
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(metadata))
    _write_json(folder / "config.json", config)


def _config(metadata: dict[str, Any], tensors: list[str]) -> dict[str, Any]:
    of = metadata.__getitem__
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": of("llama.embedding_length"),
        "num_hidden_layers": of("llama.block_count"),
        "intermediate_size": of("llama.feed_forward_length"),
        "num_attention_heads": of("llama.attention.head_count"),
        "num_key_value_heads": of("llama.attention.head_count_kv"),
        # GGUF holds a float32; the shortest decimal that it stands for is the number that was written.
        "rms_norm_eps": float(str(np.float32(of("llama.attention.layer_norm_rms_epsilon")))),
        "rope_theta": of("llama.rope.freq_base"),
        "max_position_embeddings": of("llama.context_length"),
        "vocab_size": len(of("tokenizer.ggml.tokens")),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": of("tokenizer.ggml.bos_token_id"),
        "eos_token_id": of("tokenizer.ggml.eos_token_id"),
        "quantization": {"group_size": GROUP, "bits": 4},
    }


def _mlx_name(name: str) -> str:
    stem, _, part = name.rpartition(".")
    if part == "weight":
        if stem in OUTER_NAMES:
            return OUTER_NAMES[stem]
        block, _, rest = stem.removeprefix("blk.").partition(".")
        if stem.startswith("blk.") and block.isdecimal() and rest in LAYER_NAMES:
            return f"model.layers.{block}.{LAYER_NAMES[rest]}"
    raise UnsupportedGGUF(f"the tensor {name!r} is not one of a llama model")


def _unpack(tensor: ReaderTensor) -> tuple[dict[str, Array], int | None]:
    """Return a tensor's parts in MLX's form, and the bits of its weights; None where it is not quantised."""
    kind = tensor.tensor_type
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return {"weight": tensor.data}, None
    if kind not in (GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0):
        raise UnsupportedGGUF(f"the tensor {tensor.name!r} is stored as {kind.name}, which is not converted")
    columns, rows = (int(size) for size in tensor.shape)
    blocks = tensor.data.reshape(rows, columns // GROUP, -1)
    if kind == GGMLQuantizationType.Q4_1:
        scales, biases, quants = blocks[..., 0:2], blocks[..., 2:4], blocks[..., 4:]
        # A block's first sixteen numbers are the low halves of its bytes, the others the high ones.
        numbers = np.concatenate([quants & 0x0F, quants >> 4], axis=-1).reshape(rows, columns)
        weight = (numbers[:, 0::2] | numbers[:, 1::2] << 4).view(np.uint32)
        return {"weight": weight, "scales": _float16(scales), "biases": _float16(biases)}, 4
    scales = _float16(blocks[..., 0:2])
    # Flipping the sign bit adds 128 to a byte in two's complement.
    weight = (blocks[..., 2:] ^ 0x80).reshape(rows, columns).view(np.uint32)
    return {"weight": weight, "scales": scales, "biases": scales * np.float16(-128)}, 8


def _float16(pairs: Array) -> Array:
    return np.ascontiguousarray(pairs).view(np.float16)[..., 0]


def _head_halves(rows: Array, heads: int) -> Array:
    """Undo llama.cpp's interleaving of the two halves of each head's rows."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if model != "gpt2" or pre not in PRE_TOKENIZERS:
        raise UnsupportedGGUF(f"the tokenizer {model!r} with {pre!r} splitting is not converted")
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == CONTROL_TOKEN
        ]
    )
    return tokenizer


def _tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    named = {
        f"{role}_token": tokens[metadata[key]]
        for role, key in (
            ("bos", "tokenizer.ggml.bos_token_id"),
            ("eos", "tokenizer.ggml.eos_token_id"),
            ("pad", "tokenizer.ggml.padding_token_id"),
            ("unk", "tokenizer.ggml.unknown_token_id"),
        )
        if key in metadata
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        "chat_template": metadata["tokenizer.chat_template"],
        **named,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
