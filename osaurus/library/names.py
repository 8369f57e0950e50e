"""What models are called: repositories of the hub, the ids they have here, and short names for well-known ones."""

import re

# As the hub has them; neither part may begin or end with a dot or a hyphen.
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REPOSITORY = re.compile(rf"({_PART})/({_PART})")

# Bits that MLX packs weights into.
QUANTIZATIONS = (2, 3, 4, 5, 6, 8)

# Short name, as Ollama spells it → repository.
SHORT_NAMES = {
    "smollm2:135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2:360m": "mlx-community/SmolLM2-360M-Instruct",
    "smollm2:1.7b": "mlx-community/SmolLM2-1.7B-Instruct-4bit",
    "llama3.2:1b": "mlx-community/Llama-3.2-1B-Instruct-4bit",
    "llama3.2:3b": "mlx-community/Llama-3.2-3B-Instruct-4bit",
    "qwen3:0.6b": "mlx-community/Qwen3-0.6B-4bit",
    "qwen3:1.7b": "mlx-community/Qwen3-1.7B-4bit",
    "qwen3:4b": "mlx-community/Qwen3-4B-4bit",
    "qwen3:8b": "mlx-community/Qwen3-8B-4bit",
    "qwen3:14b": "mlx-community/Qwen3-14B-4bit",
    "qwen3:30b": "mlx-community/Qwen3-30B-A3B-4bit",
    "qwen3:32b": "mlx-community/Qwen3-32B-4bit",
    "qwen3-coder:30b": "mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit",
    "qwen2.5:0.5b": "mlx-community/Qwen2.5-0.5B-Instruct-4bit",
    "qwen2.5:1.5b": "mlx-community/Qwen2.5-1.5B-Instruct-4bit",
    "qwen2.5:3b": "mlx-community/Qwen2.5-3B-Instruct-4bit",
    "qwen2.5:7b": "mlx-community/Qwen2.5-7B-Instruct-4bit",
    "qwen2.5:14b": "mlx-community/Qwen2.5-14B-Instruct-4bit",
    "qwen2.5:32b": "mlx-community/Qwen2.5-32B-Instruct-4bit",
    "qwen2.5:72b": "mlx-community/Qwen2.5-72B-Instruct-4bit",
    "qwen2.5-coder:1.5b": "mlx-community/Qwen2.5-Coder-1.5B-Instruct-4bit",
    "qwen2.5-coder:3b": "mlx-community/Qwen2.5-Coder-3B-Instruct-4bit",
    "qwen2.5-coder:7b": "mlx-community/Qwen2.5-Coder-7B-Instruct-4bit",
    "qwen2.5-coder:14b": "mlx-community/Qwen2.5-Coder-14B-Instruct-4bit",
    "qwen2.5-coder:32b": "mlx-community/Qwen2.5-Coder-32B-Instruct-4bit",
    "qwq:32b": "mlx-community/QwQ-32B-4bit",
    "llama3:8b": "mlx-community/Meta-Llama-3-8B-Instruct-4bit",
    "llama3.1:8b": "mlx-community/Meta-Llama-3.1-8B-Instruct-4bit",
    "llama3.1:70b": "mlx-community/Meta-Llama-3.1-70B-Instruct-4bit",
    "llama3.3:70b": "mlx-community/Llama-3.3-70B-Instruct-4bit",
    # For text alone; the others of this family see images as well.
    "gemma3:1b": "mlx-community/gemma-3-1b-it-4bit",
    "gemma3:4b": "mlx-community/gemma-3-text-4b-it-4bit",
    "gemma3:12b": "mlx-community/gemma-3-text-12b-it-4bit",
    "gemma3:27b": "mlx-community/gemma-3-text-27b-it-4bit",
    "gemma2:2b": "mlx-community/gemma-2-2b-it-4bit",
    "gemma2:9b": "mlx-community/gemma-2-9b-it-4bit",
    "gemma2:27b": "mlx-community/gemma-2-27b-it-4bit",
    "mistral:7b": "mlx-community/Mistral-7B-Instruct-v0.3-4bit",
    "mistral-nemo:12b": "mlx-community/Mistral-Nemo-Instruct-2407-4bit",
    "mistral-small:24b": "mlx-community/Mistral-Small-24B-Instruct-2501-4bit",
    "phi3.5:3.8b": "mlx-community/Phi-3.5-mini-instruct-4bit",
    "phi4:14b": "mlx-community/phi-4-4bit",
    "phi4-mini:3.8b": "mlx-community/Phi-4-mini-instruct-4bit",
    "deepseek-r1:1.5b": "mlx-community/DeepSeek-R1-Distill-Qwen-1.5B-4bit",
    "deepseek-r1:7b": "mlx-community/DeepSeek-R1-Distill-Qwen-7B-4bit",
    "deepseek-r1:8b": "mlx-community/DeepSeek-R1-Distill-Llama-8B-4bit",
    "deepseek-r1:14b": "mlx-community/DeepSeek-R1-Distill-Qwen-14B-4bit",
    "deepseek-r1:32b": "mlx-community/DeepSeek-R1-Distill-Qwen-32B-4bit",
    "deepseek-r1:70b": "mlx-community/DeepSeek-R1-Distill-Llama-70B-4bit",
    "granite3.3:2b": "mlx-community/granite-3.3-2b-instruct-4bit",
    "granite3.3:8b": "mlx-community/granite-3.3-8b-instruct-4bit",
    "smollm3:3b": "mlx-community/SmolLM3-3B-4bit",
    "lfm2:1.2b": "mlx-community/LFM2-1.2B-4bit",
    "olmo2:7b": "mlx-community/OLMo-2-1124-7B-Instruct-4bit",
    "glm4:9b": "mlx-community/GLM-4-9B-0414-4bit",
}

# Family → the size that is meant where none is said: Ollama's where it has one.
USUAL_SIZES = {
    "deepseek-r1": "8b",
    "gemma2": "9b",
    "gemma3": "4b",
    "glm4": "9b",
    "granite3.3": "8b",
    "lfm2": "1.2b",
    "llama3": "8b",
    "llama3.1": "8b",
    "llama3.2": "3b",
    "llama3.3": "70b",
    "mistral": "7b",
    "mistral-nemo": "12b",
    "mistral-small": "24b",
    "olmo2": "7b",
    "phi3.5": "3.8b",
    "phi4": "14b",
    "phi4-mini": "3.8b",
    "qwen2.5": "7b",
    "qwen2.5-coder": "7b",
    "qwen3": "8b",
    "qwen3-coder": "30b",
    "qwq": "32b",
    "smollm2": "1.7b",
    "smollm3": "3b",
}


# What Apple's on-device model answers to, where it is; whoever names no model means it as well.
FOUNDATION_NAMES = ("foundation", "default", "")


def untagged(name: str) -> str:
    """Return a name without `:latest`."""
    return name[: -len(":latest")] if name.lower().endswith(":latest") else name


def in_full(name: str) -> str:
    """Return what a short name stands for, and any other name as it is; without `:latest`."""
    plain = untagged(name)
    short = plain.lower()
    return SHORT_NAMES.get(f"{short}:{USUAL_SIZES[short]}" if short in USUAL_SIZES else short, plain)


def repository(name: str) -> str | None:
    """Return the repository that a name stands for; None if it is neither a short name nor `organisation/name`."""
    found = in_full(name)
    # The hub allows neither in a name; its own cache and Git have a use for them.
    sane = REPOSITORY.fullmatch(found) and "--" not in found and ".." not in found and not found.endswith(".git")
    return found if sane else None


def quantised(repository: str, bits: int | None) -> str:
    """Return the name of what a repository becomes when its weights are converted to so many bits, if they are."""
    return repository if bits is None else f"{repository}-{bits}bit"


def model_id(repository: str) -> str:
    """Return the id of a repository's model: the last part of its name in lower case, with hyphens."""
    return re.sub(r"[\s_]+", "-", repository.rpartition("/")[2].lower())
