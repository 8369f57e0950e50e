"""The `osaurus` command as a whole: what it offers, and which server and which models it means."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from osaurus import __version__, settings
from osaurus.command.client import Client
from osaurus.command.main import main
from osaurus.command.server import TWISTD
from osaurus.command.surroundings import Surroundings
from osaurus.discovery import FILE, Announcement
from osaurus.web.guard import Guard

from .commandline import PROGRAM, CommandLine
from .server import environment, free_port, serving
from .test_api import Client as Server
from .test_discovery import wait_for_word

COMMANDS = (
    "serve",
    "pull",
    "import",
    "list",
    "show",
    "rm",
    "cp",
    "run",
    "ps",
    "stop",
    "status",
    "settings",
    "service",
    "doctor",
    "version",
)
# Whose options are those of docs/settings.md.
WITH_SETTINGS = ("serve", "settings")
PAGE = Path(__file__).parent.parent / "docs" / "command.md"


def announce(runtime: Path, port: int | None, models: Path = Path("/models"), host: str = "127.0.0.1") -> None:
    Announcement(runtime, exposed=False, models_dir=models).publish(None if port is None else (host, port))


def subcommand(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", COMMANDS)
def test_each_subcommand_has_help_with_examples(command_line: CommandLine, name: str) -> None:
    result = command_line.run(name, "--help")
    assert result.exit_code == 0
    if name != "version":
        assert f"Examples:\n    osaurus {name}" in result.output


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_each_subcommand_and_each_of_its_options_is_on_the_page(name: str) -> None:
    sections = re.split(r"^#{2,3} ", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    [section] = [text for text in sections if re.match(rf"`osaurus {name}\b", text)]
    command = subcommand(name)
    parts = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
    params = [param for part in parts for param in part.params]
    known = {setting.option for setting in settings.table()} if name in WITH_SETTINGS else set()
    options = {option.opts[0] for option in params if isinstance(option, click.Option)} - known - {"--config"}
    assert [option for option in options if f"`{option}" not in section] == []
    assert [part.name for part in parts if f"`{part.name}`" not in section and f"osaurus {name}" not in section] == []


def test_the_first_words_are_how_to_begin(command_line: CommandLine) -> None:
    output = command_line.run("--help").output
    assert output.index("osaurus pull") < output.index("osaurus serve") < output.index("osaurus run")


def test_the_version_is_told(command_line: CommandLine) -> None:
    assert command_line.run("version").stdout == f"{__version__}\n"
    assert command_line.run("--version").stdout == f"osaurus {__version__}\n"
    assert command_line.json("version", "--json") == {"version": __version__}


def test_serve_has_every_setting_as_an_option() -> None:
    assert [param.name for param in subcommand("serve").params] == [
        "config",
        *(setting.name for setting in settings.table()),
    ]


def test_serve_becomes_twistd_with_these_options(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, command: ran.append(command))
    command_line.run("serve", "--port", "8080", "--no-auth", "--listen", "tcp:1", "--listen", "tcp:2")
    [command] = ran
    assert command[command.index("osaurus") + 1 :] == ["--port=8080", "--no-auth", "--listen=tcp:1", "--listen=tcp:2"]


def test_ctrl_c_ends_it_without_a_word(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Surroundings, "server", interrupted)
    result = command_line.run("status")
    assert (result.exit_code, result.output) == (130, "")


def test_so_it_does_while_a_subcommand_is_imported(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("osaurus.command.main.import_module", interrupted)
    result = command_line.run("status")
    assert (result.exit_code, result.output) == (130, "")


def test_and_while_what_serves_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The place of twistd has what raises as soon as it is looked at.
    (tmp_path / "twisted" / "scripts").mkdir(parents=True)
    for module in ("__init__", "scripts/__init__"):
        (tmp_path / "twisted" / f"{module}.py").write_text("")
    (tmp_path / "twisted" / "scripts" / "twistd.py").write_text("raise KeyboardInterrupt")
    ended = subprocess.run([sys.executable, "-c", TWISTD], cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")


# Which server.


def url(tmp_path: Path, host: str | None = None, **environ: str) -> str:
    return Surroundings(environ=environ, runtime=tmp_path / "runtime").server(host).url


def test_without_a_word_it_is_the_one_that_runs_and_else_the_usual_port(tmp_path: Path) -> None:
    assert url(tmp_path) == "http://127.0.0.1:1337"
    announce(tmp_path / "runtime", 8001)
    assert url(tmp_path) == "http://127.0.0.1:8001"


def test_of_several_it_is_the_latest(tmp_path: Path) -> None:
    announce(tmp_path / "runtime", 8001)
    announce(tmp_path / "runtime", 8002)
    assert url(tmp_path) == "http://127.0.0.1:8002"


def test_one_that_was_named_precedes_those_that_run(tmp_path: Path) -> None:
    announce(tmp_path / "runtime", 8001)
    assert url(tmp_path, OSU_PORT="8002") == "http://127.0.0.1:8002"
    assert url(tmp_path, OSU_PORT="8002", OSU_HOST="mac.local:8003") == "http://mac.local:8003"
    assert url(tmp_path, "other.local:8004", OSU_HOST="mac.local:8003") == "http://other.local:8004"


def test_one_that_is_named_by_its_port_is_found_at_whatever_address_it_has(tmp_path: Path) -> None:
    announce(tmp_path / "runtime", 8001, host="::1")
    assert url(tmp_path, OSU_PORT="8001") == "http://[::1]:8001"


# Who is told the API key.


def test_the_key_is_for_a_server_of_ones_own(command_line: CommandLine) -> None:
    command_line.start_server(guard=Guard(api_keys=("hush",)))
    assert command_line.run("ps").exit_code == 1
    command_line.environ["OSU_API_KEY"] = "hush"
    assert command_line.run("ps").exit_code == 0


def test_whoever_has_the_usual_port_is_told_none_unless_somebody_names_it(command_line: CommandLine) -> None:
    command_line.server = Server(command_line.models, guard=Guard(api_keys=("hush",)))
    command_line.environ["OSU_API_KEY"] = "hush"
    result = command_line.run("ps")
    assert (result.exit_code, "none was sent" in result.stderr, "named with --host" in result.stderr) == (1, True, True)
    assert command_line.run("ps", "--host", "127.0.0.1").exit_code == 0
    command_line.environ["OSU_PORT"] = "1337"
    assert command_line.run("ps").exit_code == 0


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("mac", "http://mac:1337"),
        ("mac:80", "http://mac:80"),
        ("http://mac:80/", "http://mac:80"),
        ("https://chat.example.org", "https://chat.example.org"),
        ("[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_a_host_may_be_a_name_an_address_or_a_url(tmp_path: Path, host: str, found: str) -> None:
    assert url(tmp_path, host) == found


@pytest.mark.parametrize("host", ["a b", "ftp://mac", "mac:0", "mac:70000", "http://mac/v1", "user@mac", "mac\n"])
def test_what_is_no_host_is_refused_with_what_would_be_one(tmp_path: Path, host: str) -> None:
    with pytest.raises(click.UsageError, match="such as http://"):
        url(tmp_path, host)


# Which models.


def folder(tmp_path: Path, given: Path | None = None, **environ: str) -> Path:
    return Surroundings(environ=environ, runtime=tmp_path / "runtime").models_folder(given)


def test_the_folder_is_the_named_one_else_the_running_servers_else_the_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder(tmp_path) == tmp_path / "MLXModels"
    announce(tmp_path / "runtime", 8001, Path("/served"))
    assert folder(tmp_path) == Path("/served")
    assert folder(tmp_path, OSU_MODELS_DIR="/set") == Path("/set")
    assert folder(tmp_path, OSU_MODELS_DIR="~/MLXModels") == tmp_path / "MLXModels"
    assert folder(tmp_path, Path("/given"), OSU_MODELS_DIR="/set") == Path("/given")


def test_a_bad_setting_is_one_line(command_line: CommandLine) -> None:
    command_line.environ["OSU_MAX_BODY"] = "plenty"
    result = command_line.run("list")
    assert result.exit_code == 1
    assert "OSU_MAX_BODY must be a number of bytes" in result.stderr


def test_settings_that_no_server_could_begin_with_do_for_commands(command_line: CommandLine) -> None:
    # The keys may be in the environment of the server alone.
    command_line.environ |= {"OSU_EXPOSE": "1", "OSU_PORT": "1337"}
    assert command_line.run("settings").exit_code == 1
    assert command_line.run("list").exit_code == 0
    command_line.start_server()
    assert command_line.run("status").exit_code == 0
    assert command_line.run("status", "--host", "127.0.0.1").exit_code == 0


def test_a_folder_and_another_server_at_once_are_refused(command_line: CommandLine) -> None:
    result = command_line.run("list", "--host", "mac", "--models-dir", "/models")
    assert result.exit_code == 2
    assert "--models-dir" in result.stderr


# Whether it runs.


def test_status_is_0_and_tells_where(command_line: CommandLine) -> None:
    command_line.start_server()
    result = command_line.run("status")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Osaurus {__version__} is running at http://127.0.0.1:1337, process ")
    found = command_line.json("status", "--json")
    assert (found["running"], found["status"], found["models_dir"]) == (True, "ok", str(command_line.models))


def test_status_is_1_with_the_reason_when_the_engine_has_died(command_line: CommandLine) -> None:
    server = command_line.start_server()
    server.begin("POST", "/api/chat", {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]})
    server.worker.turn()
    server.worker.engine.failure = MemoryError("out of it")
    server.worker.thread.run()
    result = command_line.run("status")
    assert result.exit_code == 1
    assert "out of it" in result.stderr
    found = json.loads(command_line.run("status", "--json").stdout)
    assert (found["running"], found["status"]) == (True, "error")


def test_resident_models_are_listed(command_line: CommandLine) -> None:
    server = command_line.start_server()
    assert command_line.run("ps").stdout == ""
    server.ask("POST", "/api/chat", {"model": "tiny", "messages": []})
    [line] = command_line.run("ps").stdout.splitlines()
    assert line.startswith("tiny\t")
    [model] = command_line.json("ps", "--json")
    assert model["name"] == "tiny"


@pytest.mark.parametrize("answer", [[], {}, {"models": None}, {"models": [{}]}, {"models": ["tiny"]}])
@pytest.mark.parametrize("arguments", [("ps",), ("list", "--host", "127.0.0.1")])
def test_a_server_that_speaks_otherwise_is_one_line(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], answer: object
) -> None:
    async def get(*_: object) -> object:
        return answer

    monkeypatch.setattr(Client, "get", get)
    result = command_line.run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is not understood" in result.stderr


def test_a_model_is_taken_out_of_memory(command_line: CommandLine) -> None:
    server = command_line.start_server()
    server.ask("POST", "/api/chat", {"model": "tiny", "messages": []})
    assert command_line.run("stop", "tiny").stdout == "tiny is no longer in memory\n"
    assert server.worker.engine.unloads == ["tests/tiny"]


def test_with_nobody_to_stop_stop_says_so(command_line: CommandLine) -> None:
    left = command_line.home / "runtime" / "APP" / FILE
    left.parent.mkdir(parents=True)
    # The app does not tell its process.
    left.write_text(json.dumps({"health": "running", "url": "http://127.0.0.1:1337"}))
    result = command_line.run("stop")
    assert (result.exit_code, "No server of yours runs" in result.stderr) == (1, True)


def test_several_servers_are_not_stopped_by_guess(command_line: CommandLine) -> None:
    announce(command_line.home / "runtime", 8001)
    announce(command_line.home / "runtime", None)
    result = command_line.run("stop")
    assert result.exit_code == 2
    assert f"http://127.0.0.1:8001 (process {os.getpid()})" in result.stderr
    assert f"its socket (process {os.getpid()})" in result.stderr
    assert "--pid" in result.stderr


@pytest.fixture
def stopped(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The processes that were to stop, of three: at port 8001, at port 8002 of version 6 of IP, and at a socket."""
    for pid, port, host in ((101, 8001, "127.0.0.1"), (102, 8002, "::1"), (103, None, "")):
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda pid=pid: pid)
            announce(command_line.home / "runtime", port, host=host)
    pids: list[int | None] = []
    monkeypatch.setattr("osaurus.command.stop.stop_server", lambda _, instance, now: pids.append(instance.pid))
    return pids


def test_which_of_several_is_stopped_can_be_said_by_port(command_line: CommandLine, stopped: list[int | None]) -> None:
    command_line.environ |= {"OSU_PORT": "8002", "OSU_HOST": "example.invalid:1"}
    assert command_line.run("stop").stdout == "Stopped the server at http://[::1]:8002, process 102\n"
    command_line.environ["OSU_PORT"] = "8003"
    result = command_line.run("stop")
    assert (result.exit_code, "at port 8003 (OSU_PORT)" in result.stderr) == (1, True)
    assert stopped == [102]


def test_or_by_process(command_line: CommandLine, stopped: list[int | None]) -> None:
    command_line.environ["OSU_PORT"] = "8001"
    assert command_line.run("stop", "--pid", "103").stdout == "Stopped the server at its socket, process 103\n"
    result = command_line.run("stop", "--pid", "104")
    assert (result.exit_code, "as process 104" in result.stderr) == (1, True)
    assert command_line.run("stop", "--pid", "103", "--all").exit_code == 2
    assert command_line.run("stop", "--pid", "103", "tiny").exit_code == 2
    assert stopped == [103]


def test_all_of_them_are_stopped_whatever_port_is_named(command_line: CommandLine, stopped: list[int | None]) -> None:
    command_line.environ["OSU_PORT"] = "8001"
    assert command_line.run("stop", "--all").exit_code == 0
    assert sorted(filter(None, stopped)) == [101, 102, 103]


def test_a_server_elsewhere_is_not_stopped(command_line: CommandLine) -> None:
    assert command_line.run("stop", "--host", "mac").exit_code == 2


# A real one.


def osaurus(home: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process."""
    kept = {name: value for name, value in environment(home, home, 1).items() if not name.startswith("OSU_")}
    return subprocess.run(
        [*PROGRAM, *arguments],
        cwd=Path(__file__).parent.parent,
        env={**kept, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_server_is_found_listed_and_stopped(tmp_path: Path, tiny_models: Path) -> None:
    with serving(tmp_path, tiny_models) as server:
        wait_for_word(tmp_path / ".osaurus" / "runtime")
        found = json.loads(osaurus(tmp_path, "status", "--json").stdout)
        assert (found["url"], found["pid"], found["version"]) == (server.url, server.process.pid, __version__)
        assert [line.split("\t")[0] for line in osaurus(tmp_path, "list").stdout.splitlines()] == ["other", "tiny"]
        assert osaurus(tmp_path, "run", "tiny", "hi", "-o", "num_predict=4", "--json").returncode == 0
        assert [model["name"] for model in json.loads(osaurus(tmp_path, "ps", "--json").stdout)] == ["tiny"]
        stopped = osaurus(tmp_path, "stop")
        assert stopped.stdout == f"Stopped the server at {server.url}, process {server.process.pid}\n"
        assert server.process.wait(30) == -signal.SIGTERM
    ended = osaurus(tmp_path, "status", OSU_PORT=str(server.port))
    assert (ended.returncode, "osaurus serve" in ended.stderr) == (1, True)


def test_serve_says_in_one_line_what_cannot_be(tmp_path: Path) -> None:
    ended = osaurus(tmp_path, "serve", "--port", "99999")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "osaurus: --port must be a port number, 1 to 65535, not '99999'\n"


def test_serve_takes_no_modules_from_the_folder_that_it_is_started_in(tmp_path: Path) -> None:
    (tmp_path / "attrs.py").write_text("raise SystemExit('a file of the folder was run')")
    root = str(Path(__file__).parent.parent)
    ended = subprocess.run(
        [sys.executable, "-P", *PROGRAM[1:], "serve", "--port", "99999"],
        cwd=tmp_path,
        env={**environment(tmp_path, tmp_path, 1), "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.stderr == "osaurus: --port must be a port number, 1 to 65535, not '99999'\n"


def test_serve_serves_until_it_is_stopped(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [*PROGRAM, "serve", "--port", str(port)],
        cwd=Path(__file__).parent.parent,
        env=environment(tmp_path, tmp_path / "models", 1),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_word(tmp_path / ".osaurus" / "runtime")
        # Exec, not a child: whoever started it has the server itself to watch and to end.
        found = json.loads(osaurus(tmp_path, "status", "--json").stdout)
        assert found["pid"] == process.pid
        assert osaurus(tmp_path, "stop").returncode == 0
        assert process.wait(30) == -signal.SIGTERM
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)
