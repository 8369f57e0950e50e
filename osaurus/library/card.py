"""What a model's folder says about it, for people and programs that ask before they use it.

Everything here blocks on the disk.
"""

from pathlib import Path
from typing import Any

from twisted.logger import Logger

from ..chat import InstalledModel, ModelCard
from ..model_config import FILL_IN_MARKS, HARMONY_MARKS, THOUGHT_TAGS, context_length, number
from .folder import UnusableFolder, json_object
from .template import takes_tools

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
    if model.system:
        return ModelCard(
            model=model,
            architecture=model.family,
            template="",
            license="",
            facts={"context_length": model.context_length},
            fills_in=False,
            thinks=False,
            takes_tools=True,
        )
    config = json_object(model.folder / "config.json")
    facts = {"context_length": context_length(config)}
    facts |= {name: value for name, keys in FACTS.items() if (value := number(config, *keys)) is not None}
    tokenizer = (model.folder / "tokenizer.json").read_text("utf-8")
    templates = _templates(model.folder)
    template = templates.get("default", "")
    return ModelCard(
        model=model,
        architecture=model.family,
        template=template,
        license=next((text for name in LICENSES if (text := _text(model.folder / name))), ""),
        facts=facts,
        fills_in=any(all(f'"{mark}"' in tokenizer for mark in marks) for marks in FILL_IN_MARKS),
        thinks=any(all(f'"{tag}"' in tokenizer for tag in tags) for tags in (*THOUGHT_TAGS, HARMONY_MARKS))
        # With some the tags are no tokens.
        or any(all(tag in template for tag in tags) for tags in THOUGHT_TAGS),
        # Where there are several, the one of this name is for conversations with tools.
        takes_tools=takes_tools(templates.get("tool_use", template)),
    )


def _templates(folder: Path) -> dict[str, str]:
    """Return the chat templates by name; newer models have theirs in a file of its own."""
    own = _text(folder / "chat_template.jinja")
    if own:
        return {"default": own}
    try:
        given: Any = json_object(folder / "tokenizer_config.json").get("chat_template")
    except (OSError, UnusableFolder) as error:
        log.warn("{folder} has no tokenizer_config.json that could be read: {error}", folder=str(folder), error=error)
        return {}
    entries = given if isinstance(given, list) else [{"name": "default", "template": given}]
    return {
        str(entry.get("name")): entry["template"]
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("template"), str)
    }


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(MOST_LICENSE)
    except OSError:
        return ""
