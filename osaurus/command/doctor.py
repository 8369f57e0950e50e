"""`osaurus doctor`: what this machine has, what is wrong with it, and what to do.

MLX is tried out in a process of its own: where its libraries do not fit the machine, that one dies and not the doctor.
"""

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import attrs
import click
from attrs import define, frozen
from packaging.requirements import Requirement
from rich.filesize import decimal
from twisted.logger import LogLevel, capturedLogs

from .. import __version__
from ..engine.backend import COMPILERS, Backend, prepare
from ..library.names import SHORT_NAMES
from ..library.store import ModelStore
from ..settings import Settings
from .errors import NoServer
from .server import HEALTH_SECONDS
from .surroundings import Place, Surroundings, json_option, pass_surroundings
from .terminal import examples, print_json, printable

BACKEND_SECONDS = 120.0
# For a model of a usual size, and to work with.
LEAST_DISK = 5 * 10**9
MARKS = {"ok": "✓", "warning": "!", "problem": "✗"}
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@frozen(kw_only=True)
class Finding:
    """What was looked at and found. With a warning all works, but slowly or not yet."""

    about: str
    found: str
    state: Literal["ok", "warning", "problem"] = "ok"
    advice: str = ""
    facts: dict[str, Any] = attrs.field(factory=dict)


@click.command("doctor", epilog=examples("osaurus doctor", "osaurus doctor --json"))
@json_option
@pass_surroundings
def doctor(surroundings: Surroundings, as_json: bool) -> None:
    """Tell what this machine has, and what is wrong. The exit status is 1 if something is.

    A warning (!) is not a problem: all works, but slowly or not yet.
    """
    findings: list[Finding] = []
    for finding in Examination(surroundings).findings():
        findings.append(finding)
        if not as_json:
            mark = click.style(MARKS[finding.state], fg=COLOURS[finding.state])
            click.echo(f"{mark} {finding.about}: {printable(finding.found)}")
            if finding.advice:
                click.echo(f"    {printable(finding.advice)}")
    if as_json:
        print_json([attrs.asdict(finding) for finding in findings])
    sys.exit(any(finding.state == "problem" for finding in findings))


@define
class Examination:
    """Looks at everything in turn. `try_backend` finds out what MLX has here, or raises."""

    _surroundings: Surroundings
    _try_backend: Callable[[Path], Backend] = attrs.field(factory=lambda: try_backend)

    def findings(self) -> Iterator[Finding]:
        """Yield what is found, as it is."""
        yield system()
        yield packages(importlib.metadata.requires("osaurus") or [], importlib.metadata.version)
        try:
            settings = self._surroundings.settings()
        except click.ClickException as error:
            yield Finding(about="settings", found=error.message, state="problem", advice="Nothing else was looked at.")
            return
        folder = self._surroundings.models_folder(None)
        backend = self._backend(settings.cache_dir)
        yield backend
        yield memory(settings, backend.facts.get("memory_bytes"))
        yield models(folder, self._surroundings.store(folder))
        yield writable_folder("cache", settings.cache_dir)
        yield self._server(settings)

    def _backend(self, cache_dir: Path) -> Finding:
        try:
            backend = self._try_backend(cache_dir)
        except Exception as error:  # noqa: BLE001 - whatever MLX and its libraries do
            extra = "[cpu]" if platform.system() == "Linux" else ""
            return Finding(
                about="MLX",
                found=f"it does not work here: {type(error).__name__}: {error}",
                state="problem",
                advice=f"Install it for this machine: pip install 'osaurus{extra}'"
                + (", or 'osaurus[cuda]' with an NVIDIA GPU" if extra else ""),
            )
        facts = {"version": importlib.metadata.version("mlx"), **attrs.asdict(backend)}
        said = f"{facts['version']} on {backend.device}"
        if backend.device == "cpu" and backend.blas is None:
            return Finding(
                about="MLX",
                found=f"{said}, with its own BLAS",
                state="warning",
                advice="Answers will be many times slower than they could be. Install a C compiler (Debian: g++), "
                "or the system's OpenBLAS (Debian: libopenblas0).",
                facts=facts,
            )
        if backend.device == "cpu" and shutil.which("c++") is None and shutil.which("g++") is None:
            return Finding(
                about="MLX",
                found=f"{said}, {backend.blas}; no C++ compiler",
                state="warning",
                advice="Answers will be slower than they could be: MLX fuses operations with one (Debian: g++).",
                facts=facts,
            )
        if backend.device == "cpu" and backend.kernels is None:
            return Finding(
                about="MLX",
                found=f"{said}, {backend.blas}; no kernels of our own",
                state="warning",
                advice="Quantised models will be several times slower than they could be, and take more memory: "
                "`make venv` builds osaurus-cpu for this release of MLX, where there are a C++ compiler and Python's "
                "headers (Debian: g++, python3-dev).",
                facts=facts,
            )
        own = [backend.blas or "", f"kernels for {backend.kernels}" if backend.kernels else ""]
        return Finding(about="MLX", found=", ".join([said, *filter(None, own)]), facts=facts)

    def _server(self, settings: Settings) -> Finding:
        """Look at the port: free, ours, or somebody else's."""
        try:
            place = self._surroundings.server(None)
        except click.ClickException as error:
            return Finding(about="server", found=error.message, state="warning")

        async def ask(reactor: Any) -> dict[str, Any]:
            return await self._surroundings.client(reactor, place).health(HEALTH_SECONDS)

        try:
            health = self._surroundings.run(ask)
        except NoServer as error:
            if self._surroundings.named_host(None):
                return Finding(about="server", found=error.message, state="problem", facts={"url": place.url})
            return _unanswered(place, settings.port, error.message)
        if health["status"] != "ok":
            return Finding(
                about="server",
                found=f"at {place.url}, but it cannot answer: {health.get('reason')}",
                state="problem",
                advice="Its log says more. `osaurus stop` and `osaurus serve` begin anew.",
                facts={"url": place.url, **health},
            )
        version = health["version"]
        if version not in (None, __version__):
            return Finding(
                about="server",
                found=f"runs at {place.url}, of version {version}; this is {__version__}",
                state="warning",
                advice="`osaurus stop` and `osaurus serve` bring the new one.",
                facts={"url": place.url, **health},
            )
        return Finding(about="server", found=f"runs at {place.url}", facts={"url": place.url, **health})


def try_backend(cache_dir: Path) -> Backend:
    """Return what MLX has on this machine. Raises whatever it does, BrokenProcessPool if that ends its process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as child:
        return child.submit(prepare, cache_dir).result(BACKEND_SECONDS)


def system() -> Finding:
    """Look at the machine."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    facts = {
        "osaurus": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "compiler": compiler,
    }
    return Finding(
        about="machine",
        found=f"Osaurus {__version__}, Python {facts['python']}, {facts['system']}, {facts['cores']} cores",
        facts=facts,
    )


def packages(required: list[str], version: Callable[[str], str]) -> Finding:
    """Look at the packages that are required: which are here, and whether they are as required."""
    facts: dict[str, str | None] = {}
    wrong: list[str] = []
    for text in required:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            facts[requirement.name] = version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            facts[requirement.name] = None
        found = facts[requirement.name]
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found or 'is missing'} (needed: {requirement.specifier or 'any'})")
    if wrong:
        advice = "pip install --upgrade osaurus brings them."
        return Finding(about="packages", found="; ".join(wrong), state="problem", advice=advice, facts=facts)
    return Finding(about="packages", found=f"all {len(facts)} as needed", facts=facts)


def memory(settings: Settings, there: int | None) -> Finding:
    """Look at the memory that is `there`, in bytes; None is all that the machine has."""
    total = there or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = {"total": total, "limit": settings.memory_limit}
    if settings.memory_limit is not None and settings.memory_limit > total:
        return Finding(
            about="memory",
            found=f"{decimal(total)}, but models may have {decimal(settings.memory_limit)}",
            state="problem",
            advice="Set OSU_MEMORY_LIMIT below what there is, or not at all.",
            facts=facts,
        )
    return Finding(about="memory", found=decimal(total), facts=facts)


def models(folder: Path, store: ModelStore) -> Finding:
    """Look at the models folder and the store of what is in it."""
    place = writable_folder("models", folder)
    if place.state == "problem":
        return place
    with capturedLogs() as events:
        found = store.models()
    # The store warns of its own folders; the Hugging Face cache holds models of all kinds.
    warnings = [event for event in events if event["log_level"] is LogLevel.warn and "folder" in event]
    unusable = [f"{event['folder']}: {event['error']}" for event in warnings]
    facts = {**place.facts, "models": [model.id for model in found], "unusable": unusable}
    said = f"{len(found)}, new ones to {folder}, {decimal(place.facts['free'])} free"
    if unusable:
        return Finding(
            about="models",
            found=f"{said}; no usable models: {'; '.join(unusable)}",
            state="warning",
            advice="Move them away, or get them again.",
            facts=facts,
        )
    if not found:
        advice = f"`osaurus pull {next(iter(SHORT_NAMES))}` gets a small one."
        return Finding(about="models", found=f"none; new ones to {folder}", state="warning", advice=advice, facts=facts)
    if place.facts["free"] < LEAST_DISK:
        return Finding(
            about="models", found=said, state="warning", advice="There is little room for another.", facts=facts
        )
    return Finding(about="models", found=said, facts=facts)


def writable_folder(about: str, folder: Path) -> Finding:
    """Look at a folder, or at the place where it will be made."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            about=about,
            found=f"{folder} cannot be written to" if existing == folder else f"{folder} cannot be made in {existing}",
            state="problem",
            advice=f"Give yourself access, or name another folder with OSU_{about.upper()}_DIR.",
            facts={"folder": str(folder)},
        )
    free = shutil.disk_usage(existing).free
    return Finding(about=about, found=f"{folder}, {decimal(free)} free", facts={"folder": str(folder), "free": free})


def _unanswered(place: Place, port: int, reason: str) -> Finding:
    if place.instance is not None:
        return Finding(
            about="server",
            found=reason,
            state="problem",
            advice=f"Process {place.instance.pid} says that it serves there; its log says more.",
            facts={"url": place.url},
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Finding(
                about="server",
                found=f"does not run, and port {port} cannot be had: {error.strerror}",
                state="problem",
                advice="Another program uses it. End that, or take another port with OSU_PORT.",
                facts={"port": port},
            )
    return Finding(
        about="server",
        found=f"does not run; port {port} is free",
        state="warning",
        advice="`osaurus serve` runs it.",
        facts={"port": port},
    )
