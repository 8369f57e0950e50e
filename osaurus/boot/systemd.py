"""systemd: the server as a service of a user, or of the machine; started at once, or by the first connection.

With a socket it is systemd that listens, and the server gets the socket when the first client comes (`LISTEN_FDS`). It
ends when nobody asks for long (the setting `exit_when_idle`), and systemd goes on listening: no connection is refused
in between, and a server that nobody uses costs nothing.

A user's systemd has no privileges: of what systemd can take from a service only that is asked for which holds there
too. A service of the machine is denied more.
"""

import re
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from .job import Job
from .manager import ManagerFailed, Run, Status, demand, write

SERVICE = "osaurus.service"
SOCKET = "osaurus.socket"
UNITS = (SOCKET, SERVICE)
# How a unit is, in systemd's words, of which there is nothing to be ended.
AT_REST = ("inactive", "failed")

# Characters that a word in double quotes cannot hold as they are, or that the path of a program cannot have.
SPECIAL = re.compile(r"[\\\"'\x00-\x1f\x7f]")

HARDENING = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
UMask=0077
"""
SYSTEM_HARDENING = """\
ProtectSystem=full
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
"""


@frozen(kw_only=True)
class Systemd:
    """systemd, for a user with this home, or for the machine. `root` is where its folder is."""

    system: bool
    home: Path
    run: Run
    root: Path = Path("/")
    name: str = "systemd"

    def files(self, job: Job) -> dict[Path, bytes]:
        """Return the units."""
        units = {SERVICE: self._service(job)}
        if job.socket:
            units[SOCKET] = _socket(job.socket)
        return {self._folder / name: text.encode() for name, text in units.items()}

    def install(self, job: Job) -> bool:
        """Write the units and have systemd start what begins: the socket if there is one, else the service."""
        # If systemd is not to be reached, nothing is to be left behind.
        self._show(SERVICE)
        files = self.files(job)
        there = self._there()
        superfluous = [name for name in there if self._folder / name not in files]
        if superfluous or any(path.exists() and path.read_bytes() != content for path, content in files.items()):
            # What runs is what was installed before, and what is enabled may be the other unit.
            self._demand("disable", "--now", *there)
        for name in superfluous:
            (self._folder / name).unlink()
        changed = write(files) or bool(superfluous)
        self._demand("daemon-reload")
        self._pardon()
        self._demand("enable", "--now", SOCKET if job.socket else SERVICE)
        return changed

    def uninstall(self) -> bool:
        """Have systemd end the service and forget it, and remove the units."""
        there, lost = self._there(), self._lost()
        if not there and not lost:
            return False
        if lost:
            self._demand("stop", *lost)
        if there:
            self._demand("disable", "--now", *there)
        for name in there:
            (self._folder / name).unlink()
        self._demand("daemon-reload")
        return True

    def start(self) -> None:
        """Start what begins."""
        self._pardon()
        self._demand("start", self._there()[0])

    def stop(self) -> None:
        """Begin to end the service; the socket as well, which would start it again."""
        self._demand("stop", "--no-block", *self._there())

    def status(self) -> Status:
        """Tell what systemd says of the units."""
        there = self._there()
        if not there:
            return Status(installed=False)
        service = self._show(SERVICE)
        waiting = SOCKET in there and self._show(SOCKET).get("ActiveState") == "active"
        pid = int(service.get("MainPID") or 0)
        state = service.get("ActiveState", "unknown")
        return Status(installed=True, state=state, pid=pid or None, waiting=waiting)

    @property
    def _folder(self) -> Path:
        below = Path("etc", "systemd", "system")
        return self.root / below if self.system else self.home / ".config" / "systemd" / "user"

    def _there(self) -> list[str]:
        """Return the units that are installed, the one that begins first."""
        return [name for name in UNITS if (self._folder / name).exists()]

    def _lost(self) -> list[str]:
        """Return the units that systemd runs, but whose files somebody has removed."""
        # One that does not answer runs none.
        with suppress(ManagerFailed):
            missing = [name for name in UNITS if name not in self._there()]
            return [name for name in missing if self._show(name).get("ActiveState", "inactive") not in AT_REST]
        return []

    def _pardon(self) -> None:
        """Have systemd forget that the service failed too often to be started again, if it did."""
        self.run(self._command("reset-failed", *self._there()))

    def _command(self, *arguments: str) -> tuple[str, ...]:
        return ("systemctl", *(() if self.system else ("--user",)), *arguments)

    def _demand(self, *arguments: str) -> str:
        return demand(self.run, *self._command(*arguments))

    def _show(self, unit: str) -> dict[str, str]:
        said = self._demand("show", "--property=ActiveState,MainPID", unit)
        return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)

    def _service(self, job: Job) -> str:
        environment = "".join(f"Environment={quoted(f'{name}={text}')}\n" for name, text in job.environment.items())
        # A program whose path has quotes is none to systemd.
        program = ("/usr/bin/env", *job.program) if SPECIAL.search(job.program[0]) else job.program
        # The first word is a path as it is; in the others systemd puts variables in the place of $NAME.
        start = " ".join([quoted(program[0]), *(quoted(word).replace("$", "$$") for word in program[1:])])
        wanted = "multi-user.target" if self.system else "default.target"
        return (
            "[Unit]\n"
            "Description=Osaurus, a server of language models\n"
            + ("After=network.target\n" if self.system else "")
            # With RestartSec the usual ten seconds would never see enough starts to give up.
            + "StartLimitIntervalSec=120\n"
            "StartLimitBurst=5\n"
            "\n[Service]\n"
            "Type=notify\n"
            f"ExecStart={start}\n"
            # By the shell, which is everywhere: /bin/kill is a package of its own.
            'ExecReload=/bin/sh -c "kill -HUP ${MAINPID}"\n'
            "Restart=on-failure\n"
            "RestartSec=5\n"
            f"TimeoutStopSec={job.stop_seconds}\n"
            # The server ends its own processes, in order; what is left then is killed.
            "KillMode=mixed\n"
            + (f"User={job.user}\nWorkingDirectory=~\n" if self.system else "")
            + environment
            + HARDENING
            + (SYSTEM_HARDENING if self.system else "")
            # With a socket it is that which is wanted.
            + ("" if job.socket else f"\n[Install]\nWantedBy={wanted}\n")
        )


def quoted(text: str) -> str:
    """Return a word as systemd's units hold it."""
    escaped = SPECIAL.sub(lambda match: _escape(match[0]), text)
    # Where one begins with %, systemd would put something in its place.
    return f'"{escaped.replace("%", "%%")}"'


def _escape(character: str) -> str:
    return f"\\{character}" if character in "\\\"'" else f"\\x{ord(character):02x}"


def _socket(address: str) -> str:
    return (
        "[Unit]\n"
        "Description=The port of Osaurus, which starts it\n"
        "\n[Socket]\n"
        f"ListenStream={address}\n"
        "\n[Install]\n"
        "WantedBy=sockets.target\n"
    )
