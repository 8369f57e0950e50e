"""`osaurus settings`: what each setting is, and who says so."""

import json
from pathlib import Path

import pytest

from osaurus import settings

from .commandline import CommandLine


def row(command_line: CommandLine, name: str, *arguments: str) -> list[str]:
    result = command_line.run("settings", *arguments)
    assert result.exit_code == 0, result.output
    [found] = [line.split("\t") for line in result.stdout.splitlines() if line.split("\t")[0] == name]
    return found


def test_every_setting_has_its_line(command_line: CommandLine) -> None:
    lines = command_line.run("settings").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [setting.name for setting in settings.table()]


def test_each_is_told_with_where_it_comes_from(command_line: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / ".osaurus" / "config.toml"
    file.parent.mkdir()
    file.write_text("keep_alive = '90m'\nport = 8001")
    command_line.environ["OSU_PORT"] = "8002"
    assert row(command_line, "keep_alive") == ["keep_alive", "1h30m", "file"]
    assert row(command_line, "port") == ["port", "8002", "variable OSU_PORT"]
    assert row(command_line, "port", "--port", "8003") == ["port", "8003", "option --port"]
    assert row(command_line, "read_only", "--read-only") == ["read_only", "on", "option --read-only"]
    assert row(command_line, "max_body") == ["max_body", "32MiB", "default"]
    assert row(command_line, "memory_limit") == ["memory_limit", "not set", "default"]
    assert str(file) in command_line.run("settings").stderr.replace("\n", "")


def test_another_file_can_be_looked_at(command_line: CommandLine, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("listen = ['unix:/a', 'unix:/b']")
    assert row(command_line, "listen", "--config", str(other)) == ["listen", "unix:/a unix:/b", "file"]


def test_one_is_told_with_what_it_means(command_line: CommandLine) -> None:
    command_line.environ["OSU_DRAIN"] = "1m"
    said = command_line.run("settings", "drain").stdout
    [setting] = [setting for setting in settings.table() if setting.name == "drain"]
    assert said == (
        "drain = 1m, from variable OSU_DRAIN\n"
        f"{setting.meaning}\n"
        "duration; drain in TOML, OSU_DRAIN, --drain\n"
        "Changes while the server runs (SIGHUP).\n"
    )
    assert command_line.run("settings", "port").stdout.endswith("Changes with a restart.\n")


def test_programs_are_told_in_json(command_line: CommandLine) -> None:
    command_line.environ["OSU_MAX_CONCURRENT"] = "3"
    found = {entry["name"]: entry for entry in command_line.json("settings", "--json")}
    assert list(found) == [setting.name for setting in settings.table()]
    assert found["max_concurrent"] == {
        "name": "max_concurrent",
        "type": "number",
        "value": "3",
        "source": "variable",
        "file": None,
        "variable": "OSU_MAX_CONCURRENT",
        "option": "--max-concurrent",
        "live": True,
        "meaning": next(setting.meaning for setting in settings.table() if setting.name == "max_concurrent"),
    }
    assert (found["memory_limit"]["value"], found["memory_limit"]["source"]) == (None, "default")
    assert command_line.json("settings", "port", "--json")["value"] == "1337"


@pytest.mark.parametrize("arguments", [(), ("--json",), ("api_keys",), ("api_keys", "--json")])
def test_keys_are_not_shown(command_line: CommandLine, arguments: tuple[str, ...]) -> None:
    command_line.environ["OSU_API_KEYS"] = "hush,quiet"
    result = command_line.run("settings", *arguments)
    assert result.exit_code == 0
    assert "hush" not in result.output
    if "--json" not in arguments:
        assert "2 of them, not shown" in result.output
    elif "api_keys" in arguments:
        found = json.loads(result.stdout)
        assert (found["value"], found["set"]) == (None, True)


def test_a_name_that_is_none_is_answered_with_the_nearest(command_line: CommandLine) -> None:
    result = command_line.run("settings", "max_concurent")
    assert (result.exit_code, "did you mean max_concurrent?" in result.stderr) == (2, True)


def test_a_variable_that_is_none_is_told_of(command_line: CommandLine) -> None:
    command_line.environ["OSU_PROT"] = "1"
    result = command_line.run("settings")
    assert result.exit_code == 0
    assert "Warning: OSU_PROT is no setting and has no effect; did you mean OSU_PORT?" in result.stderr


def test_a_bad_value_is_one_line(command_line: CommandLine) -> None:
    result = command_line.run("settings", "--port", "seventy")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--port must be a port number" in result.stderr


@pytest.mark.parametrize("command", ["serve", "settings"])
def test_an_option_that_is_none_is_answered_with_the_nearest(command_line: CommandLine, command: str) -> None:
    result = command_line.run(command, "--prot", "1")
    assert (result.exit_code, "--port" in result.stderr) == (2, True)
