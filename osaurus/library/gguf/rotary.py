"""Rotary embeddings: which part of each head turns, and how its frequencies are scaled.

GGUF has the settings of linear scaling and of YaRN. Of Llama 3 and of Phi 3 it has only what comes of them, a factor
for each frequency, in a tensor; mlx-lm wants the settings of Llama 3, so those are looked for that lead to the factors.
"""

import math
from typing import Any

import numpy as np

from .header import UnsupportedGGUF
from .settings import Draft

FREQUENCIES = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"

# Of Llama 3, as its configurations have them: the original context, and the factors of the lowest and highest
# frequencies that are scaled in part.
LLAMA3_CONTEXTS = (8192, 2048, 4096, 16384, 32768)
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0


def whole(draft: Draft, head: int) -> None:
    """Refuse a rotary embedding of a part of each head. Raises UnsupportedGGUF."""
    rotary = draft.metadata.size(".rope.dimension_count", head)
    if rotary != head:
        raise UnsupportedGGUF(f"its rotary embedding is of {rotary} of {head} dimensions, which is not converted")


def scaled(draft: Draft) -> None:
    """Note how the rotary embedding is scaled: linear, YaRN, or as that of Llama 3. Raises UnsupportedGGUF."""
    kind = draft.metadata.text(".rope.scaling.type", "none")
    if kind == "linear":
        factor = draft.metadata.positive(".rope.scaling.factor")
        draft.config["rope_scaling"] = {"type": "linear", "rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        draft.config["rope_scaling"] = _yarn(draft)
    elif kind != "none":
        raise UnsupportedGGUF(f"its rotary embedding is scaled by {kind!r}, which is not converted here")
    if FREQUENCIES in draft.model.tensors:
        if kind != "none":
            raise UnsupportedGGUF(f"its rotary embedding is scaled twice: {kind!r} and {FREQUENCIES}")
        draft.config["rope_scaling"] = _llama3(draft.vector(FREQUENCIES), draft.config["rope_theta"])


def unscaled(draft: Draft, model: str) -> None:
    """Refuse a scaled rotary embedding where mlx-lm's model has none. Raises UnsupportedGGUF."""
    scaled(draft)
    if "rope_scaling" in draft.config:
        raise UnsupportedGGUF(f"mlx-lm's {model} cannot scale its rotary embedding: what asks for it is not converted")


def partial(draft: Draft, head: int) -> int:
    """Note which part of each head turns; return how many dimensions. Raises UnsupportedGGUF."""
    rotary: int = draft.metadata.size(".rope.dimension_count", head)
    if rotary > head or rotary % 2:
        raise UnsupportedGGUF(f"its rotary embedding is of {rotary} of {head} dimensions")
    if rotary != head:
        draft.config["partial_rotary_factor"] = rotary / head
    return rotary


def longrope(draft: Draft, rotary: int) -> None:
    """Note the factors of frequencies that Phi 3 has for long and for short texts, if any. Raises UnsupportedGGUF."""
    original = draft.metadata.size(".rope.scaling.original_context_length", draft.config["max_position_embeddings"])
    draft.config["original_max_position_embeddings"] = original
    if LONG_FACTORS not in draft.model.tensors and SHORT_FACTORS not in draft.model.tensors:
        return
    long, short = draft.vector(LONG_FACTORS), draft.vector(SHORT_FACTORS)
    if not len(long) == len(short) == rotary // 2 or original < 2:
        raise UnsupportedGGUF(f"{LONG_FACTORS} and {SHORT_FACTORS} must have {rotary // 2} numbers each")
    # What mlx-lm scales queries and keys by.
    scale = draft.config["max_position_embeddings"] / original
    usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    if not math.isclose(draft.metadata.real(".rope.scaling.attn_factor", usual), usual, rel_tol=1e-3):
        key = f"{draft.metadata.architecture}.rope.scaling.attn_factor"
        raise UnsupportedGGUF(f"its metadata's {key!r} is not {usual:.4f}, and mlx-lm's phi3 knows no other")
    draft.config["rope_scaling"] = {
        "type": "longrope",
        "rope_type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "original_max_position_embeddings": original,
    }


def _yarn(draft: Draft) -> dict[str, Any]:
    metadata = draft.metadata
    factor = metadata.positive(".rope.scaling.factor")
    if factor < 1:
        raise UnsupportedGGUF(f"its rotary embedding is scaled by {factor}")
    # What YaRN comes to by itself, which converters of some models wrote down.
    usual = float(str(np.float32(0.1 * math.log(factor) + 1)))
    for key in (".rope.scaling.attn_factor", ".rope.scaling.yarn_attn_factor"):
        if metadata.real(key, 1.0) not in (1.0, usual):
            raise UnsupportedGGUF(f"its metadata's {metadata.architecture + key!r} is not converted")
    return {
        "type": "yarn",
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": metadata.size(".rope.scaling.original_context_length"),
        "beta_fast": metadata.positive(".rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": metadata.positive(".rope.scaling.yarn_beta_slow", 1.0),
    }


def _llama3(factors: list[float], base: float) -> dict[str, Any]:
    """Return the settings that have led to these factors of the frequencies. Raises UnsupportedGGUF."""
    factor = max(factors)
    for context in LLAMA3_CONTEXTS:
        if factor >= 1 and np.allclose(factors, _llama3_factors(len(factors), base, factor, context), 1e-4):
            return {
                "type": "llama3",
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LLAMA3_LOW,
                "high_freq_factor": LLAMA3_HIGH,
                "original_max_position_embeddings": context,
            }
    raise UnsupportedGGUF(f"the factors in {FREQUENCIES} are not those of Llama 3, and are not converted")


def _llama3_factors(count: int, base: float, factor: float, context: int) -> list[float]:
    """Return by what the rotary embedding of Llama 3 divides each frequency (as its configurations describe it)."""
    found = []
    for number in range(count):
        turns = context / (2 * math.pi * base ** (number / count))
        smooth = min(max((turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found
