"""GGUF files of tiny models, written as llama.cpp's converter writes those of large ones.

The models are mlx-lm's own, with random weights; the names are those that the gguf package maps theirs to. What the
converter does to weights and settings on the way is done here, and undone for the reference: the model with the weights
that the file's blocks stand for.
"""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from attrs import field, frozen
from gguf import GGMLQuantizationType as Kind
from tokenizers import Tokenizer

Array = npt.NDArray[Any]
Config = dict[str, Any]

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

PLAIN: Config = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 20000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def float_kind(name: str) -> Kind:
    """Return the kind of every tensor where nothing is quantised: as a converter writes float16."""
    return Kind.F16 if name.endswith(".weight") and "norm" not in name and "conv.conv" not in name else Kind.F32


def mixed_kind(name: str) -> Kind:
    """Return kinds that MLX has the same of, different ones side by side."""
    if float_kind(name) is Kind.F32:
        return Kind.F32
    if "v_proj" in name or "down_proj" in name:
        return Kind.Q8_0
    return Kind.Q4_1 if "gate" in name or "embed" in name else Kind.Q4_0


@frozen(kw_only=True)
class Written:
    """How an architecture gets into a GGUF.

    `config` are the settings that it has beside `PLAIN`, in mlx-lm's words. `interleaved`: the rows of queries and keys
    change places. `norm_shift` is added to norms. `add` writes the settings that others do not have.
    """

    architecture: str
    model_type: str
    config: Config = field(factory=dict)
    interleaved: bool = False
    norm_shift: float = 0.0
    add: Callable[[gguf.GGUFWriter, Config], None] = lambda writer, config: None
    further: Callable[[Config], dict[str, Array]] = lambda config: {}

    def whole(self, vocabulary: int) -> Config:
        """Return all settings."""
        return {**PLAIN, "model_type": self.model_type, "vocab_size": vocabulary, **self.config}


def network_of(config: Config, weights: Mapping[str, Array]) -> Any:
    """Return mlx-lm's model with these weights."""
    import mlx.core as mx

    module = import_module(f"mlx_lm.models.{config['model_type']}")
    network = module.Model(module.ModelArgs.from_dict(config))
    arrays = [(name, mx.array(array)) for name, array in weights.items()]
    if hasattr(network, "sanitize"):
        arrays = list(network.sanitize(dict(arrays)).items())
    network.load_weights(arrays)
    return network


def random_weights(config: Config, seed: int = 0) -> dict[str, Array]:
    """Return weights for a model, by mlx-lm's names. Those of vectors and filters are numbers that float16 has."""
    from mlx.utils import tree_flatten

    module = import_module(f"mlx_lm.models.{config['model_type']}")
    network = module.Model(module.ModelArgs.from_dict(config))
    random = np.random.default_rng(seed)
    found = {}
    for name, array in tree_flatten(network.parameters()):
        scale = 0.25 if array.ndim == 1 or "embed" in name else 0.12
        values = random.normal(0, scale, array.shape)
        if array.ndim == 1 or "conv.conv" in name:
            values = np.round((values + ("norm" in name)) * 64) / 64
        found[name] = values.astype(np.float32)
    if config["tie_word_embeddings"]:
        found.pop("lm_head.weight", None)
    return found


def logits(network: Any, tokens: int, count: int = 48) -> Array:
    """Return what a model answers to some tokens: [count, vocabulary]."""
    import mlx.core as mx

    prompt = np.random.default_rng(5).integers(0, tokens, (1, count))
    return np.array(network(mx.array(prompt))[0].astype(mx.float32))


def write_model(
    path: Path,
    written: Written,
    tokenizer: Tokenizer,
    kind: Callable[[str], Kind] = mixed_kind,
    seed: int = 0,
    quantise: Callable[[Array, Kind], Array] = gguf.quants.quantize,
) -> Any:
    """Write a GGUF; return the reference, a network. `quantise` makes blocks of weights, [rows, bytes]."""
    config = written.whole(tokenizer.get_vocab_size())
    writer = gguf.GGUFWriter(path, written.architecture)
    add_settings(writer, config)
    written.add(writer, config)
    add_byte_level(writer, tokenizer)
    reference = {}
    names = gguf.get_tensor_name_map(_architecture(written.architecture), config["num_hidden_layers"])
    for ours, values in random_weights(config, seed).items():
        there, back = _changes(ours, written, config)
        blocks = quantise(np.ascontiguousarray(there(values)), kind(ours))
        reference[ours] = back(np.array(gguf.quants.dequantize(blocks, kind(ours)), np.float32))
        theirs = names.get_name(_original(ours), try_suffixes=(".weight", ".bias"))
        assert theirs is not None, ours
        writer.add_tensor(theirs, blocks, raw_dtype=kind(ours))
    for theirs, values in written.further(config).items():
        writer.add_tensor(theirs, values.astype(np.float32), raw_dtype=Kind.F32)
    finish(writer)
    return network_of(config, reference)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write everything that was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _architecture(name: str) -> gguf.MODEL_ARCH:
    return next(number for number, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


def _original(name: str) -> str:
    """Return the original's name of a tensor that mlx-lm has another name for."""
    return name.replace(".switch_mlp.", ".experts.").replace("block_sparse_moe.experts", "mlp.experts")


def _changes(name: str, written: Written, config: Config) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Return what the converter does to a tensor, and what undoes it."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    if written.interleaved and heads is not None:
        return lambda values: _permute(values, config[heads]), lambda values: _permute_back(values, config[heads])
    if written.norm_shift and name.endswith("norm.weight"):
        return lambda values: values + np.float32(1), lambda values: values - np.float32(1)
    if name.endswith("conv.conv.weight"):
        # MLX has the filter's steps before its one channel.
        return lambda values: values[..., 0], lambda values: values[..., None]
    return lambda values: values, lambda values: values


def _permute(values: Array, heads: int) -> Array:
    order = np.arange(len(values)).reshape(heads, 2, len(values) // heads // 2).swapaxes(1, 2).reshape(-1)
    return values[order]


def _permute_back(values: Array, heads: int) -> Array:
    order = np.arange(len(values)).reshape(heads, 2, len(values) // heads // 2).swapaxes(1, 2).reshape(-1)
    back = np.empty_like(values)
    back[order] = values
    return back


def add_settings(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the settings that every converter writes, and those that follow from the configuration."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    if config["model_type"] != "lfm2":
        writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config["model_type"] not in ("gemma", "gemma2"):
        writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])


def add_byte_level(writer: gguf.GGUFWriter, tokenizer: Tokenizer, splitting: str = "smollm") -> None:
    """Write a byte-level BPE tokenizer with ChatML's special tokens."""
    described = json.loads(tokenizer.to_str())["model"]
    tokens = [str(tokenizer.id_to_token(number)) for number in range(tokenizer.get_vocab_size())]
    added = {str(token.content): token.special for token in tokenizer.get_added_tokens_decoder().values()}
    kinds = {None: gguf.TokenType.NORMAL, True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds[added.get(token)] for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in described["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id("<|im_start|>"))
    writer.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
