"""Panics of native code as ordinary errors.

What is written in Rust (tokenizers, llguidance, safetensors) ends a call that it cannot go on with by a panic, which in
Python is a BaseException of the extension's own, so that `except Exception` lets it by. To whoever called it, it is a
fault like any other.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class Panicked(Exception):
    """Native code panicked; the message says what about."""


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise Panicked for a panic within; what ends a program is passed on, as is every Exception."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as panic:
        raise Panicked(f"{type(panic).__name__}: {panic}") from panic
