"""The metadata of a GGUF file, asked for by key and type: what is missing or of another type is named."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import frozen

from .header import UnsupportedGGUF

REQUIRED: Any = object()
KINDS = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list of texts",
    np.ndarray: "a list of numbers",
}


@frozen
class Metadata:
    """Values by key. A key that begins with a dot is the architecture's: `.block_count` is `llama.block_count`.

    Every question raises UnsupportedGGUF, naming the key, where the value is of another type, or missing and no default
    was given.
    """

    values: dict[str, Any]

    @property
    def architecture(self) -> str:
        """The architecture's name."""
        return str(self.text("general.architecture"))

    def text(self, key: str, default: Any = REQUIRED) -> Any:
        """Return a text."""
        return self._value(key, default, lambda value: type(value) is str, "a text")

    def flag(self, key: str, default: Any = REQUIRED) -> Any:
        """Return yes or no."""
        return self._value(key, default, lambda value: type(value) is bool, "true or false")

    def integer(self, key: str, default: Any = REQUIRED) -> Any:
        """Return a whole number that is not negative; where there is one for each layer, the one they all have."""
        value = self._value(key, default, lambda value: type(value) is int or _is_array(value), "a whole number")
        if _is_array(value):
            numbers = set(self.integers(key))
            if len(numbers) != 1:
                raise UnsupportedGGUF(f"its metadata's {self._key(key)!r} differs between layers: not converted")
            [value] = numbers
        if value is not default and not 0 <= value < 2**53:
            raise UnsupportedGGUF(f"its metadata's {self._key(key)!r} is {value}, which cannot be")
        return value

    def size(self, key: str, default: Any = REQUIRED) -> Any:
        """Return a positive whole number."""
        value = self.integer(key, default)
        if value == 0 and default != 0:
            raise UnsupportedGGUF(f"its metadata's {self._key(key)!r} is 0, which cannot be")
        return value

    def real(self, key: str, default: Any = REQUIRED) -> Any:
        """Return a number. GGUF holds a float32; the shortest decimal that stands for it is what was written."""
        value = self._value(key, default, lambda value: type(value) in (int, float), "a number")
        if value is default:
            return value
        value = float(str(np.float32(value)))
        if not np.isfinite(value):
            raise UnsupportedGGUF(f"its metadata's {self._key(key)!r} is not finite")
        return value

    def positive(self, key: str, default: Any = REQUIRED) -> Any:
        """Return a positive number."""
        value = self.real(key, default)
        if value <= 0:
            raise UnsupportedGGUF(f"its metadata's {self._key(key)!r} is {value}, which cannot be")
        return value

    def texts(self, key: str) -> list[str]:
        """Return a list of texts."""
        return list(self._value(key, REQUIRED, lambda value: type(value) is list, "a list of texts"))

    def integers(self, key: str, default: Any = REQUIRED) -> Any:
        """Return a list of whole numbers."""
        value = self._value(key, default, _are_integers, "a list of whole numbers")
        return value if value is default else [int(number) for number in value]

    def reals(self, key: str) -> list[float]:
        """Return a list of numbers."""
        return [float(number) for number in self._value(key, REQUIRED, _is_array, "a list of numbers")]

    def has(self, key: str) -> bool:
        """Return whether there is a value."""
        return self._key(key) in self.values

    def _key(self, key: str) -> str:
        return self.architecture + key if key.startswith(".") else key

    def _value(self, key: str, default: Any, fits: Any, wanted: str) -> Any:
        key = self._key(key)
        if key not in self.values:
            if default is REQUIRED:
                raise UnsupportedGGUF(f"its metadata lacks {key!r}")
            return default
        value = self.values[key]
        if not fits(value):
            raise UnsupportedGGUF(f"its metadata's {key!r} must be {wanted}, not {KINDS[type(value)]}")
        return value


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _are_integers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "iu"


def lengths(values: dict[str, Sequence[Any]]) -> None:
    """Raise UnsupportedGGUF unless lists that belong together are of the same length."""
    first, *others = values
    for other in others:
        if len(values[other]) != len(values[first]):
            raise UnsupportedGGUF(f"{other!r} has {len(values[other])} values, {first!r} {len(values[first])}")
