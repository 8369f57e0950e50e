"""A process that takes a stranger's file apart may not take the whole machine."""

import signal
import subprocess
import sys

import pytest

CONFINED = "from osaurus.confinement import confine\nconfine(memory=2**29, seconds=1)\n"


def test_it_may_not_take_all_time() -> None:
    code = CONFINED + "while True:\n    pass\n"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -signal.SIGXCPU


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds what a process allocates")
def test_it_may_not_take_all_memory() -> None:
    code = CONFINED + "try:\n    bytearray(2**29)\nexcept MemoryError:\n    print('bounded')\n"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "bounded\n"


@pytest.mark.usefixtures("refused_memory_limits")
def test_a_system_that_bounds_no_memory_bounds_time_all_the_same() -> None:
    code = CONFINED + "bytearray(2**29)\nwhile True:\n    pass\n"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -signal.SIGXCPU


def test_what_was_bounded_closer_stays_so() -> None:
    code = "import resource\nresource.setrlimit(resource.RLIMIT_DATA, (2**28, 2**28))\n" + CONFINED
    code += "assert resource.getrlimit(resource.RLIMIT_DATA) == (2**28, 2**28)\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
