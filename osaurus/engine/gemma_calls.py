"""Calls of Gemma 4 and FunctionGemma: `call:weather{city:<escape>Paris<escape>,days:2}`.

It is JSON, but for the names, which stand as they are, and for texts, which stand between two marks and hold no others.
"""

import json
import re
from typing import Any

from attrs import frozen

from .argument_values import ValueIsOpen, named_once

NAME = re.compile(r"([{,]\s*)([^\s{}\[\],:\"]{1,256})(?=\s*:)")
HEAD = re.compile(r"\s*+call:([^\s{}]{1,256})(?=\{)")


@frozen
class GemmaForm:
    """What stands on both sides of a text."""

    quote: str

    def __call__(self, text: str, _: list[dict[str, Any]]) -> Any:
        """Return the calls that a text is. Raises ValueError if it is anything else, ValueIsOpen if it goes on."""
        pieces = text.split(self.quote)
        if len(pieces) % 2 == 0:
            raise ValueIsOpen("a text does not end")
        if '"' in "".join(pieces[::2]):
            raise ValueError("a text is written otherwise")
        written = "".join(
            json.dumps(piece) if place % 2 else NAME.sub(r'\1"\2"', piece) for place, piece in enumerate(pieces)
        ).rstrip()
        calls: list[dict[str, Any]] = []
        place = 0
        while place < len(written):
            head = HEAD.match(written, place)
            if head is None:
                raise ValueError("no call begins here")
            arguments, place = json.JSONDecoder(object_pairs_hook=named_once).raw_decode(written, head.end())
            calls.append({"name": head[1], "arguments": arguments})
        return calls


GEMMA_4 = GemmaForm('<|"|>')
FUNCTION_GEMMA = GemmaForm("<escape>")
