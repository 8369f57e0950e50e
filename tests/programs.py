"""Programs that tests need and pip does not bring.

Their tests have the marker `system`. `make test` leaves them out. `make test-system` installs the programs and runs
these tests alone; it sets OSU_TEST_SYSTEM, with which a program that is missing fails its tests. Without it, as in
plain `pytest`, they are skipped.
"""

import os
import shutil
from typing import NoReturn

import pytest

from .conftest import CACHE

# Where tests/system/install puts what it does not install.
UNPACKED = CACHE / "system"


def absent(what: str) -> NoReturn:
    """Skip the test for want of `what`; where everything has to be there, fail it."""
    if os.environ.get("OSU_TEST_SYSTEM"):
        pytest.fail(what)
    pytest.skip(what)


def program(name: str) -> str:
    """Return a program's path, or end the test."""
    unpacked = os.pathsep.join(str(UNPACKED / "usr" / folder) for folder in ("sbin", "bin"))
    # Debian's servers are where only root's PATH looks.
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", unpacked]))
    return path or absent(f"needs {name}: run `make test-system`")
