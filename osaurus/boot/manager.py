"""What starts servers: what launchd and systemd have in common here."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from attrs import frozen

from .job import Job

# Runs a program and returns what it said, whatever that was.
Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


class ManagerFailed(Exception):
    """launchctl or systemctl did not do as it was told; the message is what it said."""


@frozen(kw_only=True)
class Status:
    """What has become of the server. `state` is in the manager's own words; `waiting` says that it will be started."""

    installed: bool
    state: str = "not installed"
    pid: int | None = None
    waiting: bool = False


class Manager(Protocol):
    """Starts and ends the server of a user, or (`system`) of the machine. What it is told to do twice it does once."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def system(self) -> bool:
        """Whether it is the machine's."""

    def files(self, job: Job) -> dict[Path, bytes]:
        """Return what is written to have a job started."""

    def install(self, job: Job) -> bool:
        """Have a job started from now on, and start it; False if it was so already. Raises ManagerFailed, OSError."""

    def uninstall(self) -> bool:
        """End the server and have it started no more; False if it was not. Raises ManagerFailed, OSError."""

    def start(self) -> None:
        """Start what is installed. Raises ManagerFailed."""

    def stop(self) -> None:
        """Begin to end the server; it is installed still. Raises ManagerFailed."""

    def status(self) -> Status:
        """Tell what has become of the server."""


def run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run launchctl or systemctl. Raises ManagerFailed if it is not there."""
    try:
        # Without a limit of its own: to stop a server may take as long as that needs, which the manager bounds.
        return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    except OSError as error:
        raise ManagerFailed(f"{command[0]} cannot be run: {error}") from error


def demand(run: Run, *command: str) -> str:
    """Return what a program printed. Raises ManagerFailed if it failed."""
    done = run(command)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or f"status {done.returncode}"
        raise ManagerFailed(f"{' '.join(command)}: {said}")
    return done.stdout


def write(files: dict[Path, bytes]) -> bool:
    """Write files that everybody may read; False if all are there already. Raises OSError."""
    stale = {path: content for path, content in files.items() if not path.exists() or path.read_bytes() != content}
    for path, content in stale.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o644)
    return bool(stale)
