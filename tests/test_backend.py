"""What preparing MLX does to a process, each in a process of its own."""

import os
import platform
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

PREPARE = """
import sys
from pathlib import Path
from twisted.logger import globalLogBeginner, textFileLogObserver
globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
from osaurus.engine.backend import prepare
backend = prepare(Path(sys.argv[1]))
"""


def run(code: str, cache: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, str(cache)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_log_tells_device_blas_and_memory(tmp_path: Path) -> None:
    done = run(PREPARE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "GiB of memory" in done.stdout


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux needs another BLAS")
def test_matrix_products_go_through_openblas_on_linux(tmp_path: Path) -> None:
    # The symbol that MLX will call is not the one of the reference BLAS that it ships.
    code = PREPARE + (
        "import ctypes, subprocess\n"
        "assert backend.blas.startswith('OpenBLAS'), backend\n"
        "plain = ctypes.CDLL(None).cblas_sgemm\n"
        "reference = [line.split(None, 5)[-1].strip() for line in open('/proc/self/maps') if 'libblas' in line][0]\n"
        "assert ctypes.cast(plain, ctypes.c_void_p).value != "
        "ctypes.cast(ctypes.CDLL(reference).cblas_sgemm, ctypes.c_void_p).value\n"
        "import mlx.core as mx, numpy as np\n"
        "a, b = np.random.rand(65, 130).astype('f'), np.random.rand(130, 70).astype('f')\n"
        "assert np.allclose(np.array(mx.array(a) @ mx.array(b)), a @ b, rtol=1e-4)\n"
    )
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_limit_of_open_files_is_kept(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 5000 if hard == resource.RLIM_INFINITY or hard >= 5000 else soft
    code = f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({wanted}, {hard}))\n" + PREPARE
    done = run(code + f"assert resource.getrlimit(resource.RLIMIT_NOFILE) == ({wanted}, {hard})\n", tmp_path)
    assert done.returncode == 0, done.stderr


def test_compiled_kernels_are_kept_where_nobody_else_can_write(tmp_path: Path) -> None:
    done = run(PREPARE, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    compiled = tmp_path / "cache" / "compiled"
    assert stat.S_IMODE(compiled.stat().st_mode) == 0o700


def test_without_a_compiler_it_still_works_and_says_so(tmp_path: Path) -> None:
    code = PREPARE + "import mlx.core as mx\nmx.eval(mx.compile(lambda x: mx.exp(x) + 1)(mx.ones(4)))\n"
    done = run(code, tmp_path / "cache", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    if platform.system() == "Linux":
        assert "compiler" in done.stdout


def test_a_broken_compiler_is_found_out_at_the_start(tmp_path: Path) -> None:
    for name in ("cc", "gcc", "g++", "c++", "clang", "clang++"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    code = PREPARE + "import mlx.core as mx\nmx.eval(mx.compile(lambda x: mx.exp(x) + 1)(mx.ones(4)))\n"
    done = run(code, tmp_path / "cache", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ModuleNotFoundError('osaurus_cpu')", "osaurus-cpu is not installed"),
        ("raise ImportError('undefined symbol: mlx')", "cannot be used, MLX's own kernels are: undefined symbol"),
        ("def set_threads(n): raise ValueError('these kernels cannot run on this processor')", "these kernels cannot"),
        ("def set_threads(n): raise TypeError('incompatible function arguments')", "incompatible function arguments"),
    ],
)
@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux is without a GPU")
def test_kernels_that_cannot_be_used_are_done_without_and_the_log_says_why(
    tmp_path: Path, code: str, reason: str
) -> None:
    (tmp_path / "osaurus_cpu.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run(PREPARE + "assert backend.kernels is None\n", tmp_path / "cache", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux is without a GPU")
def test_where_the_kernels_have_fewer_threads_than_wanted_the_log_says_so(tmp_path: Path) -> None:
    (tmp_path / "osaurus_cpu.py").write_text(
        "def set_threads(n): return False\ndef threads(): return 3\ndef kernels(): return 'abacus'\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run(PREPARE + "assert backend.kernels == 'abacus'\n", tmp_path / "cache", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "only 3 threads" in done.stdout


def test_preparing_after_mlx_was_imported_is_refused(tmp_path: Path) -> None:
    done = run("import mlx.core\n" + PREPARE, tmp_path)
    assert "mlx was imported before" in done.stderr


def test_what_failed_after_the_import_can_be_tried_again(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from osaurus.engine.backend import prepare\n"
        "sysconf, os.sysconf = os.sysconf, lambda name: sysconf('none')\n"
        "for attempt in (1, 2):\n"
        "    try:\n"
        "        prepare(Path(sys.argv[1]))\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
        "os.sysconf = sysconf\n"
        "prepare(Path(sys.argv[1]))\n"
    )
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unrecognized configuration name") == 2
