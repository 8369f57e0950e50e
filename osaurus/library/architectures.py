"""What mlx-lm has code for: architectures, and ways in which others quantise weights.

Told without importing it, which would import MLX.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

# As mlx_lm.utils.MODEL_REMAPPING has it; tests/test_architectures.py compares.
OTHER_NAMES = {
    "mistral": "llama",
    "llava": "mistral3",
    "phi-msft": "phixtral",
    "falcon_mamba": "mamba",
    "joyai_llm_flash": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
    "qwen2_5_vl": "qwen2_vl",
    "minimax_m2": "minimax",
    "iquestcoder": "llama",
    "xverse": "llama",
    "gemma4_unified": "gemma4",
    "deepseek_v41_text": "deepseek_v41",
}

# What mlx_lm.utils.load_model compares `quant_method` with; tests/test_architectures.py compares.
QUANTIZATION_METHODS = ("bitnet", "mxfp4", "mxfp8", "fp8", "compressed-tensors", "modelopt", "awq", "gptq")


def known(model_type: str) -> bool:
    """Return whether mlx-lm has code for models of this type."""
    return OTHER_NAMES.get(model_type, model_type) in _modules()


@cache
def _modules() -> frozenset[str]:
    spec = find_spec("mlx_lm")
    folders = [Path(folder) / "models" for folder in (spec.submodule_search_locations or ())] if spec else []
    return frozenset(path.stem for folder in folders for path in folder.glob("[!_]*.py"))
