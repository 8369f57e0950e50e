"""Which tensors the models of each architecture have: llama.cpp's names for them, MLX's, and their shapes.

Sizes are named, not written: `settings.sizes` has their numbers. What llama.cpp's converter changed is noted where it
did: for its kind of rotary embedding it interleaves the two halves of each head's query and key rows in some
architectures, and it adds one to the norms of Gemma, which MLX adds itself.
"""

from collections.abc import Callable

from attrs import evolve, frozen


@frozen
class Place:
    """Where a tensor goes in MLX's model.

    `shape` names its sizes, rows first. `only` is what a model or a layer must have for the tensor to be expected.
    `heads` names the heads whose halves of rows are interleaved, `shift` is what is added to each number. A filter has
    one more dimension in MLX, of one, and is not quantised.
    """

    name: str
    shape: tuple[str, ...]
    only: str = ""
    heads: str = ""
    shift: float = 0.0
    filter: bool = False


Places = dict[str, Place]

# What a model or a layer has beside the rest, for `Place.only`.
ATTENTION_BIAS, MLP_BIAS, OUTPUT, ATTENTION, CONVOLUTION = "attention_bias", "mlp_bias", "output", "attention", "conv"


def _norm(ours: str, size: str = "width", only: str = "") -> Place:
    return Place(f"{ours}.weight", (size,), only)


def _matrix(ours: str, rows: str, columns: str, only: str = "") -> Place:
    return Place(f"{ours}.weight", (rows, columns), only)


def _experts(ours: str, rows: str, columns: str) -> Place:
    return Place(f"{ours}.weight", ("experts", rows, columns))


def _interleaved(places: Places) -> Places:
    heads = {"attn_q": "heads", "attn_k": "key_value_heads"}
    return {name: evolve(place, heads=heads.get(name.partition(".")[0], "")) for name, place in places.items()}


def _shifted(places: Places) -> Places:
    return {
        name: evolve(place, shift=-1.0) if name.endswith("norm.weight") else place for name, place in places.items()
    }


OUTER: Places = {
    "token_embd.weight": _matrix("model.embed_tokens", "vocabulary", "width"),
    "output_norm.weight": _norm("model.norm"),
    "output.weight": _matrix("lm_head", "vocabulary", "width", OUTPUT),
}
ALWAYS_TIED: Places = {name: place for name, place in OUTER.items() if place.only != OUTPUT}

ATTENTION_WEIGHTS: Places = {
    "attn_q.weight": _matrix("self_attn.q_proj", "queries", "width"),
    "attn_k.weight": _matrix("self_attn.k_proj", "keys", "width"),
    "attn_v.weight": _matrix("self_attn.v_proj", "keys", "width"),
    "attn_output.weight": _matrix("self_attn.o_proj", "width", "queries"),
}
QUERY_KEY_VALUE_BIASES: Places = {
    "attn_q.bias": Place("self_attn.q_proj.bias", ("queries",), ATTENTION_BIAS),
    "attn_k.bias": Place("self_attn.k_proj.bias", ("keys",), ATTENTION_BIAS),
    "attn_v.bias": Place("self_attn.v_proj.bias", ("keys",), ATTENTION_BIAS),
}
ATTENTION_BIASES: Places = {
    **QUERY_KEY_VALUE_BIASES,
    "attn_output.bias": Place("self_attn.o_proj.bias", ("width",), ATTENTION_BIAS),
}
HEAD_NORMS: Places = {
    "attn_q_norm.weight": _norm("self_attn.q_norm", "head"),
    "attn_k_norm.weight": _norm("self_attn.k_norm", "head"),
}
FEED_FORWARD: Places = {
    "ffn_gate.weight": _matrix("mlp.gate_proj", "inner", "width"),
    "ffn_up.weight": _matrix("mlp.up_proj", "inner", "width"),
    "ffn_down.weight": _matrix("mlp.down_proj", "width", "inner"),
}
FEED_FORWARD_BIASES: Places = {
    "ffn_gate.bias": Place("mlp.gate_proj.bias", ("inner",), MLP_BIAS),
    "ffn_up.bias": Place("mlp.up_proj.bias", ("inner",), MLP_BIAS),
    "ffn_down.bias": Place("mlp.down_proj.bias", ("width",), MLP_BIAS),
}
NORMS: Places = {
    "attn_norm.weight": _norm("input_layernorm"),
    "ffn_norm.weight": _norm("post_attention_layernorm"),
}
# Before and after each half of a layer.
FOUR_NORMS: Places = {
    "attn_norm.weight": _norm("input_layernorm"),
    "post_attention_norm.weight": _norm("post_attention_layernorm"),
    "ffn_norm.weight": _norm("pre_feedforward_layernorm"),
    "post_ffw_norm.weight": _norm("post_feedforward_layernorm"),
}

PLAIN: Places = {**NORMS, **ATTENTION_WEIGHTS, **FEED_FORWARD}
LLAMA: Places = _interleaved({**PLAIN, **ATTENTION_BIASES, **FEED_FORWARD_BIASES})
MIXTRAL: Places = _interleaved(
    {
        **NORMS,
        **ATTENTION_WEIGHTS,
        "ffn_gate_inp.weight": _matrix("block_sparse_moe.gate", "experts", "width"),
        "ffn_gate_exps.weight": _experts("block_sparse_moe.switch_mlp.gate_proj", "inner", "width"),
        "ffn_up_exps.weight": _experts("block_sparse_moe.switch_mlp.up_proj", "inner", "width"),
        "ffn_down_exps.weight": _experts("block_sparse_moe.switch_mlp.down_proj", "width", "inner"),
    }
)
QWEN3_MOE: Places = {
    **NORMS,
    **ATTENTION_WEIGHTS,
    **HEAD_NORMS,
    "ffn_gate_inp.weight": _matrix("mlp.gate", "experts", "width"),
    "ffn_gate_exps.weight": _experts("mlp.switch_mlp.gate_proj", "expert_inner", "width"),
    "ffn_up_exps.weight": _experts("mlp.switch_mlp.up_proj", "expert_inner", "width"),
    "ffn_down_exps.weight": _experts("mlp.switch_mlp.down_proj", "width", "expert_inner"),
}
PHI3: Places = {
    **NORMS,
    "attn_qkv.weight": _matrix("self_attn.qkv_proj", "queries_keys_values", "width"),
    "attn_output.weight": _matrix("self_attn.o_proj", "width", "queries"),
    "ffn_up.weight": _matrix("mlp.gate_up_proj", "twice_inner", "width"),
    "ffn_down.weight": _matrix("mlp.down_proj", "width", "inner"),
}
OLMO2: Places = {
    **ATTENTION_WEIGHTS,
    **FEED_FORWARD,
    "attn_q_norm.weight": _norm("self_attn.q_norm", "queries"),
    "attn_k_norm.weight": _norm("self_attn.k_norm", "keys"),
    "post_attention_norm.weight": _norm("post_attention_layernorm"),
    "post_ffw_norm.weight": _norm("post_feedforward_layernorm"),
}
SEED_OSS: Places = {
    "attn_norm.weight": _norm("input_layernorm"),
    "post_attention_norm.weight": _norm("post_attention_layernorm"),
    **ATTENTION_WEIGHTS,
    **QUERY_KEY_VALUE_BIASES,
    **FEED_FORWARD,
}
LFM2: Places = {
    "attn_norm.weight": _norm("operator_norm"),
    "ffn_norm.weight": _norm("ffn_norm"),
    "attn_q.weight": _matrix("self_attn.q_proj", "queries", "width", ATTENTION),
    "attn_k.weight": _matrix("self_attn.k_proj", "keys", "width", ATTENTION),
    "attn_v.weight": _matrix("self_attn.v_proj", "keys", "width", ATTENTION),
    "attn_output.weight": _matrix("self_attn.out_proj", "width", "queries", ATTENTION),
    "attn_q_norm.weight": _norm("self_attn.q_layernorm", "head", ATTENTION),
    "attn_k_norm.weight": _norm("self_attn.k_layernorm", "head", ATTENTION),
    "shortconv.in_proj.weight": _matrix("conv.in_proj", "thrice_width", "width", CONVOLUTION),
    "shortconv.out_proj.weight": _matrix("conv.out_proj", "width", "width", CONVOLUTION),
    "shortconv.conv.weight": Place("conv.conv.weight", ("width", "convolution"), CONVOLUTION, filter=True),
    "ffn_gate.weight": _matrix("feed_forward.w1", "inner", "width"),
    "ffn_up.weight": _matrix("feed_forward.w3", "inner", "width"),
    "ffn_down.weight": _matrix("feed_forward.w2", "width", "inner"),
}
LFM2_OUTER: Places = {
    "token_embd.weight": _matrix("model.embed_tokens", "vocabulary", "width"),
    "token_embd_norm.weight": _norm("model.embedding_norm"),
}
GEMMA: Places = _shifted({**PLAIN})
GEMMA2: Places = _shifted({**FOUR_NORMS, **ATTENTION_WEIGHTS, **FEED_FORWARD})
GEMMA3: Places = _shifted({**FOUR_NORMS, **ATTENTION_WEIGHTS, **HEAD_NORMS, **FEED_FORWARD})


@frozen
class Names:
    """The tensors of a model: those of each layer, and those around them."""

    layer: Places
    outer: Places = OUTER

    def of(self, layers: int, has: Callable[[int | None], set[str]]) -> Places:
        """Return every tensor that a model of so many layers has, by llama.cpp's name.

        `has` says what a layer has beside the rest, and for None what the model has.
        """
        places = {theirs: place for theirs, place in self.outer.items() if not place.only or place.only in has(None)}
        for number in range(layers):
            for theirs, place in self.layer.items():
                if not place.only or place.only in has(number):
                    places[f"blk.{number}.{theirs}"] = evolve(place, name=f"model.layers.{number}.{place.name}")
        return places


NAMES: dict[str, Names] = {
    "llama": Names(LLAMA),
    "mixtral": Names(MIXTRAL),
    "qwen2": Names({**PLAIN, **QUERY_KEY_VALUE_BIASES}),
    "qwen3": Names({**PLAIN, **HEAD_NORMS}),
    "qwen3_moe": Names(QWEN3_MOE),
    "gemma": Names(GEMMA, _shifted(ALWAYS_TIED)),
    "gemma2": Names(GEMMA2, _shifted(ALWAYS_TIED)),
    "gemma3_text": Names(GEMMA3, _shifted(OUTER)),
    "phi3": Names(PHI3),
    "granite": Names(LLAMA),
    "smollm3": Names(LLAMA),
    "lfm2": Names(LFM2, LFM2_OUTER),
    "olmo2": Names(OLMO2),
    "seed_oss": Names(SEED_OSS),
    "ernie4_5": Names(PLAIN),
}
