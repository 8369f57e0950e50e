"""The order of the layers: who may import whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import osaurus

from .commandline import PROGRAM
from .server import free_port

ROOT = Path(osaurus.__file__).parent

# Each layer with those below it, which it may import.
BELOW = {
    "chat": set(),
    "durations": set(),
    "inherited": set(),
    "kinds": {"durations"},
    "settings": {"kinds", "inherited"},
    "sources": {"kinds", "settings"},
    "model_config": set(),
    "figures": set(),
    "logs": set(),
    "confinement": set(),
    "rendering": {"chat", "confinement"},
    "library": {"chat", "model_config", "confinement", "rendering"},
    "listening": {"sources"},
    "greeting": {"chat", "library"},
    "engine": {"chat", "figures", "model_config", "rendering"},
    "foundation": {"chat", "engine"},
    "dialects": {"chat", "durations"},
    "serving": {"chat", "library", "engine"},
    "web": {"chat", "dialects", "figures", "serving"},
    "boot": {"settings", "sources"},
    "live": {"inherited", "settings", "logs", "serving", "web"},
    "reload": {"settings", "sources", "serving"},
    "signals": set(),
    "notify": set(),
    "discovery": set(),
    "leftover": set(),
    "service": {"discovery", "engine", "leftover", "logs", "serving", "web", "reload", "signals", "notify"},
    "tap": {
        "chat",
        "settings",
        "sources",
        "discovery",
        "library",
        "engine",
        "foundation",
        "greeting",
        "listening",
        "logs",
        "serving",
        "web",
        "live",
        "reload",
        "signals",
        "notify",
        "service",
    },
    "command": {"chat", "discovery", "boot", "settings", "sources", "library", "engine", "dialects"},
}
# What of the engine may be imported before MLX is: the runner, its prompts, and on the engine's thread the backend.
WITHOUT_MLX = {
    "runner",
    "tally",
    "prompt",
    "backend",
    "output",
    "shape",
    "schema_limits",
    "schemas",
    "conversation",
    "tool_calls",
    "tool_formats",
}


def modules() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path.name != "__init__.py"]


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names, below `osaurus`, of what a module imports from it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = path.parent.relative_to(ROOT).parts[: len(path.parent.relative_to(ROOT).parts) - node.level + 1]
            stem = [*package, *((node.module or "").split(".") if node.module else [])]
            for alias in node.names:
                yield ".".join([*stem, alias.name])


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_layers_below_its_own(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imported(path):
        other = name.split(".")[0]
        assert other in BELOW[layer] | {layer, "__version__"}, f"{path.name} imports {name}"


def test_only_the_engine_imports_mlx() -> None:
    for path in modules():
        names = {
            (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0)
            for alias in node.names
        }
        if names & {"mlx", "mlx_lm"}:
            assert path.parent.name == "engine", path
            # The backend does so in functions only, when the process is ready for it.
            assert path.stem not in WITHOUT_MLX - {"backend"}, path


def test_the_service_imports_neither_mlx_nor_transformers() -> None:
    code = (
        "import sys, osaurus.tap, osaurus.engine.backend\n"
        "heavy = {'mlx', 'mlx_lm', 'transformers', 'numpy', 'gguf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# What takes long to import, and who can do without: pulls and chats are not for those who only look.
SLOW = {"huggingface_hub", "httpx2", "gguf", "numpy", "jinja2", "prompt_toolkit", "osaurus.engine", "osaurus.web"}
SLOW_AND_HTTP = SLOW | {"treq", "twisted.web", "twisted.internet", "OpenSSL", "asyncio"}


@pytest.mark.parametrize(
    ("arguments", "spared"),
    [
        (["version"], SLOW_AND_HTTP | {"osaurus.library.store", "osaurus.dialects", "twisted"}),
        (["list"], SLOW_AND_HTTP),
        (["settings"], SLOW_AND_HTTP),
        (["status"], SLOW),
    ],
)
def test_a_subcommand_imports_what_it_takes(tmp_path: Path, arguments: list[str], spared: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *PROGRAM[1:], *arguments],
        env={"HOME": str(tmp_path), "PYTHONPATH": str(ROOT.parent), "OSU_PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert modules & spared == set()
    assert "osaurus.command.surroundings" in modules


def test_the_command_imports_neither_mlx_nor_a_reactor() -> None:
    code = (
        "import sys, osaurus.command.main\n"
        "early = {'mlx', 'mlx_lm', 'transformers', 'twisted.internet.reactor'} & set(sys.modules)\n"
        "assert not early, early\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
