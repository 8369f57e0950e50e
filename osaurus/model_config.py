"""What a model's folder says that more than one part wants to know."""

from typing import Any

CONTEXT_KEYS = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length", "n_positions", "n_ctx")
DEFAULT_CONTEXT = 4096


def number(config: dict[str, Any], *keys: str) -> int | None:
    """Return the first of these keys that holds a positive whole number, at the top or for the text part."""
    text = config.get("text_config")
    for section in (config, text if isinstance(text, dict) else {}):
        for key in keys:
            value = section.get(key)
            if type(value) is int and value > 0:
                return value
    return None


def context_length(config: dict[str, Any]) -> int:
    """Return the model's context, in tokens."""
    return number(config, *CONTEXT_KEYS) or DEFAULT_CONTEXT


# The tokens that stand before and behind what a model thinks; Gemma's has the word `thought` behind the first.
THOUGHT_TAGS = (
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel>", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<mm:think>", "</mm:think>"),
)

# What stands around the messages of an answer in OpenAI's open models, and in them.
HARMONY_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")

# What stands before the text, before what follows the gap, and before what the model fills in, as the families of code
# models spell it: Qwen and CodeGemma, StarCoder, DeepSeek, Code Llama.
FILL_IN_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001 - as DeepSeek spells it
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
