"""What each token spells, in bytes.

The difficulty is that a token need not be whole characters, so decoding it alone loses bytes. How a vocabulary writes
bytes depends on its decoder: byte-level BPE gives each byte a printable character (the table of GPT-2's encoder),
SentencePiece's kind writes a space as U+2581 and rare bytes as `<0xE2>`.
"""

import json
import re

from attrs import define, field
from tokenizers import Tokenizer

BYTE = re.compile("<0x([0-9A-F]{2})>")


def _byte_level() -> dict[str, int]:
    """Return GPT-2's table: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTE_LEVEL = _byte_level()


@define
class Vocabulary:
    """The spelling of a tokenizer's tokens."""

    _tokenizer: Tokenizer
    _added: dict[int, str] = field(init=False)
    _is_byte_level: bool = field(init=False)

    @_added.default
    def _find_added(self) -> dict[int, str]:
        return {token: added.content for token, added in self._tokenizer.get_added_tokens_decoder().items()}

    @_is_byte_level.default
    def _find_byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps(json.loads(self._tokenizer.to_str())["decoder"])

    def spelling(self, token: int) -> bytes:
        """Return the bytes of a token; none for one that the tokenizer does not know."""
        if token in self._added:
            return self._added[token].encode()
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self._is_byte_level:
            return b"".join(
                bytes([BYTE_LEVEL[character]]) if character in BYTE_LEVEL else character.encode() for character in text
            )
        byte = BYTE.fullmatch(text)
        return bytes([int(byte[1], 16)]) if byte else text.replace("\u2581", " ").encode()
