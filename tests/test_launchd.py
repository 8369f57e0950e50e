"""launchd: the property list, and what launchctl is asked; that is only on Macs, and its answers are written down."""

import plistlib
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import define, evolve, field

from osaurus.boot.job import Job
from osaurus.boot.launchd import LABEL, Launchd
from osaurus.boot.manager import ManagerFailed, Status

# launchd.plist(5): the keys that are used here, with their types.
KEYS: dict[str, type] = {
    "Label": str,
    "ProgramArguments": list,
    "EnvironmentVariables": dict,
    "WorkingDirectory": str,
    "RunAtLoad": bool,
    "KeepAlive": bool,
    "ProcessType": str,
    "ExitTimeOut": int,
    "SoftResourceLimits": dict,
    "Umask": int,
    "StandardOutPath": str,
    "StandardErrorPath": str,
    "UserName": str,
}
PRINTED = """\
gui/501/local.osaurus = {
	active count = 1
	path = /Users/me/Library/LaunchAgents/local.osaurus.plist
	type = LaunchAgent
	state = running

	program = /usr/local/bin/twistd
	domain = gui/501 [100005]
	minimum runtime = 10
	exit timeout = 60
	runs = 1
	pid = 4711
	immediate reason = speculative
	spawn type = interactive (4)
	jetsam priority = 40
	properties = keepalive | runatload | inferred program
}
"""


@define
class Launchctl:
    """What launchctl is asked, of a launchd as it is: a job that is forgotten may take a while to end."""

    loaded: bool = False
    lingering: int = 0
    refused: str = ""
    asked: list[tuple[str, ...]] = field(factory=list)

    def __call__(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append(tuple(command))
        program, verb, *_ = command
        assert program == "launchctl"
        if verb == self.refused:
            return subprocess.CompletedProcess(command, 5, "", "Input/output error\n")
        if verb == "print":
            if not self.loaded and self.lingering:
                self.lingering -= 1
            elif not self.loaded:
                return subprocess.CompletedProcess(command, 113, "", "Could not find service")
            return subprocess.CompletedProcess(command, 0, PRINTED, "")
        if verb == "bootstrap":
            assert not self.loaded
            assert not self.lingering
            self.loaded = True
        if verb == "bootout":
            self.loaded = False
            return subprocess.CompletedProcess(command, 36 if self.lingering else 0, "", "Operation now in progress")
        return subprocess.CompletedProcess(command, 0, "", "")

    @property
    def verbs(self) -> list[str]:
        """What was asked since the last time, without questions."""
        asked, self.asked = self.asked, []
        return [command[1] for command in asked if command[1] != "print"]


@pytest.fixture
def launchctl() -> Launchctl:
    return Launchctl()


@pytest.fixture
def agent(tmp_path: Path, launchctl: Launchctl) -> Launchd:
    return Launchd(system=False, uid=501, home=tmp_path, run=launchctl, root=tmp_path / "root", sleep=lambda _: None)


@pytest.fixture
def chosen(tmp_path: Path) -> Job:
    return Job(
        program=("/Applications/my tools/twistd", "-n", "--pidfile=", "osaurus"),
        environment={"PATH": "/usr/bin", "OSU_MODELS_DIR": '/Volumes/<models> & "more" 100%'},
        user="nobody",
        home=tmp_path,
        stop_seconds=60,
    )


def test_the_property_list_says_what_launchd_is_to_do(agent: Launchd, chosen: Job, tmp_path: Path) -> None:
    [(path, content)] = agent.files(chosen).items()
    assert path == tmp_path / "Library" / "LaunchAgents" / "local.osaurus.plist"
    log = str(tmp_path / "Library" / "Logs" / "Osaurus" / "osaurus.log")
    assert plistlib.loads(content) == {
        "Label": LABEL,
        "ProgramArguments": ["/Applications/my tools/twistd", "-n", "--pidfile=", "osaurus"],
        "EnvironmentVariables": {"PATH": "/usr/bin", "OSU_MODELS_DIR": '/Volumes/<models> & "more" 100%'},
        "WorkingDirectory": str(tmp_path),
        "RunAtLoad": True,
        "KeepAlive": True,
        "ProcessType": "Interactive",
        "ExitTimeOut": 60,
        "SoftResourceLimits": {"NumberOfFiles": 4096},
        "Umask": 0o077,
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }


def test_the_machines_runs_as_its_user_whose_home_it_knows(agent: Launchd, chosen: Job, tmp_path: Path) -> None:
    [(path, content)] = evolve(agent, system=True).files(chosen).items()
    assert path == tmp_path / "root" / "Library" / "LaunchDaemons" / "local.osaurus.plist"
    told = plistlib.loads(content)
    assert (told["UserName"], told["EnvironmentVariables"]["HOME"]) == ("nobody", str(tmp_path))


@pytest.mark.parametrize("system", [False, True])
def test_launchd_knows_each_key_by_this_type(agent: Launchd, chosen: Job, system: bool) -> None:
    [content] = evolve(agent, system=system).files(chosen).values()
    told = plistlib.loads(content)
    assert {key: type(value) for key, value in told.items()} == {key: KEYS[key] for key in told}


def test_it_is_written_and_made_known(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    assert agent.install(chosen)
    assert launchctl.asked == [
        ("launchctl", "print", "gui/501/local.osaurus"),
        ("launchctl", "enable", "gui/501/local.osaurus"),
        ("launchctl", "bootstrap", "gui/501", str(agent.path)),
    ]
    assert agent.path.read_bytes() == agent.files(chosen)[agent.path]
    assert stat.S_IMODE(agent.path.stat().st_mode) == 0o644
    assert (agent.home / "Library" / "Logs" / "Osaurus").is_dir()


def test_the_machines_is_in_another_domain(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    (agent.home / "Library" / "Logs" / "Osaurus").mkdir(parents=True)
    machines = evolve(agent, system=True)
    machines.install(chosen)
    assert launchctl.asked[-1] == ("launchctl", "bootstrap", "system", str(machines.path))


def test_to_install_it_twice_changes_nothing(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    agent.install(chosen)
    before = agent.path.stat().st_mtime_ns
    assert launchctl.verbs == ["enable", "bootstrap"]
    assert not agent.install(chosen)
    assert launchctl.verbs == []
    assert agent.path.stat().st_mtime_ns == before


def test_a_change_has_it_end_before_it_is_made_known_anew(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    agent.install(chosen)
    launchctl.lingering = 3
    assert agent.install(evolve(chosen, environment={}))
    assert launchctl.verbs == ["enable", "bootstrap", "bootout", "enable", "bootstrap"]


def test_it_has_the_time_to_end_that_it_was_given(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    agent.install(evolve(chosen, stop_seconds=600))
    launchctl.lingering = 1000
    assert agent.install(evolve(chosen, stop_seconds=30))


@pytest.mark.parametrize("content", [b"", b"<plist>", b"<plist><array/></plist>", b"bplist00"])
def test_where_its_file_is_none_it_has_that_of_the_new(
    agent: Launchd, launchctl: Launchctl, chosen: Job, content: bytes
) -> None:
    agent.install(chosen)
    agent.path.write_bytes(content)
    launchctl.lingering = 3
    assert agent.install(chosen)


def test_one_that_does_not_end_is_not_waited_for_for_ever(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    agent.install(chosen)
    launchctl.lingering = 1000
    with pytest.raises(ManagerFailed, match="has not ended"):
        agent.install(evolve(chosen, environment={}))


def test_one_that_was_stopped_is_started_by_installing_it(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    agent.install(chosen)
    agent.stop()
    assert not agent.install(chosen)
    assert launchctl.verbs == ["enable", "bootstrap", "bootout", "enable", "bootstrap"]


def test_it_is_forgotten_and_removed(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    agent.install(chosen)
    assert agent.uninstall()
    assert launchctl.asked[-1] == ("launchctl", "bootout", "gui/501/local.osaurus")
    assert not agent.path.exists()
    assert not agent.uninstall()


def test_it_is_forgotten_though_its_file_is_gone(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    agent.install(chosen)
    agent.path.unlink()
    assert agent.uninstall()
    assert launchctl.verbs == ["enable", "bootstrap", "bootout"]
    assert not agent.uninstall()


def test_where_launchd_is_not_there_nothing_is_installed(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    launchctl.refused = "print"
    assert not agent.uninstall()
    agent.path.parent.mkdir(parents=True)
    agent.path.write_bytes(b"")
    with pytest.raises(ManagerFailed):
        agent.uninstall()


def test_to_start_it_is_to_make_it_known_or_to_kick_it(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    agent.install(chosen)
    assert launchctl.verbs == ["enable", "bootstrap"]
    agent.start()
    assert launchctl.verbs == ["kickstart"]
    agent.stop()
    assert launchctl.verbs == ["bootout"]
    agent.stop()
    assert launchctl.verbs == []
    agent.start()
    assert launchctl.verbs == ["enable", "bootstrap"]


def test_what_has_become_of_it_is_told(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    assert agent.status() == Status(installed=False)
    agent.install(chosen)
    assert agent.status() == Status(installed=True, state="running", pid=4711)
    agent.stop()
    assert agent.status() == Status(installed=True, state="not loaded")


def test_where_launchd_is_not_reached_nothing_is_left_behind(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    launchctl.refused = "print"
    with pytest.raises(ManagerFailed, match=r"launchctl print gui/501/local\.osaurus: Input/output error"):
        agent.install(chosen)
    assert list(agent.home.rglob("*.plist")) == []


def test_what_launchctl_refuses_is_told_in_its_words(agent: Launchd, launchctl: Launchctl, chosen: Job) -> None:
    launchctl.refused = "bootstrap"
    with pytest.raises(ManagerFailed, match=r"launchctl bootstrap gui/501 .*: Input/output error"):
        agent.install(chosen)
