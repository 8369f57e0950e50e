"""What `make venv` and `make run` do, with programs that stand in for Python and twistd."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from attrs import frozen

import osaurus

ROOT = Path(osaurus.__file__).parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@frozen
class Checkout:
    """A checkout whose environment is there, but for the kernels."""

    folder: Path

    def script(self, name: str, content: str) -> None:
        """Have a program do this."""
        program = self.folder / ".venv" / "bin" / name
        program.write_text(f"#!/bin/sh\n{content}\n")
        program.chmod(0o755)

    def make(self, *arguments: str, **environment: str) -> str:
        """Run make, on what it takes for Linux; return what it prints."""
        programs = self.folder / ".venv" / "bin"
        others = {name: value for name, value in os.environ.items() if not name.startswith(("OSU_", "MAKE", "MFLAGS"))}
        ended = subprocess.run(
            ["make", *arguments],
            cwd=self.folder,
            env={**others, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.cfg", "pyproject.toml", "native/pyproject.toml", "native/CMakeLists.txt", ".venv/installed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".venv" / "bin").mkdir()
    made = Checkout(tmp_path)
    made.script("uname", "echo Linux")
    made.script("python", 'echo "$@" >> built')
    made.script("osaurus", "echo smollm2")
    made.script("twistd", 'echo "port: ${OSU_PORT-not set}"')
    return made


def test_kernels_that_could_not_be_built_are_built_by_the_next_make(checkout: Checkout) -> None:
    checkout.script("python", "echo no Python.h; exit 1")
    for _ in range(2):
        assert "cannot be built here (.venv/kernels.log says why)" in checkout.make("venv")
    assert (checkout.folder / ".venv" / "kernels.log").read_text() == "no Python.h\n"
    checkout.script("python", 'echo "$@" >> built')
    for _ in range(2):
        assert "cannot be built" not in checkout.make("venv")
    [once] = (checkout.folder / "built").read_text().splitlines()
    assert once.endswith("./native")


def test_kernels_are_for_cpus_only(checkout: Checkout) -> None:
    checkout.make("venv", "EXTRAS=cuda")
    assert not (checkout.folder / "built").exists()


def test_a_port_is_told_only_if_one_was_given(checkout: Checkout) -> None:
    # What the settings' file says holds otherwise.
    assert "port: not set" in checkout.make("run")
    assert "port: 8080" in checkout.make("run", "OSU_PORT=8080")
    assert "port: 8081" in checkout.make("run", OSU_PORT="8081")
