"""The architectures that are converted, and what each has in its settings beside the rest.

What GGUF does not write because llama.cpp knows it by the architecture's name is written here.
"""

from collections.abc import Callable
from typing import Any

from attrs import frozen

from . import rotary
from .header import UnsupportedGGUF
from .parts import Model
from .settings import FEED_FORWARD, Draft, Settings
from .tensors import ATTENTION, ATTENTION_BIAS

# llama.cpp knows the models of 27 billion parameters by their layers: they scale attention by width and heads.
GEMMA2_27B_LAYERS, GEMMA3_27B_LAYERS = 46, 62


def settings_of(model: Model) -> Settings:
    """Return the settings of a model. Raises UnsupportedGGUF."""
    name = model.metadata.architecture
    family = FAMILIES.get(name)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedGGUF(f"the architecture {name!r} is not converted; those converted are {known}")
    draft = Draft(model)
    draft.common(family.model_type, family.class_name)
    if not family.experts:
        draft.metadata.size(FEED_FORWARD)
    family.add(draft)
    return draft.finished(family.wide)


def _llama(draft: Draft) -> None:
    head = draft.head()
    rotary.whole(draft, head)
    if head * draft.config["num_attention_heads"] != draft.config["hidden_size"]:
        draft.config["head_dim"] = head
    draft.note_biases()
    if draft.metadata.integer(".expert_count", 0):
        draft.quotient_head()
        rotary.unscaled(draft, "mixtral")
        draft.config |= {
            "model_type": "mixtral",
            "architectures": ["MixtralForCausalLM"],
            "num_local_experts": draft.metadata.size(".expert_count"),
            "num_experts_per_tok": draft.metadata.size(".expert_used_count"),
        }
    else:
        rotary.scaled(draft)


def _granite(draft: Draft) -> None:
    rotary.whole(draft, draft.quotient_head())
    rotary.scaled(draft)
    draft.note_biases()
    draft.config |= {
        "attention_multiplier": draft.metadata.real(".attention.scale"),
        "embedding_multiplier": draft.metadata.real(".embedding_scale"),
        "residual_multiplier": draft.metadata.real(".residual_scale"),
        "logits_scaling": draft.metadata.positive(".logit_scale"),
    }


def _smollm3(draft: Draft) -> None:
    _llama(draft)
    # llama.cpp knows that every fourth layer has no rotary embedding.
    draft.config["no_rope_layer_interval"] = 4


def _qwen2(draft: Draft) -> None:
    rotary.whole(draft, draft.quotient_head())
    rotary.scaled(draft)
    # All have them; no configuration says so.
    draft.kinds.add(ATTENTION_BIAS)


def _own_head(draft: Draft) -> None:
    draft.config["head_dim"] = draft.head()
    rotary.whole(draft, draft.config["head_dim"])


def _qwen3(draft: Draft) -> None:
    _own_head(draft)
    rotary.scaled(draft)


def _qwen3_moe(draft: Draft) -> None:
    _own_head(draft)
    rotary.unscaled(draft, "qwen3_moe")
    inner = draft.metadata.size(".expert_feed_forward_length")
    draft.config |= {
        "intermediate_size": draft.config.get("intermediate_size", inner),
        "moe_intermediate_size": inner,
        "num_experts": draft.metadata.size(".expert_count"),
        "num_experts_per_tok": draft.metadata.size(".expert_used_count"),
        # llama.cpp knows these: every layer has experts, and the weights of those chosen sum to one.
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }


def _gemma(draft: Draft) -> None:
    _own_head(draft)
    rotary.unscaled(draft, draft.config["model_type"])
    # The output is the embedding, always.
    draft.config["tie_word_embeddings"] = True


def _gemma2(draft: Draft) -> None:
    _gemma(draft)
    draft.config |= {
        "query_pre_attn_scalar": _attention_scale(draft, GEMMA2_27B_LAYERS),
        "attn_logit_softcapping": draft.metadata.positive(".attn_logit_softcapping", 50.0),
        "final_logit_softcapping": draft.metadata.positive(".final_logit_softcapping", 30.0),
        "sliding_window": draft.metadata.size(".attention.sliding_window", 4096),
    }


def _gemma3(draft: Draft) -> None:
    _own_head(draft)
    rotary.scaled(draft)
    if draft.metadata.real(".final_logit_softcapping", 0.0):
        raise UnsupportedGGUF("mlx-lm's gemma3 has no cap on its logits: what asks for one is not converted")
    draft.config |= {
        "rope_theta": draft.metadata.positive(".rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": draft.metadata.positive(".rope.freq_base_swa", 10_000.0),
        "query_pre_attn_scalar": _attention_scale(draft, GEMMA3_27B_LAYERS),
        "sliding_window": draft.metadata.size(".attention.sliding_window"),
        # llama.cpp knows that every sixth layer sees everything.
        "sliding_window_pattern": 6,
    }


def _attention_scale(draft: Draft, layers_of_27b: int) -> int:
    config = draft.config
    if config["num_hidden_layers"] == layers_of_27b:
        return int(config["hidden_size"]) // int(config["num_attention_heads"])
    return int(config["head_dim"])


def _phi3(draft: Draft) -> None:
    rotary.longrope(draft, rotary.partial(draft, draft.quotient_head()))


def _lfm2(draft: Draft) -> None:
    rotary.whole(draft, draft.quotient_head())
    if len(draft.layer_kinds) != draft.config["num_hidden_layers"]:
        raise UnsupportedGGUF("its metadata's 'lfm2.attention.head_count_kv' must have a number for each layer")
    draft.config |= {
        "tie_word_embeddings": True,
        "norm_eps": draft.config["rms_norm_eps"],
        "conv_bias": False,
        "conv_L_cache": draft.metadata.size(".shortconv.l_cache"),
        "block_dim": draft.config["hidden_size"],
        "block_ff_dim": draft.config["intermediate_size"],
        # GGUF has the length as it is, adjusted already.
        "block_auto_adjust_ff_dim": False,
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "full_attn_idxs": [number for number, kind in enumerate(draft.layer_kinds) if kind == ATTENTION],
    }


def _olmo2(draft: Draft) -> None:
    _qwen3(draft)
    if draft.metadata.has(".attention.sliding_window"):
        raise UnsupportedGGUF("it has sliding windows, as OLMo 3, which is not converted")


def _seed_oss(draft: Draft) -> None:
    _qwen3(draft)
    draft.note_biases()


def _ernie(draft: Draft) -> None:
    _own_head(draft)
    rotary.unscaled(draft, "ernie4_5")
    draft.config["use_bias"] = False


@frozen
class Family:
    """An architecture: mlx-lm's and the original's names for it, and how its own settings are noted.

    `wide`: its activations may be too large for float16. `experts`: it has no feed-forward part but its experts'.
    """

    model_type: str
    class_name: str
    add: Callable[[Draft], Any]
    wide: bool = False
    experts: bool = False


# By GGUF's name. Each is proved in tests/test_gguf_architectures.py: a model that was written as llama.cpp's converter
# does and then imported answers as the original.
FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "LlamaForCausalLM", _llama),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _qwen2),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _qwen3),
    "qwen3moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", _qwen3_moe, experts=True),
    "gemma": Family("gemma", "GemmaForCausalLM", _gemma, wide=True),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _gemma2, wide=True),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", _gemma3, wide=True),
    "phi3": Family("phi3", "Phi3ForCausalLM", _phi3),
    "granite": Family("granite", "GraniteForCausalLM", _granite),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", _smollm3),
    "lfm2": Family("lfm2", "Lfm2ForCausalLM", _lfm2),
    "olmo2": Family("olmo2", "Olmo2ForCausalLM", _olmo2),
    "seed_oss": Family("seed_oss", "SeedOssForCausalLM", _seed_oss),
    "ernie4_5": Family("ernie4_5", "Ernie4_5_ForCausalLM", _ernie),
}
