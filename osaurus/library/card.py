"""What a model's folder says about it, for people and programs that ask before they use it.

Everything here blocks on the disk.
"""

from pathlib import Path
from typing import Any

from twisted.logger import Logger

from ..chat import InstalledModel, ModelCard
from ..model_config import FILL_IN_MARKS, THOUGHT_TAGS, context_length, number
from .store import UnusableFolder, json_object

log = Logger()

# GGUF's name of a fact → the names that configurations have for it.
FACTS = {
    "embedding_length": ("hidden_size", "n_embd", "d_model"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "vocab_size": ("vocab_size",),
}
LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
MOST_LICENSE = 2**17


def card(model: InstalledModel) -> ModelCard:
    """Return what the folder of an installed model says. Raises OSError, UnusableFolder."""
    config = json_object(model.folder / "config.json")
    facts = {"context_length": context_length(config)}
    facts |= {name: value for name, keys in FACTS.items() if (value := number(config, *keys)) is not None}
    tokenizer = (model.folder / "tokenizer.json").read_text("utf-8")
    return ModelCard(
        model=model,
        architecture=model.family,
        template=_template(model.folder),
        license=next((text for name in LICENSES if (text := _text(model.folder / name))), ""),
        facts=facts,
        fills_in=any(all(f'"{mark}"' in tokenizer for mark in marks) for marks in FILL_IN_MARKS),
        thinks=any(all(f'"{tag}"' in tokenizer for tag in tags) for tags in THOUGHT_TAGS),
    )


def _template(folder: Path) -> str:
    """Return the chat template; newer models have it in a file of its own."""
    own = _text(folder / "chat_template.jinja")
    if own:
        return own
    try:
        given: Any = json_object(folder / "tokenizer_config.json").get("chat_template")
    except (OSError, UnusableFolder) as error:
        log.warn("{folder} has no tokenizer_config.json that could be read: {error}", folder=str(folder), error=error)
        return ""
    if isinstance(given, list):
        named = [entry for entry in given if isinstance(entry, dict)]
        given = next((entry.get("template") for entry in named if entry.get("name") == "default"), "")
    return given if isinstance(given, str) else ""


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(MOST_LICENSE)
    except OSError:
        return ""
