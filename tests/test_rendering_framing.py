"""Frames over a socket: whole, bounded, and in time."""

import socket
from collections.abc import Iterator
from threading import Thread
from time import monotonic

import pytest

from osaurus.rendering.framing import LENGTH, TooLong, decoded, encoded, receive, send

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("body", [b"", b"x", bytes(range(256)) * 20_000], ids=["empty", "short", "long"])
def test_what_is_sent_is_received_frame_by_frame(pair: Pair, body: bytes) -> None:
    ours, theirs = pair

    def speak() -> None:
        for frame in (body, b"next"):
            send(ours, frame, monotonic() + 30)

    sending = Thread(target=speak)
    sending.start()
    assert [bytes(receive(theirs, len(body) + 4)) for _ in range(2)] == [body, b"next"]
    sending.join()


@pytest.mark.parametrize("text", ["", "é\x00", "\ud83d", "\ud83d\ude00", "\U0001f600", "\U000f0000"])
def test_a_text_is_what_it_was(text: str) -> None:
    assert decoded(memoryview(encoded(text))) == text


def test_what_is_too_long_is_not_read(pair: Pair) -> None:
    ours, theirs = pair
    ours.sendall(LENGTH.pack(2**32 - 1))
    with pytest.raises(TooLong):
        receive(theirs, 2**20)


@pytest.mark.parametrize("sent", [b"", b"\0\0", LENGTH.pack(2) + b"x"], ids=["nothing", "half a length", "half a body"])
def test_the_end_in_the_middle_is_told(pair: Pair, sent: bytes) -> None:
    ours, theirs = pair
    ours.sendall(sent)
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs, 2**20)


def test_nothing_is_waited_for_beyond_its_time(pair: Pair) -> None:
    ours, theirs = pair
    for until in (monotonic() - 1, monotonic() + 0.05):
        with pytest.raises(TimeoutError):
            receive(theirs, 2**20, until)
    with pytest.raises(TimeoutError):
        send(ours, b"x" * 10**7, monotonic() + 0.05)
