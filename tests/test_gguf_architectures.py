"""The architectures that are converted: an imported model answers as the one that the file was written from.

The reference never passes through the importer: it is mlx-lm's model with the weights that the gguf package says the
file's blocks stand for.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from attrs import evolve
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open
from tokenizers import Tokenizer

from osaurus.engine.backend import Backend
from osaurus.library.gguf import UnsupportedGGUF, convert
from osaurus.library.gguf.blocks import FLOATS, QUANTISED_ANEW, TAKEN_APART
from osaurus.library.gguf.families import FAMILIES
from osaurus.library.gguf.splitting import SPLITTINGS

from .gguf_models import Config, Written, float_kind, logits, mixed_kind, write_model
from .test_gguf_blocks import ADDED, random_blocks

Array = npt.NDArray[Any]


def experts(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_count(config.get("num_experts") or config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def linear(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])


def yarn(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])
    writer.add_rope_scaling_orig_ctx_len(config["rope_scaling"]["original_max_position_embeddings"])


def llama3_frequencies(config: Config) -> dict[str, Array]:
    """The factors of frequencies as llama.cpp's converter writes them, after the definition in Llama 3."""
    scaling, head = config["rope_scaling"], config["hidden_size"] // config["num_attention_heads"]
    context = scaling["original_max_position_embeddings"]
    factors = []
    for number in range(0, head, 2):
        length = 2 * math.pi * config["rope_theta"] ** (number / head)
        if length < context / scaling["high_freq_factor"]:
            factors.append(1.0)
        elif length > context / scaling["low_freq_factor"]:
            factors.append(scaling["factor"])
        else:
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            smooth = (context / length - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return {"rope_freqs.weight": np.array(factors)}


def softcaps(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])


def gemma3(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_sliding_window(config["sliding_window"])
    linear(writer, config)


def phi3(writer: gguf.GGUFWriter, config: Config) -> None:
    head = config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(int(head * config["partial_rotary_factor"]))
    writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    writer.add_sliding_window(0)
    original = config["original_max_position_embeddings"]
    scale = config["max_position_embeddings"] / original
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))


def phi3_factors(config: Config) -> dict[str, Array]:
    scaling = config["rope_scaling"]
    return {f"rope_factors_{which}.weight": np.array(scaling[f"{which}_factor"]) for which in ("long", "short")}


def granite(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])


def lfm2(writer: gguf.GGUFWriter, config: Config) -> None:
    layers = range(config["num_hidden_layers"])
    writer.add_head_count_kv(
        [config["num_key_value_heads"] if number in config["full_attn_idxs"] else 0 for number in layers]
    )
    writer.add_shortconv_l_cache(config["conv_L_cache"])


LLAMA3 = {
    "type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.3,
    "logits_scaling": 4.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
}
GEMMA2 = {
    "head_dim": 32,
    "rope_theta": 10000.0,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
    "tie_word_embeddings": True,
}
GEMMA3 = {
    "num_hidden_layers": 7,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
    "sliding_window_pattern": 6,
    "rope_theta": 500_000.0,
    "rope_scaling": {"type": "linear", "factor": 8.0},
    "tie_word_embeddings": True,
}
PHI3 = {
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 128,
    "rope_scaling": {
        "type": "longrope",
        "long_factor": [1.0, 1.5, 2.0, 3.0, 4.5, 6.0],
        "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.4],
    },
}
LFM2 = {
    "num_hidden_layers": 3,
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_dim": 64,
    "block_ff_dim": 96,
    "block_multiple_of": 1,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "full_attn_idxs": [1],
    "tie_word_embeddings": True,
}
QWEN3_MOE = {
    "head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}

CASES = {
    "llama": Written(architecture="llama", model_type="llama", interleaved=True),
    "llama with heads of another length": Written(
        architecture="llama", model_type="llama", config={"head_dim": 32}, interleaved=True
    ),
    "llama with biases": Written(
        architecture="llama", model_type="llama", config={"attention_bias": True, "mlp_bias": True}, interleaved=True
    ),
    "llama 3": Written(
        architecture="llama",
        model_type="llama",
        config={"rope_scaling": LLAMA3, "rope_theta": 500_000.0, "tie_word_embeddings": True},
        interleaved=True,
        further=llama3_frequencies,
    ),
    "mixtral": Written(
        architecture="llama",
        model_type="mixtral",
        config={"num_local_experts": 4, "num_experts_per_tok": 2},
        interleaved=True,
        add=experts,
    ),
    "qwen2": Written(architecture="qwen2", model_type="qwen2", config={"tie_word_embeddings": True}),
    "qwen2 with yarn": Written(
        architecture="qwen2",
        model_type="qwen2",
        config={"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}},
        add=yarn,
    ),
    "qwen3": Written(architecture="qwen3", model_type="qwen3", config={"head_dim": 32}),
    "qwen3moe": Written(architecture="qwen3moe", model_type="qwen3_moe", config=QWEN3_MOE, add=experts),
    "gemma": Written(
        architecture="gemma",
        model_type="gemma",
        config={"head_dim": 32, "rope_theta": 10000.0, "tie_word_embeddings": True},
        norm_shift=1.0,
    ),
    "gemma2": Written(architecture="gemma2", model_type="gemma2", config=GEMMA2, norm_shift=1.0, add=softcaps),
    "gemma3": Written(architecture="gemma3", model_type="gemma3_text", config=GEMMA3, norm_shift=1.0, add=gemma3),
    "phi3": Written(architecture="phi3", model_type="phi3", config=PHI3, add=phi3, further=phi3_factors),
    "granite": Written(architecture="granite", model_type="granite", config=GRANITE, interleaved=True, add=granite),
    "smollm3": Written(
        architecture="smollm3",
        model_type="smollm3",
        config={"num_hidden_layers": 5, "no_rope_layer_interval": 4, "tie_word_embeddings": True},
        interleaved=True,
    ),
    "lfm2": Written(architecture="lfm2", model_type="lfm2", config=LFM2, add=lfm2),
    "olmo2": Written(architecture="olmo2", model_type="olmo2"),
    "seed_oss": Written(
        architecture="seed_oss", model_type="seed_oss", config={"head_dim": 32, "attention_bias": True}
    ),
    "ernie4_5": Written(architecture="ernie4_5", model_type="ernie4_5", config={"head_dim": 32, "use_bias": False}),
}


def imported(path: Path, folder: Path) -> tuple[Any, Config]:
    """Convert a file; return the network in float32, so that only its weights decide, and its configuration."""
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.utils import dequantize_model, load_model

    folder.mkdir()
    convert(path, folder)
    network, config = load_model(folder)

    def widen(array: mx.array) -> mx.array:
        return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array

    # Scales first, so that the expanded weights are what the groups stand for.
    network.update(tree_map(widen, network.parameters()))
    dequantize_model(network)
    network.update(tree_map(widen, network.parameters()))
    return network, config


def test_every_architecture_is_proved_here() -> None:
    assert {written.architecture for written in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("kind", [mixed_kind, float_kind])
@pytest.mark.parametrize("case", CASES)
def test_an_imported_model_answers_as_the_original(
    case: str, kind: Callable[[str], Kind], tmp_path: Path, tiny_tokenizer: Tokenizer, backend: Backend
) -> None:
    reference = write_model(tmp_path / "model.gguf", CASES[case], tiny_tokenizer, kind)
    network, _ = imported(tmp_path / "model.gguf", tmp_path / "model")
    expected = logits(reference, tiny_tokenizer.get_vocab_size())
    found = logits(network, tiny_tokenizer.get_vocab_size())
    assert np.abs(found - expected).max() < 1e-3 * expected.std()


@pytest.mark.parametrize("kind", [*TAKEN_APART, *QUANTISED_ANEW], ids=lambda kind: str(kind.name))
def test_a_model_of_each_kind_of_blocks_answers_as_the_original(
    kind: Kind, tmp_path: Path, tiny_tokenizer: Tokenizer, backend: Backend
) -> None:
    from mlx.utils import tree_flatten

    def of(name: str) -> Kind:
        return kind if float_kind(name) is Kind.F16 and "embed" not in name else float_kind(name)

    def quantise(values: Array, kind: Kind) -> Array:
        try:
            return np.asarray(gguf.quants.quantize(values, kind))
        except NotImplementedError:
            # Blocks that the package cannot make are random ones: they stand for weights as well as any.
            return random_blocks(kind, *values.shape)

    wide = evolve(CASES["llama"], config={"hidden_size": 256, "intermediate_size": 256})
    reference = write_model(tmp_path / "model.gguf", wide, tiny_tokenizer, of, quantise=quantise)
    network, _ = imported(tmp_path / "model.gguf", tmp_path / "model")
    found, meant = (dict(tree_flatten(model.parameters())) for model in (network, reference))
    assert set(found) == set(meant)
    for name, array in meant.items():
        expected = np.array(array)
        error = np.sqrt(((np.array(found[name]) - expected) ** 2).mean() / (expected**2).mean())
        assert error < (1e-3 if kind in TAKEN_APART else ADDED[QUANTISED_ANEW[kind].bits]), name
    if kind in TAKEN_APART:
        answer = logits(reference, 400)
        assert (logits(network, 400) - answer).std() < 5e-3 * answer.std()


def test_the_page_about_importing_names_every_architecture_kind_and_splitting() -> None:
    page = (Path(__file__).parent.parent / "docs" / "import.md").read_text("utf-8")
    for name in [*FAMILIES, *SPLITTINGS, *(family.model_type for family in FAMILIES.values())]:
        assert f"`{name}`" in page, name
    kinds = {word.strip(",") for line in page.splitlines() if line.startswith("| ") for word in line.split()}
    for kind in [*FLOATS, *TAKEN_APART, *QUANTISED_ANEW]:
        assert kind.name in kinds, kind.name


def refusal(path: Path, folder: Path) -> str:
    folder.mkdir()
    with pytest.raises(UnsupportedGGUF) as caught:
        convert(path, folder)
    return str(caught.value)


def flagged(writer: gguf.GGUFWriter, key: str, value: float | str) -> None:
    (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)


@pytest.mark.parametrize(
    ("case", "key", "value", "said"),
    [
        ("gemma3", "gemma3.final_logit_softcapping", 30.0, "no cap on its logits"),
        ("qwen3moe", "qwen3moe.rope.scaling.type", "linear", "'qwen3moe.rope.scaling.factor'"),
        ("qwen2 with yarn", "qwen2.rope.scaling.yarn_attn_factor", 3.0, "'qwen2.rope.scaling.yarn_attn_factor'"),
        ("phi3", "phi3.rope.scaling.attn_factor", 1.5, "'phi3.rope.scaling.attn_factor'"),
        ("llama 3", "llama.rope.scaling.type", "yarn", "'llama.rope.scaling.factor'"),
        ("ernie4_5", "ernie4_5.rope.scaling.type", "longrope", "'longrope'"),
    ],
)
def test_a_setting_that_mlx_lm_cannot_follow_is_refused(
    case: str, key: str, value: float | str, said: str, tmp_path: Path, tiny_tokenizer: Tokenizer, backend: Backend
) -> None:
    def add(writer: gguf.GGUFWriter, config: Config) -> None:
        CASES[case].add(writer, config)
        writer.kv_data[0].pop(key, None)
        flagged(writer, key, value)

    write_model(tmp_path / "model.gguf", evolve(CASES[case], add=add), tiny_tokenizer)
    assert said in refusal(tmp_path / "model.gguf", tmp_path / "model")


def test_factors_of_frequencies_that_are_not_llama_3s_are_refused(
    tmp_path: Path, tiny_tokenizer: Tokenizer, backend: Backend
) -> None:
    strange = {"rope_freqs.weight": np.array([1.0, 7.0, 1.0, 2.0, 3.0, 1.0, 5.0, 8.0])}
    written = evolve(CASES["llama 3"], further=lambda config: strange)
    write_model(tmp_path / "model.gguf", written, tiny_tokenizer)
    assert "not those of Llama 3" in refusal(tmp_path / "model.gguf", tmp_path / "model")


@pytest.mark.parametrize("case", ["gemma2", "gemma3"])
def test_the_models_of_27_billion_scale_attention_by_width_and_heads(
    case: str, tmp_path: Path, tiny_tokenizer: Tokenizer, backend: Backend
) -> None:
    layers = {"gemma2": 46, "gemma3": 62}[case]
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": layers, "head_dim": 32}
    written = evolve(CASES[case], config={**CASES[case].config, **small, "query_pre_attn_scalar": 8})
    reference = write_model(tmp_path / "model.gguf", written, tiny_tokenizer, float_kind)
    network, config = imported(tmp_path / "model.gguf", tmp_path / "model")
    assert config["query_pre_attn_scalar"] == 8
    expected = logits(reference, 400, 8)
    assert np.abs(logits(network, 400, 8) - expected).max() < 1e-2 * expected.std()


@pytest.mark.parametrize(
    ("case", "kind", "dtypes"),
    [
        ("llama", Kind.F16, {"F16"}),
        ("llama", Kind.BF16, {"BF16"}),
        ("llama", Kind.F32, {"F32"}),
        ("llama", Kind.Q8_0, {"F16", "U32"}),
        ("gemma2", Kind.F16, {"F16", "F32"}),
        ("gemma2", Kind.BF16, {"BF16"}),
        ("gemma2", Kind.Q8_0, {"F16", "F32", "U32"}),
    ],
)
def test_floats_have_the_dtype_that_is_computed_with(
    case: str, kind: Kind, dtypes: set[str], tmp_path: Path, tiny_tokenizer: Tokenizer, backend: Backend
) -> None:
    def of(name: str) -> Kind:
        return Kind.F32 if "norm" in name else kind

    reference = write_model(tmp_path / "model.gguf", CASES[case], tiny_tokenizer, of)
    network, _ = imported(tmp_path / "model.gguf", tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "numpy") as file:
        found = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - it is no dict
    assert set(found.values()) == dtypes
    if "F32" in dtypes and len(dtypes) > 1:
        assert {name.rpartition(".")[0].rpartition("_")[2] for name, dtype in found.items() if dtype == "F32"} <= {
            "layernorm",
            "model.norm",
        }
    expected = logits(reference, 400)
    # bfloat16 has eight bits: norms lose the others.
    assert np.abs(logits(network, 400) - expected).max() < (0.05 if kind is Kind.BF16 else 1e-3) * expected.std()
