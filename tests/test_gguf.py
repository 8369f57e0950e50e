"""Conversion of GGUF files: to the bit what the file holds, or a refusal that names what is not converted.

The reference is gguf, the library of llama.cpp: it writes the files and says what their blocks stand for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from osaurus.library.gguf import UnsupportedGGUF, convert
from osaurus.library.store import ModelStore

Array = npt.NDArray[Any]

WIDTH, INNER, HEADS, KEY_VALUE_HEADS, LAYERS = 64, 96, 4, 2, 2
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
KEY_ROWS = WIDTH // HEADS * KEY_VALUE_HEADS

# llama.cpp's name of each tensor of a layer: MLX's name, shape, and the kind that the tests store it as.
LAYER: dict[str, tuple[str, tuple[int, ...], Kind]] = {
    "attn_norm": ("input_layernorm", (WIDTH,), Kind.F32),
    "attn_q": ("self_attn.q_proj", (WIDTH, WIDTH), Kind.Q4_1),
    "attn_k": ("self_attn.k_proj", (KEY_ROWS, WIDTH), Kind.Q8_0),
    "attn_v": ("self_attn.v_proj", (KEY_ROWS, WIDTH), Kind.Q4_1),
    "attn_output": ("self_attn.o_proj", (WIDTH, WIDTH), Kind.Q8_0),
    "ffn_norm": ("post_attention_layernorm", (WIDTH,), Kind.F32),
    "ffn_gate": ("mlp.gate_proj", (INNER, WIDTH), Kind.Q4_1),
    "ffn_up": ("mlp.up_proj", (INNER, WIDTH), Kind.F16),
    "ffn_down": ("mlp.down_proj", (WIDTH, INNER), Kind.Q4_1),
}


def tensors_of(vocabulary: int) -> dict[str, tuple[str, tuple[int, ...], Kind]]:
    """Return the tensors of a model, by llama.cpp's names."""
    found = {
        "token_embd": ("model.embed_tokens", (vocabulary, WIDTH), Kind.Q8_0),
        "output_norm": ("model.norm", (WIDTH,), Kind.F32),
    }
    for number in range(LAYERS):
        for theirs, (ours, shape, kind) in LAYER.items():
            found[f"blk.{number}.{theirs}"] = (f"model.layers.{number}.{ours}", shape, kind)
    return found


def heads_of(name: str) -> int | None:
    """Return how many heads a tensor's rows belong to, if llama.cpp changes their order."""
    return {"attn_q": HEADS, "attn_k": KEY_VALUE_HEADS}.get(name.rpartition(".")[2])


def row_order(rows: int, heads: int) -> Array:
    """Return which row llama.cpp's converter puts where."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)


def write_gguf(
    path: Path,
    tokenizer: Tokenizer,
    seed: int = 0,
    architecture: str = "llama",
    tokenizer_model: str = "gpt2",
    splitting: str = "smollm",
    further: Mapping[str, tuple[Array, Kind]] | None = None,
) -> dict[str, Array]:
    """Write a llama with random weights as llama.cpp's converter does; return what its tensors stand for.

    `further` are tensors as stored, in place of or beside the model's own.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    described = json.loads(tokenizer.to_str())["model"]
    tokens = [str(tokenizer.id_to_token(number)) for number in range(tokenizer.get_vocab_size())]
    special = {str(token.content) for token in tokenizer.get_added_tokens_decoder().values()}
    writer.add_tokenizer_model(tokenizer_model)
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in described["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id("<|im_start|>"))
    writer.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    writer.add_unk_token_id(tokenizer.token_to_id("<|endoftext|>"))
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(seed)
    meant: dict[str, Array] = {}
    stored = dict(further or {})
    for theirs, (ours, shape, kind) in tensors_of(len(tokens)).items():
        weights = random.normal(0, 0.1, shape).astype(np.float32)
        heads = heads_of(theirs)
        order = np.arange(shape[0]) if heads is None else row_order(shape[0], heads)
        blocks = gguf.quants.quantize(weights[order], kind)
        meant[ours] = np.empty(shape, np.float32)
        meant[ours][order] = gguf.quants.dequantize(blocks, kind)
        stored.setdefault(f"{theirs}.weight", (blocks, kind))
    for name, (data, kind) in stored.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def dequantise(arrays: Mapping[str, Array], name: str, bits: int, group: int = 32) -> Array:
    """Return what MLX's affine quantisation stands for: numbers of few bits, the lowest of a word first."""
    weight, scales, biases = (arrays[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
    assert weight.dtype == np.uint32
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    numbers = (weight[..., None] >> shifts) & np.uint32(2**bits - 1)
    grouped = numbers.reshape(weight.shape[0], -1, group).astype(np.float32)
    weights: Array = grouped * scales[..., None].astype(np.float32) + biases[..., None].astype(np.float32)
    return weights.reshape(weight.shape[0], -1)


def converted(tmp_path: Path) -> tuple[Path, dict[str, Array], dict[str, Any]]:
    """Convert `model.gguf`; return the new folder, its arrays and its configuration."""
    folder = tmp_path / "models" / "org" / "Tiny"
    folder.mkdir(parents=True)
    convert(tmp_path / "model.gguf", folder)
    return folder, load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text("utf-8"))


def refusal(tmp_path: Path) -> str:
    """Return what `model.gguf` is refused with."""
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(UnsupportedGGUF) as caught:
        convert(tmp_path / "model.gguf", folder)
    assert list(folder.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("seed", range(3))
def test_weights_are_exactly_what_the_file_holds(seed: int, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    meant = write_gguf(tmp_path / "model.gguf", tiny_tokenizer, seed)
    _, arrays, config = converted(tmp_path)
    assert {name.rpartition(".")[0] for name in arrays} == set(meant)
    for ours, expected in meant.items():
        weight = arrays[f"{ours}.weight"]
        if f"{ours}.scales" in arrays:
            settings = config["quantization"][ours]
            weight = dequantise(arrays, ours, settings["bits"], settings["group_size"])
        assert np.array_equal(weight.astype(np.float32), expected), ours


def test_each_tensor_keeps_its_kind(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer)
    _, arrays, config = converted(tmp_path)
    bits = {name: entry["bits"] for name, entry in config["quantization"].items() if isinstance(entry, dict)}
    for ours, _, kind in tensors_of(tiny_tokenizer.get_vocab_size()).values():
        assert bits.get(ours) == {Kind.Q4_1: 4, Kind.Q8_0: 8}.get(kind)
        if kind in (Kind.F16, Kind.F32):
            assert arrays[f"{ours}.weight"].dtype == {Kind.F16: np.float16, Kind.F32: np.float32}[kind]


def test_the_largest_and_smallest_blocks_survive(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    shape = (INNER, WIDTH)
    weights = np.zeros(shape, np.float32)
    weights[0] = np.linspace(-500, 500, WIDTH)
    weights[1] = np.linspace(-1e-6, 1e-6, WIDTH)
    weights[2] = 3.0
    weights[3, 0] = -1.0
    blocks = {kind: gguf.quants.quantize(weights, kind) for kind in (Kind.Q4_1, Kind.Q8_0)}
    write_gguf(
        tmp_path / "model.gguf",
        tiny_tokenizer,
        further={f"blk.{number}.ffn_gate.weight": (data, kind) for number, (kind, data) in enumerate(blocks.items())},
    )
    _, arrays, _ = converted(tmp_path)
    for number, (kind, data) in enumerate(blocks.items()):
        found = dequantise(arrays, f"model.layers.{number}.mlp.gate_proj", {Kind.Q4_1: 4, Kind.Q8_0: 8}[kind])
        assert np.array_equal(found, gguf.quants.dequantize(data, kind)), kind.name


def test_the_configuration_comes_from_the_metadata(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer)
    _, _, config = converted(tmp_path)
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "max_position_embeddings": 512,
        "vocab_size": tiny_tokenizer.get_vocab_size(),
        "tie_word_embeddings": True,
        "bos_token_id": tiny_tokenizer.token_to_id("<|im_start|>"),
        "eos_token_id": tiny_tokenizer.token_to_id("<|im_end|>"),
    }
    assert {key: value for key, value in config.items() if key != "quantization"} == expected
    assert config["quantization"]["group_size"] == 32


def test_an_output_of_its_own_is_not_tied_to_the_embedding(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    weights = np.random.default_rng(9).normal(0, 0.1, (tiny_tokenizer.get_vocab_size(), WIDTH)).astype(np.float32)
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, further={"output.weight": (weights, Kind.F32)})
    _, arrays, config = converted(tmp_path)
    assert config["tie_word_embeddings"] is False
    assert np.array_equal(arrays["lm_head.weight"], weights)


TEXTS = [
    "def test_the_tokenizer(tmp_path: Path) -> None:\n    return None\n",
    "The quick brown fox  jumps\tover the lazy dog's back.",
    "Süße Grüße, \u65e5\u672c\u8a9e, \U0001f995\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "<|im_start|>user\nhi<|im_end|>\n",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_reads_as_the_one_it_was_made_from(text: str, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer)
    folder, _, _ = converted(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = tokenizer.encode(text).ids
    assert tokens == tiny_tokenizer.encode(text).ids
    assert tokenizer.decode(tokens, skip_special_tokens=False) == text


def test_the_tokenizer_reads_each_digit_by_itself(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    described = json.loads(tiny_tokenizer.to_str())
    described["model"]["vocab"]["13"] = tiny_tokenizer.get_vocab_size()
    described["model"]["merges"].append(["1", "3"])
    joining = Tokenizer.from_str(json.dumps(described))
    assert joining.encode("1337").tokens == ["13", "3", "7"]
    write_gguf(tmp_path / "model.gguf", joining)
    folder, _, _ = converted(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("1337").tokens == ["1", "3", "3", "7"]


def test_control_tokens_are_special(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer)
    folder, _, _ = converted(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    assert found == {number: token.content for number, token in tiny_tokenizer.get_added_tokens_decoder().items()}
    assert tokenizer.decode(tokenizer.encode("<|im_start|>a<|im_end|>").ids) == "a"
    assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()


def test_template_and_named_tokens_come_from_the_metadata(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer)
    folder, _, _ = converted(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    assert config["chat_template"] == TEMPLATE
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert config["unk_token"] == "<|endoftext|>"
    assert config["model_max_length"] == 512
    assert "pad_token" not in config


def test_the_store_finds_what_was_converted(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    meant = write_gguf(tmp_path / "model.gguf", tiny_tokenizer)
    folder, _, _ = converted(tmp_path)
    found = ModelStore(tmp_path / "models").find("org/tiny")
    assert (found.folder, found.family, found.quantization) == (folder, "llama", "Q4")
    assert found.parameters == sum(weights.size for weights in meant.values())


def test_another_architecture_is_refused_by_name(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, architecture="qwen2")
    assert "qwen2" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("model", "splitting"), [("llama", "default"), ("gpt2", "llama-bpe"), ("bert", "smollm"), ("gpt2", "gpt-2")]
)
def test_another_tokenizer_is_refused_by_name(
    model: str, splitting: str, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, tokenizer_model=model, splitting=splitting)
    message = refusal(tmp_path)
    assert repr(model) in message
    assert repr(splitting) in message


@pytest.mark.parametrize(
    "kind",
    [Kind.Q4_0, Kind.Q5_0, Kind.Q5_1, Kind.BF16, Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL],
    ids=lambda kind: str(kind.name),
)
def test_weights_of_another_kind_are_refused_by_name(kind: Kind, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.zeros((INNER, 256 // block * size), np.uint8)
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, further={"blk.1.ffn_up.weight": (data, kind)})
    message = refusal(tmp_path)
    assert kind.name in message
    assert "'blk.1.ffn_up.weight'" in message


def test_a_vector_of_another_kind_is_refused_by_name(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    norm = np.zeros(WIDTH * 2, np.uint8)
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, further={"blk.1.ffn_norm.weight": (norm, Kind.BF16)})
    message = refusal(tmp_path)
    assert "BF16" in message
    assert "'blk.1.ffn_norm.weight'" in message


@pytest.mark.parametrize(
    "name",
    [
        "rope_freqs.weight",
        "blk.0.attn_q.bias",
        "blk.0.attn_q_norm.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.x.attn_norm.weight",
        "attn_norm.weight",
        "0.attn_norm.weight",
        "output_norm",
    ],
)
def test_a_tensor_of_no_llama_is_refused_by_name(name: str, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    tensor = np.ones(WIDTH, np.float32)
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, further={name: (tensor, Kind.F32)})
    assert repr(name) in refusal(tmp_path)
