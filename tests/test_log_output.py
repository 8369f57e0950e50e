"""Where the log goes: files that are turned over, and what twistd is told; at the end with a real twistd."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.request import Request, urlopen

import pytest
from attrs import evolve
from twisted.application.service import Application
from twisted.logger import ILogObserver, LogLevel
from twisted.python.components import Componentized

from osaurus.logs.output import FORMATS, LogOutput, Wanted, log_output
from osaurus.sources import BadSetting

from .server import SERVE, TWISTD, environment, free_port, run_twistd, serving, wait_for_port
from .test_settings import load

FOREGROUND = {"nodaemon": True}
DAEMON = {"nodaemon": False}

Opened = Callable[..., LogOutput]


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    return Wanted(format="human", level="info", file=tmp_path / "logs" / "osaurus.log", file_size=0, files_kept=3)


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Opens outputs, and closes their files in the end."""
    outputs: list[LogOutput] = []

    def open_output(wanted: Wanted, twistd: dict[str, Any] = FOREGROUND) -> LogOutput:
        output = log_output(wanted, twistd)
        assert output is not None
        outputs.append(output)
        return output

    yield open_output
    for output in outputs:
        if output.file is not None:
            output.file.close()


def say(output: LogOutput, text: str, level: Any = LogLevel.info) -> None:
    output.observer(
        {"log_format": "{text}", "text": text, "log_level": level, "log_namespace": "osaurus.test", "log_time": 0.0}
    )


def texts(path: Path) -> list[str]:
    return [line.split("] ")[1] for line in path.read_text("utf-8").splitlines()]


def test_settings_and_output_know_the_same_words() -> None:
    levels = [level.name for level in LogLevel.iterconstants()]
    for level in levels:
        assert load({"log_level": level}, {}).log_level == level
    for name in FORMATS:
        assert load({"log_format": name}, {}).log_format == name
    with pytest.raises(BadSetting, match=f"must be {', '.join(levels[:-1])} or {levels[-1]}"):
        load({"log_level": "loud"}, {})
    with pytest.raises(BadSetting, match=f"must be {' or '.join(FORMATS)}"):
        load({"log_format": "xml"}, {})


def test_another_level_holds_from_then_on(wanted: Wanted, opened: Opened) -> None:
    output = opened(wanted)
    said = [("info", LogLevel.info), ("debug", LogLevel.debug), ("error", LogLevel.error)]
    for level in ("error", "debug", "info"):
        output.apply(level)
        for text, of in said:
            say(output, f"{level}: {text}", of)
    assert wanted.file is not None
    assert texts(wanted.file) == [
        "error: error",
        "debug: info",
        "debug: debug",
        "debug: error",
        "info: info",
        "info: error",
    ]


# Files.


def test_a_file_is_made_with_its_folder_for_this_user_only(wanted: Wanted, opened: Opened) -> None:
    before = os.umask(0)
    try:
        say(opened(wanted), "Grüße")
    finally:
        os.umask(before)
    assert wanted.file is not None
    assert texts(wanted.file) == ["Grüße"]
    assert wanted.file.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_is_gone_on_with_and_keeps_its_mode(wanted: Wanted, opened: Opened) -> None:
    assert wanted.file is not None
    wanted.file.parent.mkdir()
    wanted.file.write_text("- [x] before\n")
    wanted.file.chmod(0o640)
    output = opened(evolve(wanted, file_size=20))
    say(output, "after")
    assert texts(wanted.file) == ["before", "after"]
    say(output, "later")
    assert texts(wanted.file) == ["later"]
    assert wanted.file.stat().st_mode & 0o777 == 0o640


def test_a_file_that_is_large_enough_is_put_aside_and_so_many_are_kept(wanted: Wanted, opened: Opened) -> None:
    output = opened(evolve(wanted, file_size=1, files_kept=2))
    for number in range(6):
        say(output, str(number))
    assert wanted.file is not None
    kept = {path.name: texts(path) for path in wanted.file.parent.iterdir()}
    assert kept == {"osaurus.log": ["5"], "osaurus.log.1": ["4"], "osaurus.log.2": ["3"]}


def test_of_size_0_a_file_is_never_put_aside(wanted: Wanted, opened: Opened) -> None:
    output = opened(wanted)
    for number in range(100):
        say(output, str(number))
    assert wanted.file is not None
    assert [path.name for path in wanted.file.parent.iterdir()] == ["osaurus.log"]


def test_a_file_that_was_moved_away_is_opened_anew(wanted: Wanted, opened: Opened) -> None:
    output = opened(wanted)
    say(output, "before")
    assert wanted.file is not None
    moved = wanted.file.rename(wanted.file.with_suffix(".old"))
    say(output, "to the old one")
    output.reopen()
    say(output, "to the new one")
    assert texts(moved) == ["before", "to the old one"]
    assert texts(wanted.file) == ["to the new one"]
    assert wanted.file.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_opened_anew_is_gone_on_with(wanted: Wanted, opened: Opened) -> None:
    output = opened(wanted)
    assert wanted.file is not None
    moved = wanted.file.rename(wanted.file.with_suffix(".old"))
    wanted.file.mkdir()
    output.reopen()
    say(output, "still here")
    assert texts(moved) == ["still here"]


def test_what_is_no_file_is_written_to_and_never_renamed(wanted: Wanted, opened: Opened, tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    output = opened(evolve(wanted, file=link, file_size=1))
    for number in range(3):
        say(output, str(number))
    assert link.is_symlink()


def test_less_than_the_level_is_not_logged(wanted: Wanted, opened: Opened) -> None:
    output = opened(evolve(wanted, level="warn"))
    for level in LogLevel.iterconstants():
        say(output, level.name, level)
    assert wanted.file is not None
    assert texts(wanted.file) == ["warn", "error", "critical"]


# What twistd is told.


def test_an_application_has_the_observer(wanted: Wanted, opened: Opened) -> None:
    output = opened(wanted)
    application: Componentized = Application("osaurus")
    output.attach(application)
    assert application.getComponent(ILogObserver) is output.observer


@pytest.mark.parametrize(
    ("twistd", "name"),
    [
        (FOREGROUND, None),
        (FOREGROUND | {"logfile": "-"}, None),
        (FOREGROUND | {"logfile": "mine.log"}, "mine.log"),
        (DAEMON, "twistd.log"),
        (DAEMON | {"logfile": "mine.log"}, "mine.log"),
    ],
)
def test_without_a_file_it_goes_where_twistd_would_have_it(
    wanted: Wanted,
    opened: Opened,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    twistd: dict[str, Any],
    name: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    output = opened(evolve(wanted, file=None), twistd)
    assert (None if output.file is None else Path(output.file.path)) == (name and tmp_path / name)


@pytest.mark.parametrize(
    "twistd",
    [FOREGROUND | {"syslog": True}, DAEMON | {"logger": "mine.observer"}, DAEMON | {"logfile": "-"}],
)
def test_syslog_other_observers_and_what_twistd_refuses_are_left_to_it(wanted: Wanted, twistd: dict[str, Any]) -> None:
    assert log_output(evolve(wanted, file=None), twistd) is None


# With a real twistd.


def eventually(found: Any) -> Any:
    deadline = monotonic() + 30
    while not (result := found()):
        assert monotonic() < deadline
        sleep(0.05)
    return result


def chat(url: str, content: str = "hi", key: str = "any") -> str:
    """Have a question answered; return the request's id."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 5}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=60) as answer:
        answer.read()
        return str(answer.headers["X-Request-Id"])


def test_a_request_is_one_line_on_stdout_and_twisted_has_none_of_its_own(tmp_path: Path, tiny_models: Path) -> None:
    with serving(tmp_path, tiny_models) as server:
        request_id = chat(server.url)
        assert server.stop() == -signal.SIGTERM
        log = server.log.read_text()
    [line] = [line for line in log.splitlines() if "osaurus.web.access" in line]
    assert "[osaurus.web.access#info] POST /v1/chat/completions 200 " in line
    assert f" request_id={request_id} model=tests/tiny prompt_tokens=" in line
    assert "HTTP/1.1" not in log


def test_as_json_every_line_is_an_object_from_the_first_to_the_last(tmp_path: Path, tiny_models: Path) -> None:
    secret = "sk-quite-a-secret"
    file = tmp_path / "osaurus.log"
    variables = {"OSU_LOG_FORMAT": "json", "OSU_LOG_FILE": str(file), "OSU_LOG_LEVEL": "debug"}
    with serving(tmp_path, tiny_models, OSU_API_KEYS=secret, **variables) as server:
        request_id = chat(server.url, f"My secret is {secret}.", key=secret)
        assert server.stop() == -signal.SIGTERM
        assert server.log.read_text() == ""
    lines = [json.loads(line) for line in file.read_text("ascii").splitlines()]
    assert "starting up" in lines[0]["message"]
    assert lines[-1]["message"] == "Server Shut Down."
    [answered] = [line for line in lines if line.get("request_id") == request_id]
    assert answered["completion_tokens"] <= 5
    assert answered["level"] == "info"
    assert secret not in file.read_text()


def test_a_daemons_log_is_turned_over_opened_anew_and_whole(tmp_path: Path, tiny_models: Path) -> None:
    port, file = free_port(), tmp_path / "mine.log"
    subprocess.run(
        [TWISTD, "--logfile", "mine.log", "osaurus", "--log-format", "json", "--log-files-kept", "2"],
        cwd=tmp_path,
        env=environment(tmp_path, tiny_models, port),
        check=True,
        timeout=60,
    )
    pid = int((tmp_path / "twistd.pid").read_text())
    try:
        wait_for_port(port)
        first = chat(f"http://127.0.0.1:{port}")
        eventually(lambda: first in file.read_text())
        moved = file.rename(tmp_path / "moved.log")
        os.kill(pid, signal.SIGUSR1)
        eventually(file.exists)
        second = chat(f"http://127.0.0.1:{port}")
    finally:
        os.kill(pid, signal.SIGTERM)
    eventually(lambda: not (tmp_path / "twistd.pid").exists())
    lines = [json.loads(line) for path in (moved, file) for line in path.read_text().splitlines()]
    assert [line["request_id"] for line in lines if "request_id" in line] == [first, second]
    assert "Server Shut Down." in file.read_text()
    assert not (tmp_path / "twistd.log").exists()


def test_a_log_that_cannot_be_written_ends_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_twistd(tmp_path, *SERVE, "--log-file", str(tmp_path / "file" / "osaurus.log"))
    assert done.returncode == 1
    assert "osaurus: the log cannot be written" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
