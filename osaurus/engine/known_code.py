"""What a module does, told by its class's code; many of mlx_lm's classes have the same under names of their own."""

from typing import Any

import mlx.nn as nn
from mlx_lm.models import gemma4_text, llama

GATES: dict[str, type] = {"silu": llama.MLP, "gelu": gemma4_text.MLP}


def runs_code_of(module: Any, *kinds: Any) -> bool:
    """Tell whether a module's `__call__` has the code of one of these classes, looking up the same names."""
    code = getattr(type(module).__call__, "__code__", None) if isinstance(module, nn.Module) else None
    known = [kind.__call__.__code__ for kind in kinds]
    return code is not None and any((code.co_code, code.co_names) == (one.co_code, one.co_names) for one in known)


def gate_of(module: Any) -> str | None:
    """Return the gate of a feed-forward network whose code is the one that most of mlx_lm's models have."""
    return next((gate for gate, kind in GATES.items() if runs_code_of(module, kind)), None)
