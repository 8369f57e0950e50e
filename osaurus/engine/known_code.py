"""What a module does, told by its class's code; many of mlx_lm's classes have the same under names of their own."""

from types import CodeType
from typing import Any

import mlx.nn as nn
from mlx_lm.models import gemma4_text, llama, phi3small

from ..chat import ModelLoadFailed

GATES: dict[str, type] = {"silu": llama.MLP, "gelu": gemma4_text.MLP}


def runs_code_of(module: Any, *kinds: Any) -> bool:
    """Tell whether a module's `__call__` has the code of one of these classes, with the same names and constants."""
    code = getattr(type(module).__call__, "__code__", None) if isinstance(module, nn.Module) else None
    return code is not None and any(_told(code) == _told(kind.__call__.__code__) for kind in kinds)


def _told(code: CodeType) -> tuple[object, ...]:
    # The texts among the constants are what it says of itself.
    constants = [constant for constant in code.co_consts if not isinstance(constant, str)]
    return code.co_code, code.co_names, constants


def gate_of(module: Any) -> str | None:
    """Return the gate of a feed-forward network whose code is the one that most of mlx_lm's models have."""
    return next((gate for gate, kind in GATES.items() if runs_code_of(module, kind)), None)


def check_logits(network: nn.Module) -> None:
    """Raise ModelLoadFailed if a network's code writes to logits that it does not have.

    Phi-3 small's rules out, by their numbers, tokens that nobody was taught. MLX does not check them: where the
    vocabulary is a smaller one, that ends the process sooner or later.
    """
    if isinstance(network, phi3small.Model):
        size, least = network.args.vocab_size, 1 + int(network._dummy_tokenizer_ids.max().item())
        if size < least:
            raise ModelLoadFailed(f"its network knows {size} tokens; mlx-lm's code for phi3small needs {least}")
