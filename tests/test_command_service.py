"""`osaurus service`, and `osaurus stop` where something would start the server again."""

import getpass
import plistlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from osaurus.command import stop

from .commandline import CommandLine
from .test_launchd import PRINTED, Launchctl
from .test_systemd import Systemctl

ME = getpass.getuser()


@pytest.fixture
def systemctl(command_line: CommandLine) -> Systemctl:
    command_line.programs = Systemctl(refused="never")
    return command_line.programs  # type: ignore[no-any-return]


@pytest.fixture
def launchctl(command_line: CommandLine) -> Launchctl:
    command_line.platform, command_line.programs = "darwin", Launchctl()
    return command_line.programs  # type: ignore[no-any-return]


def run(command_line: CommandLine, *arguments: str) -> str:
    result = command_line.run("service", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


# Which.


@pytest.mark.parametrize(
    ("platform", "option", "name"),
    [
        ("linux", None, "systemd"),
        ("darwin", None, "launchd"),
        ("linux", "--launchd", "launchd"),
        ("darwin", "--systemd", "systemd"),
    ],
)
def test_it_is_the_platforms_unless_another_is_named(
    command_line: CommandLine, platform: str, option: str | None, name: str
) -> None:
    command_line.platform = platform
    assert name in run(command_line, "uninstall", *([option] if option else []))


# What is written, and when it starts.


def test_systemd_starts_it_at_login(command_line: CommandLine, systemctl: Systemctl) -> None:
    path = command_line.home / ".config" / "systemd" / "user" / "osaurus.service"
    assert run(command_line, "install") == (
        f"Installed {path}\n"
        "The server is started, from now on and at every login; `loginctl enable-linger` makes that every boot.\n"
    )
    assert f"Already installed: {path}\n" in run(command_line, "install")
    assert f'"OSU_MODELS_DIR={command_line.models}"' in path.read_text()


def test_systemd_listens_if_asked_to(command_line: CommandLine, systemctl: Systemctl) -> None:
    command_line.environ["OSU_PORT"] = "8080"
    said = run(command_line, "install", "--socket")
    assert "systemd listens on 127.0.0.1:8080 and starts the server for who comes first, from now on" in said
    assert systemctl.told[-1] == ("enable", "--now", "osaurus.socket")


def test_launchd_starts_it_at_login(command_line: CommandLine, launchctl: Launchctl) -> None:
    path = command_line.home / "Library" / "LaunchAgents" / "local.osaurus.plist"
    assert run(command_line, "install") == (
        f"Installed {path}\nThe server is started, from now on and at every login.\n"
    )
    assert launchctl.verbs == ["enable", "bootstrap"]


def test_the_machines_starts_at_boot_for_whoever_calls_sudo(command_line: CommandLine) -> None:
    command_line.environ["SUDO_USER"] = "nobody"
    unit = run(command_line, "print", "--system")
    assert "\nUser=nobody\n" in unit
    assert "multi-user.target" in unit
    assert "\nUser=daemon\n" in run(command_line, "print", "--system", "--user", "daemon")


def test_nobody_is_root_by_accident(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    result = command_line.run("service", "print", "--system")
    assert (result.exit_code, "say whom the server is to run as" in result.stderr) == (2, True)


def test_what_would_be_written_can_be_looked_at(command_line: CommandLine) -> None:
    told = plistlib.loads(run(command_line, "print", "--launchd").encode())
    twistd = str(Path(sys.executable).with_name("twistd"))
    assert told["ProgramArguments"] == [twistd, "-n", "--pidfile=", "osaurus"]
    units = run(command_line, "print", "--systemd", "--socket")
    folder = command_line.home / ".config" / "systemd" / "user"
    assert units.startswith(f"# {folder / 'osaurus.service'}\n[Unit]\n")
    assert f"# {folder / 'osaurus.socket'}\n[Unit]\n" in units
    assert list(command_line.home.glob(".config/**/*")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("install", "--launchd", "--socket"), "--socket is for systemd"),
        (("install", "--user", "nobody"), "--user is for --system"),
        (("print", "--system", "--user", "no-such-user"), "there is no user 'no-such-user'"),
    ],
)
def test_what_does_not_go_together_is_refused(command_line: CommandLine, arguments: tuple[str, ...], said: str) -> None:
    result = command_line.run("service", *arguments)
    assert (result.exit_code, said in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [("OSU_PORT", "seventy", "OSU_PORT must be a port number"), ("OSU_API_KEYS", "hush", "into a file that only you")],
)
def test_settings_that_will_not_do_are_one_line(command_line: CommandLine, name: str, text: str, said: str) -> None:
    command_line.environ[name] = text
    result = command_line.run("service", "install")
    assert (result.exit_code, said in result.stderr, "hush" in result.output) == (1, True, False)


def test_what_systemctl_refuses_is_one_line(command_line: CommandLine, systemctl: Systemctl) -> None:
    systemctl.refused = "--user"
    result = command_line.run("service", "install")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Failed to connect to bus" in result.stderr


def test_a_folder_of_somebody_else_is_one_line(
    command_line: CommandLine, systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    result = command_line.run("service", "install", "--system", "--user", ME)
    assert (result.exit_code, "with --system this takes sudo" in result.stderr) == (1, True)


# What becomes of it.


def test_to_remove_what_is_not_there_is_no_error(command_line: CommandLine) -> None:
    assert run(command_line, "uninstall") == "Nothing of Osaurus is installed in systemd\n"


def test_it_is_removed(command_line: CommandLine, systemctl: Systemctl) -> None:
    run(command_line, "install")
    assert run(command_line, "uninstall") == "Removed from systemd\n"
    assert command_line.run("service", "status").exit_code == 1


@pytest.mark.parametrize("name", ["start", "stop"])
def test_what_is_not_installed_cannot_be_started_or_stopped(command_line: CommandLine, name: str) -> None:
    result = command_line.run("service", name, "--system")
    assert (result.exit_code, "`osaurus service install --system` does that" in result.stderr) == (1, True)


def test_it_is_started(command_line: CommandLine, systemctl: Systemctl) -> None:
    run(command_line, "install")
    assert systemctl.told
    assert run(command_line, "start") == "Started\n"
    assert systemctl.told == [("reset-failed", "osaurus.service"), ("start", "osaurus.service")]


@pytest.mark.parametrize(
    ("states", "pid", "status", "said"),
    [
        ({"osaurus.service": "active"}, 4711, 0, "Osaurus in systemd: active, process 4711\n"),
        ({"osaurus.service": "failed"}, 0, 1, "Osaurus in systemd: failed\n"),
        ({"osaurus.socket": "active"}, 0, 0, "Osaurus in systemd: inactive, will be started\n"),
    ],
)
def test_what_has_become_of_it_is_told(
    command_line: CommandLine, systemctl: Systemctl, states: dict[str, str], pid: int, status: int, said: str
) -> None:
    run(command_line, "install", "--socket")
    systemctl.states, systemctl.pid = states, pid
    result = command_line.run("service", "status")
    assert (result.exit_code, result.stdout) == (status, said)


def test_programs_are_told_in_json(command_line: CommandLine, systemctl: Systemctl) -> None:
    run(command_line, "install")
    systemctl.states, systemctl.pid = {"osaurus.service": "active"}, 4711
    assert command_line.json("service", "status", "--json") == {
        "manager": "systemd",
        "system": False,
        "installed": True,
        "state": "active",
        "pid": 4711,
        "waiting": False,
    }


# Stopping what would be started again.


SERVER = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
from pathlib import Path
from osaurus.discovery import Announcement
announcement = Announcement(Path(sys.argv[1]), False, Path("/models"))
announcement.publish(("127.0.0.1", 1337))
print("running", flush=True)
signal.sigwait([signal.SIGTERM])
announcement.withdraw()
"""


@pytest.fixture
def server(command_line: CommandLine) -> Iterator["subprocess.Popen[bytes]"]:
    """A server that was started by somebody: it tells of itself, and ends when it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(command_line.home / "runtime")],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"running\n"
    yield process
    process.kill()
    process.wait(30)
    process.stdout.close()


def test_stop_goes_through_systemd_where_that_has_started_it(
    command_line: CommandLine, systemctl: Systemctl, server: "subprocess.Popen[bytes]"
) -> None:
    run(command_line, "install", "--socket")
    systemctl.pid = server.pid
    assert systemctl.told
    really = command_line.programs

    def end(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        if "stop" in command:
            server.terminate()
        done: subprocess.CompletedProcess[str] = really(command)
        return done

    command_line.programs = end
    result = command_line.run("stop")
    assert result.exit_code == 0
    assert systemctl.told == [("stop", "--no-block", "osaurus.socket", "osaurus.service")]
    assert "`osaurus service start` starts it again" in result.stdout
    assert server.wait(30) == 0


def test_stop_goes_through_launchd_where_that_has_started_it(
    command_line: CommandLine, launchctl: Launchctl, server: "subprocess.Popen[bytes]"
) -> None:
    run(command_line, "install")
    assert launchctl.verbs
    printed = PRINTED.replace("pid = 4711", f"pid = {server.pid}")

    def end(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        done = launchctl(command)
        if command[1] == "bootout":
            server.terminate()
        if command[1] == "print" and done.returncode == 0:
            return subprocess.CompletedProcess(command, 0, printed, "")
        return done

    command_line.programs = end
    result = command_line.run("stop")
    assert result.exit_code == 0, result.output
    assert launchctl.verbs == ["bootout"]
    assert server.wait(30) == 0


def test_the_machines_is_waited_for_by_what_systemd_says(
    command_line: CommandLine, systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(command_line, "install", "--system", "--user", ME)
    systemctl.pid = 4711
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            systemctl.pid = 0

    monkeypatch.setattr(stop, "sleep", wait)
    result = command_line.run("service", "stop", "--system")
    assert (result.stdout, result.stderr) == ("Stopped\n", "It completes what it is answering\n")
    assert len(waited) == 3


def test_what_does_not_run_is_stopped_without_waiting_for_the_app(
    command_line: CommandLine, systemctl: Systemctl
) -> None:
    run(command_line, "install")
    # The app for macOS tells of no process number.
    place = command_line.home / "runtime" / "APP"
    place.mkdir(parents=True)
    (place / "configuration.json").write_text('{"health": "running", "url": "http://127.0.0.1:1337"}')
    assert run(command_line, "stop") == "Stopped\n"


def test_the_machines_is_not_for_its_user_to_stop(
    command_line: CommandLine, systemctl: Systemctl, server: "subprocess.Popen[bytes]"
) -> None:
    run(command_line, "install", "--system", "--user", ME)
    systemctl.pid = server.pid
    systemctl.refused = "stop"
    result = command_line.run("stop")
    assert result.exit_code == 1
    assert "It is the machine's server: `sudo osaurus service stop --system`" in result.stderr


def test_another_server_is_stopped_as_always(
    command_line: CommandLine, systemctl: Systemctl, server: "subprocess.Popen[bytes]"
) -> None:
    run(command_line, "install")
    systemctl.pid = server.pid + 1
    assert systemctl.told
    result = command_line.run("stop")
    assert result.exit_code == 0
    assert systemctl.told == []
    assert "osaurus service" not in result.stdout


def test_where_systemd_does_not_answer_it_is_stopped_as_always(
    command_line: CommandLine, systemctl: Systemctl, server: "subprocess.Popen[bytes]"
) -> None:
    run(command_line, "install")
    systemctl.refused = "--user"
    assert command_line.run("stop").exit_code == 0
    assert server.wait(30) == 0
