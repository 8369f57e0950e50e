"""How the process that renders is spoken with: bytes behind their length, over a socket.

What it is asked comes marshalled, from whoever it trusts. What it answers is trusted by nobody: a letter that says what
it is, and a text. JSON would take ten times as long, for a long conversation longer than its rendering. Texts may have
halves of surrogate pairs, and whole pairs in two halves: they pass as they are.
"""

import errno
import socket
import struct
from time import monotonic

LENGTH = struct.Struct("!I")

# What an answer is: what was rendered, why the template refuses that, or nothing, since it would be too long.
TEXT, REFUSAL, EXCESS = b"t", b"r", b"x"

# The status that the process ends with where its memory is at an end.
NO_MEMORY = errno.ENOMEM


class TooLong(Exception):
    """What comes is longer than what the receiver takes."""


def encoded(text: str) -> bytes:
    """Return a text as it is sent."""
    return text.encode("utf-8", "surrogatepass")


def decoded(data: memoryview) -> str:
    """Return a text that was sent. Raises UnicodeDecodeError."""
    return str(data, "utf-8", "surrogatepass")


def send(channel: socket.socket, body: bytes, until: float | None = None) -> None:
    """Send a frame, until that time of the monotonic clock. Raises TimeoutError, ConnectionError."""
    _wait_until(channel, until)
    channel.sendall(LENGTH.pack(len(body)) + body)


def receive(channel: socket.socket, most: int, until: float | None = None) -> memoryview:
    """Return what is in the next frame, of so many bytes at most, until that time of the monotonic clock.

    Raises TooLong, TimeoutError, ConnectionError; EOFError if the other side has closed.
    """
    [length] = LENGTH.unpack(_exactly(channel, LENGTH.size, until))
    if length > most:
        raise TooLong
    return _exactly(channel, length, until)


def _exactly(channel: socket.socket, length: int, until: float | None) -> memoryview:
    data = memoryview(bytearray(length))
    missing = data
    while missing:
        _wait_until(channel, until)
        received = channel.recv_into(missing)
        if not received:
            raise EOFError
        missing = missing[received:]
    return data


def _wait_until(channel: socket.socket, until: float | None) -> None:
    if until is not None:
        # Nothing would be no timeout, but a socket that never blocks.
        channel.settimeout(max(until - monotonic(), 0.001))
