"""systemd: the units, as systemd itself reads them where it is there, and what systemctl is asked."""

import re
import shlex
import subprocess
from collections.abc import Sequence
from configparser import ConfigParser
from pathlib import Path

import pytest
from attrs import define, evolve, field

from osaurus.boot.job import Job
from osaurus.boot.manager import ManagerFailed, Status
from osaurus.boot.systemd import SERVICE, SOCKET, Systemd, quoted

from .programs import program

AWKWARD = ["plain", "two words", "100%", "%h %%", "$HOME ${x}", 'a "quote"', "it's", "back\\slash", "new\nline", ""]


@define
class Systemctl:
    """What systemctl is asked; what it shows of units is written down."""

    states: dict[str, str] = field(factory=dict)
    pid: int = 0
    refused: str = ""
    asked: list[tuple[str, ...]] = field(factory=list)

    def __call__(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append(tuple(command))
        assert command[0] == "systemctl"
        if self.refused in command:
            return subprocess.CompletedProcess(command, 1, "", "Failed to connect to bus: No medium found\n")
        if "show" not in command:
            return subprocess.CompletedProcess(command, 0, "", "")
        unit = command[-1]
        shown = f"ActiveState={self.states.get(unit, 'inactive')}\n"
        return subprocess.CompletedProcess(command, 0, shown + (f"MainPID={self.pid}\n" if unit == SERVICE else ""), "")

    @property
    def told(self) -> list[tuple[str, ...]]:
        """What was asked since the last time, without questions and what comes before the verb."""
        asked, self.asked = self.asked, []
        return [command[2:] for command in asked if "show" not in command]


@pytest.fixture
def systemctl() -> Systemctl:
    return Systemctl(refused="never")


@pytest.fixture
def users(tmp_path: Path, systemctl: Systemctl) -> Systemd:
    return Systemd(system=False, home=tmp_path, run=systemctl, root=tmp_path / "root")


@pytest.fixture
def chosen(tmp_path: Path) -> Job:
    return Job(
        program=("/opt/my tools/twistd", "-n", "--pidfile=", "osaurus"),
        environment={"PATH": "/usr/bin", "OSU_PORT": "8080"},
        user="somebody",
        home=tmp_path,
        stop_seconds=60,
    )


@pytest.fixture
def behind(chosen: Job) -> Job:
    """The same behind a socket."""
    return evolve(chosen, socket="127.0.0.1:8080", program=(*chosen.program, "--listen", "systemd:domain=INET:index=0"))


def sections(text: str) -> dict[str, dict[str, list[str]]]:
    """Return a unit's settings, each with all its values."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line:
            key, value = line.split("=", 1)
            section.setdefault(key, []).append(value)
    return found


def unit(systemd: Systemd, job: Job, name: str = SERVICE) -> dict[str, dict[str, list[str]]]:
    [text] = [content.decode() for path, content in systemd.files(job).items() if path.name == name]
    return sections(text)


def words(text: str) -> list[str]:
    """Return the words of a value as systemd.syntax(7) has them, for what is written here."""
    text = re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), text)
    return [word.replace("\\'", "'").replace("%%", "%") for word in shlex.split(text)]


# The units.


def test_the_service_says_what_systemd_is_to_do(users: Systemd, chosen: Job, tmp_path: Path) -> None:
    assert list(users.files(chosen)) == [tmp_path / ".config" / "systemd" / "user" / SERVICE]
    found = unit(users, chosen)
    service = found["Service"]
    assert words(service["ExecStart"][0]) == ["/opt/my tools/twistd", "-n", "--pidfile=", "osaurus"]
    assert [words(each) for each in service["Environment"]] == [["PATH=/usr/bin"], ["OSU_PORT=8080"]]
    assert service["Type"] == ["notify"]
    assert service["Restart"] == ["on-failure"]
    assert service["ExecReload"] == ['/bin/sh -c "kill -HUP ${MAINPID}"']
    assert (service["TimeoutStopSec"], service["KillMode"]) == (["60"], ["mixed"])
    assert service["NoNewPrivileges"] == ["yes"]
    assert "User" not in service
    # A user's is in its home anyway.
    assert "WorkingDirectory" not in service
    assert found["Install"] == {"WantedBy": ["default.target"]}


def test_the_machines_runs_as_its_user_and_is_denied_more(users: Systemd, chosen: Job, tmp_path: Path) -> None:
    machines = evolve(users, system=True)
    assert list(machines.files(chosen)) == [tmp_path / "root" / "etc" / "systemd" / "system" / SERVICE]
    found = unit(machines, chosen)
    assert (found["Service"]["User"], found["Service"]["WorkingDirectory"]) == (["somebody"], ["~"])
    assert found["Service"]["ProtectSystem"] == ["full"]
    assert "ProtectSystem" not in unit(users, chosen)["Service"]
    assert found["Install"] == {"WantedBy": ["multi-user.target"]}


def test_what_cannot_start_is_not_started_for_ever(users: Systemd, chosen: Job) -> None:
    found = unit(users, chosen)
    [interval], [burst] = found["Unit"]["StartLimitIntervalSec"], found["Unit"]["StartLimitBurst"]
    [pause] = found["Service"]["RestartSec"]
    # Each start takes a second or two until it fails.
    assert int(interval) > int(burst) * (int(pause) + 10)


def test_with_a_socket_it_is_that_which_is_wanted(users: Systemd, behind: Job) -> None:
    assert unit(users, behind, SOCKET) == {
        "Unit": {"Description": ["The port of Osaurus, which starts it"]},
        "Socket": {"ListenStream": ["127.0.0.1:8080"]},
        "Install": {"WantedBy": ["sockets.target"]},
    }
    service = unit(users, behind)
    assert "Install" not in service
    assert words(service["Service"]["ExecStart"][0])[-2:] == ["--listen", "systemd:domain=INET:index=0"]


@pytest.mark.parametrize("text", AWKWARD)
def test_any_word_is_read_as_it_was(text: str) -> None:
    assert words(quoted(text)) == [text]


def test_a_unit_is_one_line_a_setting_whatever_is_in_it(users: Systemd, chosen: Job) -> None:
    awkward = evolve(chosen, environment={f"OSU_{number}": text for number, text in enumerate(AWKWARD)})
    found = unit(users, awkward)["Service"]["Environment"]
    assert [words(each) for each in found] == [[f"OSU_{number}={text}"] for number, text in enumerate(AWKWARD)]
    parser = ConfigParser(interpolation=None, strict=False, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as configparser documents it
    parser.read_string(next(iter(users.files(awkward).values())).decode())
    assert parser.sections() == ["Unit", "Service", "Install"]


@pytest.mark.system
@pytest.mark.parametrize("name", ["my tools", "100%", "it's", 'a "quote"', "$HOME", "back\\slash"])
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("socket", [None, "127.0.0.1:8080"])
def test_systemd_itself_finds_nothing_wrong(
    users: Systemd, chosen: Job, tmp_path: Path, name: str, system: bool, socket: str | None
) -> None:
    analyze = program("systemd-analyze")
    # It looks whether the program is there.
    twistd = tmp_path / name / "twistd"
    twistd.parent.mkdir()
    twistd.write_text("#!/bin/sh\n")
    twistd.chmod(0o755)
    awkward = evolve(
        chosen,
        program=(str(twistd), "-n", *AWKWARD[:-2]),
        environment={f"OSU_{number}": text for number, text in enumerate(AWKWARD)},
        user="daemon",
        socket=socket,
    )
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    files = []
    for path, content in evolve(users, system=system).files(awkward).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        files.append(str(path))
    done = subprocess.run(
        [analyze, "--man=no", *([] if system else ["--user"]), "verify", *files],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


# systemctl.


def test_it_is_written_and_started(users: Systemd, systemctl: Systemctl, chosen: Job) -> None:
    assert users.install(chosen)
    assert systemctl.asked[1:] == [
        ("systemctl", "--user", "daemon-reload"),
        ("systemctl", "--user", "reset-failed", "osaurus.service"),
        ("systemctl", "--user", "enable", "--now", "osaurus.service"),
    ]
    [(path, content)] = users.files(chosen).items()
    assert path.read_bytes() == content


def test_the_machines_is_asked_of_the_machines(users: Systemd, systemctl: Systemctl, chosen: Job) -> None:
    evolve(users, system=True).install(chosen)
    assert systemctl.asked[-1] == ("systemctl", "enable", "--now", "osaurus.service")


def test_with_a_socket_it_is_the_socket_that_is_started(users: Systemd, systemctl: Systemctl, behind: Job) -> None:
    users.install(behind)
    assert systemctl.told == [
        ("daemon-reload",),
        ("reset-failed", "osaurus.socket", "osaurus.service"),
        ("enable", "--now", "osaurus.socket"),
    ]


def test_to_install_it_twice_changes_nothing(users: Systemd, systemctl: Systemctl, chosen: Job) -> None:
    users.install(chosen)
    [path] = users.files(chosen)
    before = path.stat().st_mtime_ns
    first = systemctl.told
    assert not users.install(chosen)
    # systemd does nothing about what it has done already.
    assert systemctl.told == first
    assert path.stat().st_mtime_ns == before


def test_a_change_ends_what_was_installed_before(users: Systemd, systemctl: Systemctl, chosen: Job) -> None:
    users.install(chosen)
    assert systemctl.told
    assert users.install(evolve(chosen, environment={}))
    assert systemctl.told == [
        ("disable", "--now", "osaurus.service"),
        ("daemon-reload",),
        ("reset-failed", "osaurus.service"),
        ("enable", "--now", "osaurus.service"),
    ]


def test_from_a_socket_and_back(users: Systemd, systemctl: Systemctl, chosen: Job, behind: Job) -> None:
    folder = next(iter(users.files(chosen))).parent
    users.install(chosen)
    assert systemctl.told
    users.install(behind)
    assert systemctl.told == [
        ("disable", "--now", "osaurus.service"),
        ("daemon-reload",),
        ("reset-failed", "osaurus.socket", "osaurus.service"),
        ("enable", "--now", "osaurus.socket"),
    ]
    users.install(chosen)
    assert systemctl.told[0] == ("disable", "--now", "osaurus.socket", "osaurus.service")
    assert [path.name for path in folder.iterdir()] == [SERVICE]


def test_it_is_ended_and_removed(users: Systemd, systemctl: Systemctl, behind: Job) -> None:
    users.install(behind)
    assert systemctl.told
    assert users.uninstall()
    assert systemctl.told == [("disable", "--now", "osaurus.socket", "osaurus.service"), ("daemon-reload",)]
    assert [path for path in users.files(behind) if path.exists()] == []
    assert not users.uninstall()
    assert systemctl.told == []


@pytest.mark.parametrize("lost", [SERVICE, SOCKET])
def test_what_runs_still_is_ended_though_its_file_is_gone(
    users: Systemd, systemctl: Systemctl, behind: Job, lost: str
) -> None:
    users.install(behind)
    systemctl.states = {SERVICE: "active", SOCKET: "active"}
    for path in users.files(behind):
        if path.name == lost:
            path.unlink()
    assert systemctl.told
    [left] = {SERVICE, SOCKET} - {lost}
    assert users.uninstall()
    assert systemctl.told == [("stop", lost), ("disable", "--now", left), ("daemon-reload",)]
    assert users.uninstall()
    assert systemctl.told == [("stop", SOCKET, SERVICE), ("daemon-reload",)]


def test_where_systemd_is_not_there_nothing_is_installed(users: Systemd, systemctl: Systemctl) -> None:
    systemctl.refused = "--user"
    assert not users.uninstall()


def test_what_begins_is_started_and_everything_is_stopped(
    users: Systemd, systemctl: Systemctl, chosen: Job, behind: Job
) -> None:
    for job, begins, all_of_them in (
        (chosen, SERVICE, (SERVICE,)),
        (behind, SOCKET, (SOCKET, SERVICE)),
    ):
        users.install(job)
        assert systemctl.told
        users.start()
        users.stop()
        # A socket that goes on would start the service again; a drain may take long.
        assert systemctl.told == [
            ("reset-failed", *all_of_them),
            ("start", begins),
            ("stop", "--no-block", *all_of_them),
        ]


def test_what_has_become_of_it_is_told(users: Systemd, systemctl: Systemctl, chosen: Job, behind: Job) -> None:
    assert users.status() == Status(installed=False)
    users.install(chosen)
    systemctl.states, systemctl.pid = {SERVICE: "active"}, 4711
    assert users.status() == Status(installed=True, state="active", pid=4711)
    systemctl.states, systemctl.pid = {SERVICE: "failed"}, 0
    assert users.status() == Status(installed=True, state="failed")
    users.install(behind)
    systemctl.states = {SOCKET: "active"}
    assert users.status() == Status(installed=True, state="inactive", waiting=True)


def test_where_systemd_is_not_reached_nothing_is_left_behind(
    users: Systemd, systemctl: Systemctl, chosen: Job, tmp_path: Path
) -> None:
    systemctl.refused = "--user"
    with pytest.raises(ManagerFailed, match=r"systemctl --user show .*: Failed to connect to bus"):
        users.install(chosen)
    assert list(tmp_path.rglob("osaurus.*")) == []
