"""What of a tokenizer.json is refused before a tokenizer is made of it.

The difficulty is that tokenizers write a vocabulary out number by number: a single token whose number is 2**31 makes
that minutes and gigabytes, during which no other Python runs, the reactor's included. Transformers has it written out
as soon as the tokenizer is made, so the file itself is looked at. Parsing it takes half as long as making the
tokenizer; but hardly any file has so large a number anywhere, and where there is none nothing is parsed.
"""

import json
import re
from pathlib import Path
from typing import Any

from ..chat import ModelLoadFailed

# Four times what the largest have that are published, in bytes and tokens. A vocabulary with a hole of that many takes
# a tenth of a second longer.
MOST_BYTES = 128 * 2**20
MOST_TOKENS = 1_000_000
AS_LARGE = re.compile(rb":[ \t\r\n]*[0-9]{7}")


def check(path: Path) -> None:
    """Raise ModelLoadFailed if a tokenizer.json is too large, or numbers a token as none can be. Raises OSError."""
    if not path.is_file():
        raise ModelLoadFailed(f"its folder has no {path.name}")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ModelLoadFailed(f"its {path.name} has {size} bytes; there may be {MOST_BYTES}")
    content = path.read_bytes()
    largest = max(_numbers(content), default=0) if AS_LARGE.search(content) else 0
    if largest >= MOST_TOKENS:
        raise ModelLoadFailed(
            f"its {path.name} is damaged: one of its tokens has the number {largest}; there may be {MOST_TOKENS} tokens"
        )


def _numbers(content: bytes) -> list[int]:
    """Return the numbers of a vocabulary's tokens; none if it is no tokenizer, as making one of it will say."""
    try:
        vocabulary = _within(_within(json.loads(content), "model"), "vocab")
    except (ValueError, RecursionError):
        return []
    return [number for number in vocabulary.values() if type(number) is int]


def _within(value: Any, key: str) -> dict[str, Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}
