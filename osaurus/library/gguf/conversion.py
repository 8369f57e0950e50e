"""A GGUF file → an MLX model folder: configuration, tokenizer, weights."""

import json
from pathlib import Path
from typing import Any

from .families import settings_of
from .parts import open_model
from .shards import MOST_SHARD_BYTES
from .tokenizer import Vocabulary, config_of, end_tokens, tokenizer_of
from .weights import Progress, Weights


def _tell_nobody(done: int, total: int) -> None:
    """Nobody wants to know."""


def convert(
    file: Path, folder: Path, progress: Progress = _tell_nobody, *, most_shard_bytes: int = MOST_SHARD_BYTES
) -> None:
    """Write the model in `file`, or in the parts that it is one of, to `folder`, which exists and is empty.

    `progress` is told the bytes of weights that were read, and all. Raises UnsupportedGGUF, OSError.
    """
    model = open_model(file)
    metadata = model.metadata
    settings = settings_of(model)
    vocabulary = Vocabulary.of(metadata, settings.config["vocab_size"])
    tokenizer = tokenizer_of(metadata, vocabulary)
    tokenizer_config = config_of(metadata, vocabulary)
    ends, begin = end_tokens(metadata, vocabulary), metadata.integer("tokenizer.ggml.bos_token_id", None)
    weights = Weights(
        model=model, settings=settings, folder=folder, progress=progress, most_shard_bytes=most_shard_bytes
    )
    weights.check()
    quantization = weights.write()
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    _write_json(
        folder / "config.json",
        {
            **settings.config,
            "eos_token_id": ends if len(ends) > 1 else ends[0],
            **({} if begin is None else {"bos_token_id": begin}),
            **({"quantization": quantization} if quantization else {}),
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
