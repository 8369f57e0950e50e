"""What signals do: the handlers in this process, which pytest's main thread runs at once."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import define, field

from osaurus.signals import Signals

ROOT = str(Path(__file__).parent.parent)
NUMBERS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Whoever runs the tests may ignore SIGHUP (`nohup`), and what they start would inherit it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@define
class Reactor:
    """Calls at once, or when the test starts it."""

    waiting: list[Callable[[], object]] = field(factory=list)

    def callWhenRunning(self, function: Callable[[], object]) -> None:
        self.waiting.append(function)

    def callFromThread(self, function: Callable[[], object]) -> None:
        function()


@define
class House:
    """Signals that are watched, with the reactor's own handlers in place, and what came of them."""

    heard: list[str] = field(factory=list)
    reactor: Reactor = field(factory=Reactor)
    signals: Signals = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.signals = Signals(self.reactor)
        self.signals.watch(lambda: self.heard.append("reload"), lambda: self.heard.append("hurry"))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: self.heard.append(signal.Signals(number).name))
        for function in self.reactor.waiting:
            function()


@pytest.fixture
def house() -> Iterator[House]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield House()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_hang_up_has_the_settings_read_again_each_time(house: House) -> None:
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    assert house.heard == ["reload", "reload"]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_first_is_the_reactors_and_the_second_hurries(house: House, first: int, second: int) -> None:
    signal.raise_signal(first)
    signal.raise_signal(second)
    assert house.heard == [signal.Signals(first).name, "hurry"]


def test_from_the_second_on_they_are_the_kernels(house: House) -> None:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    # Whatever is going on in this process then; see below for a third.
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == [signal.SIG_DFL] * 2
    house.signals.stop()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_who_sets_a_handler_has_nothing_of_the_server_spelt_out(house: House) -> None:
    class Server:
        def __repr__(self) -> str:
            raise AssertionError("it has arrays of another thread")

        def hurry(self) -> None:
            house.heard.append("hurry")

    house.signals._hurry = Server().hurry
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    house.signals.stop()
    assert house.heard == ["SIGTERM", "hurry"]


def test_where_the_end_has_begun_by_itself_the_first_hurries(house: House) -> None:
    house.signals.ending()
    signal.raise_signal(signal.SIGTERM)
    assert house.heard == ["hurry"]


def test_a_hang_up_during_the_end_is_nothing(house: House) -> None:
    house.signals.ending()
    signal.raise_signal(signal.SIGHUP)
    assert house.heard == []


def test_what_was_there_is_given_back(house: House) -> None:
    house.signals.stop()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert house.heard == ["SIGTERM", "SIGTERM"]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_what_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    reactor = Reactor()
    signals = Signals(reactor)
    try:
        signals.watch(lambda: None, lambda: None)
        for function in reactor.waiting:
            function()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signals.stop()
        signal.signal(signal.SIGINT, before)


SESSION = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from osaurus.signals import Signals, has_terminal
class Reactor:
    def callWhenRunning(self, function):
        signal.signal(signal.SIGTERM, lambda *_: tell("ended"))
        function()
    def callFromThread(self, function):
        function()
def tell(word):
    os.write({told}, word.encode() + b" ")
    if word == "ended":
        os._exit(0)
Signals(Reactor()).watch(lambda: tell("reload"), lambda: tell("hurry"))
tell("terminal" if has_terminal() else "none")
while True:
    signal.pause()
"""


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_gone_ends_what_it_ran_unless_by_nohup(nohup: bool) -> None:
    ours, terminal = pty.openpty()
    read, told = os.pipe()
    begin = "import fcntl, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    ignore = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" if nohup else ""
    code = begin + ignore + SESSION.format(root=ROOT, told=told)
    process = subprocess.Popen([sys.executable, "-c", code], stdin=terminal, pass_fds=[told], start_new_session=True)
    os.close(terminal)
    try:
        assert os.read(read, 100) == b"terminal "
        process.send_signal(signal.SIGHUP)
        assert os.read(read, 100) == b"reload "
        os.close(ours)
        assert os.read(read, 100) == (b"reload " if nohup else b"ended ")
    finally:
        process.kill()
        process.wait(30)
        os.close(read)
        os.close(told)


def test_a_third_is_the_kernels() -> None:
    code = SESSION.format(root=ROOT, told=1).replace('tell("ended")', 'tell("first")')
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    told = process.stdout.fileno()
    assert os.read(told, 100) == b"none "
    for answer in (b"first ", b"hurry "):
        process.send_signal(signal.SIGTERM)
        assert os.read(told, 100) == answer
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    process.stdout.close()
