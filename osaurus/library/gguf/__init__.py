"""A GGUF file → an MLX model folder."""

from .conversion import convert
from .header import UnusableGGUF

__all__ = ["UnusableGGUF", "convert"]
