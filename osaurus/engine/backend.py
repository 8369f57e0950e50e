"""What MLX needs on this machine before it is imported, and what it can do once it is.

The difficulty is Linux without a GPU. The wheel of MLX's CPU backend links the reference BLAS, forty times slower than
an optimised one at the sizes of a small model, and its float16 and bfloat16 matrix products are scalar loops. So,
before MLX is imported, OpenBLAS is put in front of that BLAS (the dynamic linker looks in libraries loaded with
RTLD_GLOBAL first), and models run in float32. Quantised ones stay as they are where our own kernels can be had
(`kernels.py`); then OpenBLAS serves the rest.

OpenBLAS comes from the wheel `scipy-openblas32`, whose symbols carry a prefix; `openblas.c` gives them their plain
names and is built here with the C compiler that MLX's own kernel compilation needs as well. Rejected: the wheel
`cmeel-openblas`, which has plain names but needs a libgfortran that many machines lack; patching symbol tables.
Without a compiler the system's libopenblas serves, if there is one.

Importing mlx_lm lowers the process's limit of open files, for good where the process is not privileged; a server
holds a socket for each client, so the import runs with that one call disarmed.
"""

import ctypes
import ctypes.util
import importlib
import importlib.resources
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from attrs import frozen
from twisted.logger import Logger

log = Logger()

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
COMPILERS = ("cc", "gcc", "clang")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# The most that glibc takes.
SEPARATE_BYTES = 2**25
MOST_FREED_BYTES = 2**27


@frozen(kw_only=True)
class Backend:
    """The machine as the engine sees it.

    `blas` is for people to read; None where MLX does not use one. `kernels` names those of `osaurus_cpu`, None where
    there are none: then, or for weights that they do not take, `dense_float32` says that weights are to be expanded to
    float32 where they fit. `prefill_step_size` tokens of prompts are read in one step while nobody writes; more where
    that is fast.
    """

    device: Literal["metal", "cuda", "cpu"]
    blas: str | None
    dense_float32: bool
    memory_bytes: int
    prefill_step_size: int
    kernels: str | None = None


@cache
def prepare(cache_dir: Path, cpu_threads: int = 0) -> Backend:
    """Import MLX the way this machine needs it, and say what was found; once a process.

    `cache_dir` is where kernels compiled at run time are kept, readable by this user only. `cpu_threads` is for our own
    kernels; 0 for as many as there are processors. Raises RuntimeError if MLX has been imported by somebody else: a
    BLAS put in front of it then would silently have no effect. What fails otherwise may be tried again.
    """
    blas = _make_ready(cache_dir)
    with _open_file_limit_kept():
        importlib.import_module("mlx_lm")
    import mlx.core as mx

    _check_kernel_compilation(mx)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    if on_cpu and platform.system() == "Linux":
        _keep_freed_memory()
    backend = Backend(
        device="cpu" if on_cpu else "metal" if mx.metal.is_available() else "cuda",
        blas=blas if on_cpu else None,
        kernels=_find_kernels(cpu_threads) if on_cpu else None,
        dense_float32=on_cpu,
        memory_bytes=_memory_bytes(),
        # A client that leaves frees its row after a step, so that this bounds the wait where it is slow.
        prefill_step_size=128 if on_cpu else 1024,
    )
    if on_cpu and blas is None:
        log.warn(
            "No optimised BLAS: generation will be many times slower than it could be. "
            "Install a C compiler, or the system's OpenBLAS (Debian: libopenblas0)."
        )
    log.info(
        "MLX {version} on {backend.device}; BLAS: {blas}; kernels: {kernels}; {memory:.1f} GiB of memory",
        version=version("mlx"),
        backend=backend,
        blas=backend.blas or "MLX's own",
        kernels=backend.kernels or "MLX's own",
        memory=backend.memory_bytes / 2**30,
    )
    return backend


@cache
def _make_ready(cache_dir: Path) -> str | None:
    """Do what has to be done before MLX is imported, and return the BLAS that was put in front of its own.

    Once a process, apart from what comes after it: of that something may fail, and be tried again.
    """
    if "mlx.core" in sys.modules:
        raise RuntimeError("mlx was imported before osaurus.engine.backend.prepare")
    compiled = private_folder(cache_dir)
    # MLX compiles kernels into a predictable folder under the temporary directory and loads what it finds there:
    # in a shared /tmp another user could plant a library.
    os.environ["TMPDIR"] = str(compiled)
    return _interpose_openblas(compiled) if platform.system() == "Linux" else None


def _find_kernels(threads: int) -> str | None:
    """Return which kernels of `osaurus_cpu` this processor runs; None, and a line in the log, where there are none."""
    try:
        kernels = importlib.import_module("osaurus_cpu")
        if not kernels.set_threads(threads):
            log.warn("The kernels have only {count} threads: there can be no more here", count=kernels.threads())
        return str(kernels.kernels())
    except ModuleNotFoundError:
        log.info("osaurus-cpu is not installed: quantised models take more memory, and are slower, than they need be")
    except (ImportError, ValueError, TypeError, OverflowError) as error:
        # Built against another release of mlx, or told to use what this processor lacks, or more than it can count.
        log.warn("osaurus-cpu cannot be used, MLX's own kernels are: {error}", error=error)
    return None


def _keep_freed_memory() -> None:
    """Have glibc keep what layers work in and give back, for the next layer.

    By itself it returns some of it to the system at once, which gives empty pages then: a tenth of the time in which a
    prompt is read went there. Arrays of more than `SEPARATE_BYTES` still come and go by themselves. Of a model that is
    dropped everything is given back but what its layers worked in, some tens of MiB at most. The numbers of the
    parameters are those of `malloc.h`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(M_MMAP_THRESHOLD, SEPARATE_BYTES)
        mallopt(M_TRIM_THRESHOLD, MOST_FREED_BYTES)


def _memory_bytes() -> int:
    """Return the memory that there is: the machine's, or what the container may have of it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(CGROUP_LIMIT.read_text("ascii")))
    except (OSError, ValueError):
        return physical


def private_folder(cache_dir: Path) -> Path:
    """Make the folder for what is compiled, in which nobody else may write; return it. Raises OSError."""
    path = cache_dir / "compiled"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    if path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user; set the cache folder to one of your own")
    return path


@contextmanager
def _open_file_limit_kept() -> Iterator[None]:
    original = resource.setrlimit

    def setrlimit(which: int, limits: tuple[int, int]) -> None:
        if which != resource.RLIMIT_NOFILE:
            original(which, limits)

    resource.setrlimit = setrlimit
    try:
        yield
    finally:
        resource.setrlimit = original


def _interpose_openblas(directory: Path) -> str | None:
    """Put an OpenBLAS in front of the BLAS that MLX links; its description, or None where none was found."""
    return _openblas_from_wheel(directory) or _openblas_from_system()


def _openblas_from_wheel(directory: Path) -> str | None:
    try:
        wheel = importlib.import_module("scipy_openblas32")
    except ImportError:
        return None
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        log.info("No C compiler found; the OpenBLAS of the scipy-openblas32 wheel cannot be used")
        return None
    # A name of its own, removed once loaded: two servers may start at the same time.
    library = directory / f"openblas-{uuid4().hex}.so"
    folder, name = wheel.get_lib_dir(), wheel.get_library()
    link = (f"-L{folder}", f"-l{name}", f"-Wl,-rpath,{folder}")
    source = importlib.resources.files("osaurus.engine") / "openblas.c"
    try:
        with importlib.resources.as_file(source) as path:
            subprocess.run(  # noqa: S603 - a fixed command; only paths of this installation go in
                [compiler, "-O2", "-shared", "-fPIC", path, "-o", library, *link],
                check=True,
                capture_output=True,
                timeout=60,
            )
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        openblas = ctypes.CDLL(str(Path(folder) / f"lib{name}.so"))
    except (OSError, subprocess.SubprocessError) as error:
        log.warn("The OpenBLAS of the scipy-openblas32 wheel cannot be used: {error}", error=error)
        return None
    finally:
        library.unlink(missing_ok=True)
    threads = int(openblas.scipy_openblas_get_num_threads())
    return f"OpenBLAS ({_core_name(openblas.scipy_openblas_get_corename)}, {threads} threads)"


def _openblas_from_system() -> str | None:
    name = ctypes.util.find_library("openblas")
    if name is None:
        return None
    try:
        openblas = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        return f"OpenBLAS of the system ({_core_name(openblas.openblas_get_corename)})"
    except (OSError, AttributeError) as error:
        log.warn("The system's {name} cannot be used: {error}", name=name, error=error)
        return None


def _core_name(function: Any) -> str:
    function.restype = ctypes.c_char_p
    return str(function().decode("ascii", "replace"))


def _check_kernel_compilation(mx: Any) -> None:
    """Compile a small kernel; where that raises (a broken compiler, a folder without write access), do without.

    MLX would raise the same error in the middle of an answer.
    """
    try:
        canary = mx.compile(lambda x: mx.exp(x) * 2 + 1)
        mx.eval(canary(mx.ones((8,))))
    except Exception as error:  # noqa: BLE001 - whatever the compiler does wrong
        mx.disable_compile()
        log.warn("Kernels cannot be compiled here, generation will be slower: {error}", error=error)
