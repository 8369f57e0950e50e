"""The CPU kernels on processors that this machine does not have: compiled for ARM, and run by an emulator."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import CACHE
from ..programs import program

pytestmark = pytest.mark.system

NATIVE = Path(__file__).parent.parent.parent / "native"
BUILD = CACHE / "native-aarch64"
# Where Debian keeps the libraries for it.
LIBRARIES = "/usr/aarch64-linux-gnu"
SECONDS = 600.0


@pytest.fixture(scope="module")
def kernels_test() -> Path:
    """The kernels' own test, which needs no MLX, as a program for ARM."""
    path = f"{Path(sys.executable).parent}:/usr/bin"
    cmake = shutil.which("cmake", path=path)
    assert cmake is not None
    options = {
        "CMAKE_CXX_COMPILER": program("aarch64-linux-gnu-g++"),
        "CMAKE_MAKE_PROGRAM": shutil.which("ninja", path=path),
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "WITH_MLX": "OFF",
        "WITH_TESTS": "ON",
    }
    defined = [f"-D{name}={value}" for name, value in options.items()]
    for arguments in (["-G", "Ninja", "-S", str(NATIVE), "-B", str(BUILD), *defined], ["--build", str(BUILD)]):
        subprocess.run([cmake, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=SECONDS)
    return BUILD / "kernels_test"


@pytest.mark.parametrize(
    ("processor", "sets"),
    [
        pytest.param("neoverse-n1", ["neon", "portable"], id="with the product of bytes"),
        pytest.param("cortex-a72", ["portable"], id="without it"),
    ],
)
def test_an_arm_processor_computes_with_the_kernels_that_it_can_run(
    kernels_test: Path, processor: str, sets: list[str]
) -> None:
    emulated = [program("qemu-aarch64"), "-cpu", processor, "-L", LIBRARIES, str(kernels_test)]
    ran = subprocess.run(emulated, check=False, capture_output=True, text=True, timeout=SECONDS)
    assert (ran.stdout, ran.returncode) == ("".join(f"{name}: right\n" for name in sets), 0)
