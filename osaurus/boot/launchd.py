"""launchd: the server as an agent of a user, started at login, or as a daemon of the machine, started at boot.

Two of its ways decide the rest. It starts anew what has ended (`KeepAlive`), so that to stop the server is to have it
forget the job (`bootout`), and to start it to tell it again (`bootstrap`). And it slows down what it takes for work in
the background, disk and processor, unless the job is `Interactive`: a model answers somebody who waits.
"""

import plistlib
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from attrs import frozen

from .job import Job
from .manager import ManagerFailed, Run, Status, demand, write

LABEL = "local.osaurus"
# What `launchctl print` exits with where there is no such job.
NOT_THERE = 113
# What `launchctl bootout` exits with where the job takes its time to end.
UNDER_WAY = 36
LOOK_EVERY = 0.5
# Files and connections that a process may have open, of which launchd gives 256: fewer than `max_connections`.
MOST_FILES = 4096
PID = re.compile(r"^\s*pid = (\d+)$", re.MULTILINE)
STATE = re.compile(r"^\s*state = (.+)$", re.MULTILINE)


@frozen(kw_only=True)
class Launchd:
    """launchd, for the user `uid` with this home, or for the machine. `root` is where its folder is."""

    system: bool
    uid: int
    home: Path
    run: Run
    root: Path = Path("/")
    sleep: Callable[[float], object] = time.sleep
    name: str = "launchd"

    @property
    def path(self) -> Path:
        """The one file."""
        folder = self.root / "Library" / "LaunchDaemons" if self.system else self.home / "Library" / "LaunchAgents"
        return folder / f"{LABEL}.plist"

    def files(self, job: Job) -> dict[Path, bytes]:
        """Return the property list."""
        log = str(_logs(job) / "osaurus.log")
        content: dict[str, Any] = {
            "Label": LABEL,
            "ProgramArguments": list(job.program),
            "EnvironmentVariables": dict(job.environment),
            "WorkingDirectory": str(job.home),
            "RunAtLoad": True,
            "KeepAlive": True,
            "ProcessType": "Interactive",
            "ExitTimeOut": job.stop_seconds,
            "SoftResourceLimits": {"NumberOfFiles": MOST_FILES},
            "Umask": 0o077,
            "StandardOutPath": log,
            "StandardErrorPath": log,
        }
        if self.system:
            content["UserName"] = job.user
            # launchd gives daemons none.
            content["EnvironmentVariables"]["HOME"] = str(job.home)
        return {self.path: plistlib.dumps(content)}

    def install(self, job: Job) -> bool:
        """Write the property list and have launchd know it."""
        # If launchd is not to be reached, nothing is to be left behind.
        loaded = self._print() is not None
        logs = _logs(job)
        if not logs.is_dir():
            logs.mkdir(parents=True)
            if self.system:
                shutil.chown(logs, job.user)
        # What runs has the time that it was given when it was installed.
        patience = self._stop_seconds() or job.stop_seconds
        changed = write(self.files(job))
        if loaded and changed:
            self._forget()
            self._wait(patience)
        if changed or not loaded:
            self._know()
        return changed

    def uninstall(self) -> bool:
        """Have launchd forget the job, and remove the property list."""
        there = self.path.exists()
        try:
            # Also where somebody has removed the file.
            loaded = self._print() is not None
        except ManagerFailed:
            if there:
                raise
            # One that does not answer knows none.
            return False
        if loaded:
            self._forget()
        if there:
            self.path.unlink()
        return there or loaded

    def start(self) -> None:
        """Have launchd know the job, or start it if it does not run."""
        if self._print() is None:
            self._know()
        else:
            demand(self.run, "launchctl", "kickstart", self._target)

    def stop(self) -> None:
        """Have launchd end and forget the job, until the next login or boot."""
        if self._print() is not None:
            self._forget()

    def status(self) -> Status:
        """Tell what launchd says of the job."""
        if not self.path.exists():
            return Status(installed=False)
        said = self._print()
        if said is None:
            return Status(installed=True, state="not loaded")
        state, pid = STATE.search(said), PID.search(said)
        return Status(
            installed=True, state=state[1] if state else "unknown", pid=int(pid[1]) if pid else None, waiting=not pid
        )

    @property
    def _domain(self) -> str:
        return "system" if self.system else f"gui/{self.uid}"

    @property
    def _target(self) -> str:
        return f"{self._domain}/{LABEL}"

    def _print(self) -> str | None:
        """Return what launchd knows of the job; None if it does not know it."""
        done = self.run(("launchctl", "print", self._target))
        if done.returncode == 0:
            return done.stdout
        if done.returncode == NOT_THERE:
            return None
        raise ManagerFailed(f"launchctl print {self._target}: {(done.stderr or done.stdout).strip()}")

    def _know(self) -> None:
        # Whoever has switched the job off in the system's settings wants it again now.
        demand(self.run, "launchctl", "enable", self._target)
        demand(self.run, "launchctl", "bootstrap", self._domain, str(self.path))

    def _forget(self) -> None:
        done = self.run(("launchctl", "bootout", self._target))
        if done.returncode not in (0, UNDER_WAY):
            raise ManagerFailed(f"launchctl bootout {self._target}: {(done.stderr or done.stdout).strip()}")

    def _stop_seconds(self) -> int | None:
        """Return how long the job that is installed may take to end; None if that is not to be known."""
        try:
            seconds = plistlib.loads(self.path.read_bytes())["ExitTimeOut"]
        except (OSError, ValueError, LookupError, TypeError, ExpatError):
            return None
        return seconds if type(seconds) is int else None

    def _wait(self, seconds: float) -> None:
        """Wait until the job has ended; one that has not cannot be made known anew."""
        for _ in range(round(seconds / LOOK_EVERY)):
            if self._print() is None:
                return
            self.sleep(LOOK_EVERY)
        raise ManagerFailed(f"launchd has not ended {self._target} after {seconds:g} seconds")


def _logs(job: Job) -> Path:
    return job.home / "Library" / "Logs" / "Osaurus"
