"""A signal that would end a process at once lets it tidy up first."""

import signal
import subprocess
import sys

import pytest

ENDED = (
    "import os, signal\n"
    "from osaurus.library.ending import ends_in_order\n"
    "try:\n"
    "    with ends_in_order():\n"
    "        os.kill(os.getpid(), signal.{name})\n"
    "        print('goes on')\n"
    "finally:\n"
    "    print('tidied up')\n"
)


def run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_ends_with_the_status_that_a_shell_knows(number: signal.Signals) -> None:
    done = run(ENDED.format(name=number.name))
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "tidied up\n", "")


def test_what_is_ignored_stays_so() -> None:
    code = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + ENDED.format(name="SIGHUP")
    assert run(code).stdout == "goes on\ntidied up\n"


def test_a_second_signal_does_not_cut_the_tidying_up_short() -> None:
    code = (
        "import os, signal\n"
        "from osaurus.library.ending import ends_in_order\n"
        "with ends_in_order():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGHUP)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        print('tidied up')\n"
    )
    done = run(code)
    assert (done.returncode, done.stdout) == (128 + signal.SIGHUP, "tidied up\n")


def test_afterwards_signals_mean_what_they_meant() -> None:
    code = (
        "import signal\n"
        "from osaurus.library.ending import ends_in_order\n"
        "with ends_in_order():\n"
        "    assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL\n"
        "assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    )
    assert run(code).returncode == 0
