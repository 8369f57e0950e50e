"""A GGUF file → an MLX model folder."""

from .conversion import convert
from .header import UnsupportedGGUF

__all__ = ["UnsupportedGGUF", "convert"]
