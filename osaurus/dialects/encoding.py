"""JSON as it leaves: compact, and ASCII throughout, since some clients split lines at U+2028 and U+0085 as well."""

import json
from typing import Any


def encode_json(value: dict[str, Any]) -> bytes:
    """Return an object as one line of JSON, without its end."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")
