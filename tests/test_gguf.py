"""Conversion of GGUF files, as a whole: what the file holds, or a refusal that names what is not converted.

The reference is gguf, the library of llama.cpp: it writes the files and says what their blocks stand for.
"""

import json
import math
import shutil
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
    without: str | None = None,
    also: Mapping[str, Any] | None = None,
) -> dict[str, Array]:
    """Write a llama with random weights as llama.cpp's converter does; return what its tensors stand for.

    `further` are tensors as stored, in place of or beside the model's own. `without` is a key that is left out, `also`
    has further ones.
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
    if without is not None:
        writer.kv_data[0].pop(without, None)
    for key, value in (also or {}).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}[
            type(value)
        ]
        add(key, value)
    random = np.random.default_rng(seed)
    meant: dict[str, Array] = {}
    stored = dict(further or {})
    for theirs, (ours, shape, kind) in tensors_of(len(tokens)).items():
        weights = random.normal(0, 0.1, shape).astype(np.float32)
        if kind is Kind.F32:
            # A norm: trained ones are numbers that float16 has.
            weights = weights.astype(np.float16).astype(np.float32)
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
            assert arrays[f"{ours}.weight"].dtype == np.float16


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
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": tiny_tokenizer.token_to_id("<|im_start|>"),
        # What ends an answer by its own meaning does so too.
        "eos_token_id": [tiny_tokenizer.token_to_id("<|im_end|>"), tiny_tokenizer.token_to_id("<|endoftext|>")],
    }
    assert {key: value for key, value in config.items() if key != "quantization"} == expected
    assert config["quantization"]["group_size"] == 32


def test_an_output_of_its_own_is_not_tied_to_the_embedding(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    weights = np.random.default_rng(9).normal(0, 0.1, (tiny_tokenizer.get_vocab_size(), WIDTH)).astype(np.float32)
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, further={"output.weight": (weights, Kind.F32)})
    _, arrays, config = converted(tmp_path)
    assert config["tie_word_embeddings"] is False
    assert np.array_equal(arrays["lm_head.weight"], weights.astype(np.float16))


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
    assert (found.folder, found.family, found.quantization) == (folder, "llama", "Q8")
    assert found.parameters == sum(weights.size for weights in meant.values())


def test_another_architecture_is_refused_by_name(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, architecture="bert")
    message = refusal(tmp_path)
    assert "'bert'" in message
    assert "gemma3, granite, lfm2, llama" in message


@pytest.mark.parametrize("model", ["bert", "rwkv", "none"])
def test_another_tokenizer_is_refused_by_name(model: str, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, tokenizer_model=model)
    assert repr(model) in refusal(tmp_path)


@pytest.mark.parametrize("splitting", ["default", "falcon", "kimi-k2"])
def test_another_splitting_is_refused_by_name(splitting: str, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, splitting=splitting)
    assert repr(splitting) in refusal(tmp_path)


@pytest.mark.parametrize("kind", [Kind.Q8_K, Kind.I32, Kind.F64], ids=lambda kind: str(kind.name))
def test_weights_of_another_kind_are_refused_by_name(kind: Kind, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    width = 256 if block == 256 else WIDTH
    data = np.zeros((INNER, width // block * size), np.uint8)
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, further={"blk.1.ffn_up.weight": (data, kind)})
    message = refusal(tmp_path)
    assert "'blk.1.ffn_up.weight'" in message
    assert kind.name in message or "shape" in message


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_q_norm.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.x.attn_norm.weight",
        "blk.2.attn_norm.weight",
        "attn_norm.weight",
        "0.attn_norm.weight",
        "output_norm",
        "token_embd.scale",
    ],
)
def test_a_tensor_of_no_llama_is_refused_by_name(name: str, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    tensor = np.ones(WIDTH, np.float32)
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, further={name: (tensor, Kind.F32)})
    assert repr(name) in refusal(tmp_path)


def test_a_bias_without_the_others_is_answered_with_the_one_that_is_missing(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    bias = np.ones(WIDTH, np.float32)
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, further={"blk.0.attn_q.bias": (bias, Kind.F32)})
    assert "'blk.0.attn_k.bias' is missing" in refusal(tmp_path)


def test_a_tensor_of_another_shape_is_refused_with_the_one_it_should_have(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    norm = np.ones(WIDTH + 1, np.float32)
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, further={"blk.1.ffn_norm.weight": (norm, Kind.F32)})
    assert "'blk.1.ffn_norm.weight' has the shape [65], not [64]" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("blk.0.ffn_norm.weight", np.full(WIDTH, np.nan, np.float32), Kind.F32),
        ("blk.0.ffn_up.weight", np.full((INNER, WIDTH), np.inf, np.float16), Kind.F16),
        # A scale that is none.
        ("blk.0.ffn_gate.weight", np.full((INNER, WIDTH // 32 * 20), 0xFF, np.uint8), Kind.Q4_1),
    ],
)
def test_values_that_are_no_numbers_are_refused(
    name: str, values: Array, kind: Kind, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, further={name: (values, kind)})
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(UnsupportedGGUF, match=f"{name!r} has values that are no numbers"):
        convert(tmp_path / "model.gguf", folder)


KEYS = {
    "general.architecture": None,
    "llama.block_count": "block_count",
    "llama.embedding_length": "embedding_length",
    "llama.feed_forward_length": "feed_forward_length",
    "llama.attention.head_count": "head_count",
    "llama.attention.layer_norm_rms_epsilon": "layer_norm_rms_eps",
    "llama.context_length": "context_length",
    "tokenizer.ggml.model": "tokenizer_model",
    "tokenizer.ggml.pre": "tokenizer_pre",
    "tokenizer.ggml.tokens": "token_list",
    "tokenizer.ggml.token_type": "token_types",
    "tokenizer.ggml.merges": "token_merges",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_missing_is_named(key: str, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, without=key)
    assert f"lacks {key!r}" in refusal(tmp_path)


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")])
def test_a_key_with_a_value_of_another_type_is_named(key: str, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, without=key, also={key: ["of another type"]})
    assert f"{key!r} must be" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("llama.block_count", 2**31, "layers"),
        ("llama.block_count", 0, "'llama.block_count' is 0"),
        ("llama.block_count", 3, "'blk.2.attn_norm.weight' is missing"),
        ("llama.attention.head_count", 6, "6 heads for a width of 64"),
        ("llama.attention.head_count_kv", 3, "4 heads, and 3 of keys and values"),
        ("llama.attention.key_length", 15, "15"),
        ("llama.attention.value_length", 32, "values are of another length"),
        ("llama.rope.dimension_count", 8, "8 of 16 dimensions"),
        ("llama.rope.freq_base", 0.0, "'llama.rope.freq_base' is 0.0"),
        ("llama.rope.freq_base", math.nan, "'llama.rope.freq_base' is not finite"),
        ("llama.attention.layer_norm_rms_epsilon", -1.0, "'llama.attention.layer_norm_rms_epsilon' is -1.0"),
        ("llama.rope.scaling.type", "dynamic", "'dynamic'"),
        ("tokenizer.ggml.eos_token_id", 10**6, "'tokenizer.ggml.eos_token_id' is 1000000"),
        ("tokenizer.ggml.token_type", [1, 2, 3], "has 3 values"),
        ("tokenizer.ggml.merges", ["nopair"], "'nopair'"),
        ("tokenizer.ggml.merges", ["no such"], "no tokenizer can be made"),
        ("tokenizer.ggml.tokens", ["a", "b", "a"] + ["c"] * 397, "the token 'a' twice"),
    ],
)
def test_a_setting_that_cannot_be_is_answered_with_what_is_wrong(
    key: str, value: Any, said: str, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer, without=key, also={key: value})
    assert said in refusal(tmp_path)


def test_large_models_are_written_in_several_files_with_an_index(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    meant = write_gguf(tmp_path / "model.gguf", tiny_tokenizer)
    whole, split = tmp_path / "whole", tmp_path / "models" / "org" / "split"
    for folder, most in ((whole, 2**30), (split, 2**15)):
        folder.mkdir(parents=True)
        convert(tmp_path / "model.gguf", folder, most_shard_bytes=most)
    names = sorted(path.name for path in split.glob("*.safetensors"))
    assert names == [f"model-{number:05}-of-{len(names):05}.safetensors" for number in range(1, len(names) + 1)]
    assert len(names) > 2
    index = json.loads((split / "model.safetensors.index.json").read_text("utf-8"))
    assert set(index["weight_map"].values()) == set(names)
    expected = load_file(whole / "model.safetensors")
    assert set(index["weight_map"]) == set(expected)
    for name, file in index["weight_map"].items():
        assert np.array_equal(load_file(split / file)[name], expected[name]), name
    found = ModelStore(tmp_path / "models").find("org/split")
    assert found.parameters == sum(weights.size for weights in meant.values())


def test_progress_is_told_from_the_first_to_the_last_byte(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer)
    folder = tmp_path / "model"
    folder.mkdir()
    told: list[tuple[int, int]] = []
    convert(tmp_path / "model.gguf", folder, lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert len({total for _, total in told}) == 1
    assert told[-1][0] == told[-1][1]


def test_without_room_on_the_disk_nothing_is_begun(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_tokenizer)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**16))
    assert "0.0 are free" in refusal(tmp_path)
