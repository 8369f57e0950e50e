"""`osaurus list`, `show`, `pull`, `rm` and `cp`: of a folder, and of a server."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from osaurus.command import models
from osaurus.command.library import Tell
from osaurus.library import pull
from osaurus.library.importing import ImportFailed, ImportProgress
from osaurus.library.progress import Progress, PullError

from .commandline import PROGRAM, CommandLine
from .hub import FakeHub
from .test_pulling import eventually, under_way


@pytest.fixture
def own(command_line: CommandLine, tmp_path: Path) -> CommandLine:
    """The command with a models folder that may change."""
    shutil.copytree(command_line.models, tmp_path / "own")
    command_line.models = tmp_path / "own"
    return command_line


def test_the_list_has_a_line_for_each_model_and_no_header_for_a_pipe(command_line: CommandLine) -> None:
    lines = [line.split("\t") for line in command_line.run("list").stdout.splitlines()]
    assert [line[0] for line in lines] == ["other", "tiny"]
    assert {len(line) for line in lines} == {5}


def test_without_models_the_list_is_empty_and_says_elsewhere_how_to_get_one(
    command_line: CommandLine, tmp_path: Path
) -> None:
    result = command_line.run("list", "--models-dir", str(tmp_path / "none"))
    assert (result.exit_code, result.stdout) == (0, "")
    assert "osaurus pull smollm2:135m" in result.stderr
    assert command_line.json("list", "--models-dir", str(tmp_path / "none"), "--json") == []


def test_a_folder_that_is_not_there_is_told_of(command_line: CommandLine, tmp_path: Path) -> None:
    result = command_line.run("list", "--models-dir", str(tmp_path / "none"))
    assert f"There is no folder {tmp_path / 'none'} yet" in result.stderr
    assert "There is no folder" not in command_line.run("list").stderr


@pytest.mark.parametrize("arguments", [("list",), ("show", "tiny"), ("rm", "tiny"), ("pull", "smollm2:135m")])
def test_a_file_in_the_place_of_the_folder_is_refused(command_line: CommandLine, arguments: tuple[str, ...]) -> None:
    result = command_line.run(*arguments, "--models-dir", __file__)
    assert (result.exit_code, result.stderr) == (1, f"Error: models_dir: {__file__} is no folder\n")


def test_the_list_as_json_is_ollamas_with_the_places(command_line: CommandLine) -> None:
    [_, model] = command_line.json("list", "--json")
    assert (model["name"], model["repository"]) == ("tiny", "tests/tiny")
    assert model["folder"] == str(command_line.models / "tests" / "tiny")
    assert model["details"]["family"] == "llama"


def test_the_disk_is_read_without_asking_the_server(command_line: CommandLine) -> None:
    command_line.start_server()
    for arguments in (("list",), ("show", "tiny")):
        assert command_line.run(*arguments).exit_code == 0
    assert command_line.asked == []


def test_another_server_is_asked_for_its_models(command_line: CommandLine, tmp_path: Path) -> None:
    command_line.start_server()
    command_line.environ["OSU_MODELS_DIR"] = str(tmp_path / "none")
    here, there = command_line.json("list", "--json"), command_line.json("list", "--json", "--host", "mac.local")
    assert here == []
    assert [model["name"] for model in there] == ["other", "tiny"]
    assert command_line.json("show", "tiny", "--json", "--host", "mac.local")["capabilities"] == ["completion"]
    assert command_line.asked == ["GET http://mac.local:1337/api/tags", "POST http://mac.local:1337/api/show"]


def test_what_is_known_of_a_model_is_told(command_line: CommandLine) -> None:
    output = command_line.run("show", "tiny").stdout
    for words in (("architecture", "llama"), ("context length", "512"), ("repository", "tests/tiny")):
        assert any(line.split() == " ".join(words).split() for line in output.splitlines()), words
    assert command_line.json("show", "tiny", "--json")["folder"].endswith("tests/tiny")
    assert "<|im_start|>" in command_line.run("show", "tiny", "--template").stdout


def test_an_unknown_model_is_one_line(command_line: CommandLine) -> None:
    for arguments in (("show", "huge"), ("rm", "huge"), ("cp", "huge", "huger")):
        result = command_line.run(*arguments)
        assert (result.exit_code, result.stderr) == (1, "Error: Model not found: huge\n")


def test_a_model_is_removed_from_the_disk(own: CommandLine) -> None:
    result = own.run("rm", "tiny", "tests/other")
    assert result.stdout == "Removed tiny\nRemoved other\n"
    assert own.json("list", "--json") == []
    assert not (own.models / "tests").exists()


def test_a_running_server_removes_the_models_that_it_serves(own: CommandLine) -> None:
    server = own.start_server()
    server.ask("POST", "/api/chat", {"model": "tiny", "messages": []})
    assert own.run("rm", "tiny").exit_code == 0
    assert server.worker.engine.unloads == ["tests/tiny"]
    assert [model["name"] for model in own.json("list", "--json")] == ["other"]


def test_a_server_of_other_models_is_left_out_of_it(own: CommandLine, tiny_models: Path) -> None:
    own.start_server(tiny_models)
    own.run("rm", "tiny")
    assert own.asked == []
    assert [model["name"] for model in own.json("list", "--json")] == ["other"]


def test_a_folder_that_is_named_is_worked_on_from_here(own: CommandLine) -> None:
    own.start_server()
    own.run("rm", "tiny", "--models-dir", str(own.models))
    assert own.asked == []


def test_a_model_has_another_name_as_well(own: CommandLine) -> None:
    assert own.run("cp", "tiny", "mine").stdout == "Copied tiny to mine\n"
    assert [model["name"] for model in own.json("list", "--json")] == ["mine", "other", "tiny"]
    own.start_server()
    assert own.run("cp", "mine", "yours", "--host", "127.0.0.1").exit_code == 0
    assert "yours" in [model["name"] for model in own.json("list", "--json")]


def test_a_name_that_cannot_be_is_refused(own: CommandLine) -> None:
    result = own.run("cp", "tiny", "../mine")
    assert result.exit_code == 1
    assert "destination" in result.stderr


def test_the_key_is_sent_and_without_it_one_is_told_where_it_goes(command_line: CommandLine) -> None:
    from osaurus.web.guard import Guard

    command_line.start_server(guard=Guard(("secret",)))
    result = command_line.run("list", "--host", "127.0.0.1")
    assert result.exit_code == 1
    assert "OSU_API_KEY" in result.stderr
    command_line.environ["OSU_API_KEY"] = "secret"
    assert command_line.run("list", "--host", "127.0.0.1").exit_code == 0


# Importing.


def scripted_import(path: Path, folder: Path, tell: Callable[[ImportProgress], None], name: str | None) -> str:
    if not path.exists():
        raise ImportFailed(f"There is no file {path}")
    for done in (0, 50, 100):
        tell(ImportProgress(done, 100))
    return f"local/{name or path.stem}"


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, and an import that does not look into it."""
    monkeypatch.setattr(models, "import_gguf", scripted_import)
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF")
    return path


def test_a_file_is_imported_under_its_own_name_or_another(command_line: CommandLine, gguf: Path) -> None:
    result = command_line.run("import", str(gguf))
    assert (result.exit_code, result.stdout) == (0, "Imported local/small\n")
    assert result.stderr.splitlines() == ["importing small.gguf", "success"]
    assert command_line.run("import", str(gguf), "--name", "mine").stdout == "Imported local/mine\n"


def test_an_import_tells_each_step_as_a_line_of_json(command_line: CommandLine, gguf: Path) -> None:
    lines = [json.loads(line) for line in command_line.run("import", str(gguf), "--json").stdout.splitlines()]
    assert lines[1:] == [
        {"status": "importing small.gguf", "total": 100, "completed": 50},
        {"status": "importing small.gguf", "total": 100, "completed": 100},
        {"status": "success"},
    ]


def test_an_import_that_fails_is_one_line(command_line: CommandLine, gguf: Path) -> None:
    result = command_line.run("import", "none.gguf")
    assert (result.exit_code, result.stderr) == (1, "Error: There is no file none.gguf\n")


def test_what_is_no_gguf_is_refused_by_the_real_import(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("not a model")
    result = command_line.run("import", str(tmp_path / "notes.gguf"), "--models-dir", str(tmp_path / "models"))
    assert result.exit_code == 1
    assert "notes.gguf was not imported" in result.stderr


# Pulling.


def scripted_pull(name: str, folder: Path, tell: Tell, quantize: int | None, cache: object) -> None:
    if name == "huge":
        raise PullError("'huge' names no model")
    tell(Progress("pulling manifest" if quantize is None else f"pulling for {quantize} bits"))
    tell(Progress("pulling weights", "sha256:1", 100, 50))
    tell(Progress("pulling weights", "sha256:1", 100, 100))
    tell(Progress("success"))


def test_a_pull_tells_each_stage_once_into_a_pipe(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "pull", scripted_pull)
    result = command_line.run("pull", "tiny")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == ["pulling manifest", "pulling weights", "success"]


def test_a_pull_tells_each_step_as_a_line_of_json(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "pull", scripted_pull)
    lines = [json.loads(line) for line in command_line.run("pull", "tiny", "--json").stdout.splitlines()]
    assert lines == [
        {"status": "pulling manifest"},
        {"status": "pulling weights", "digest": "sha256:1", "total": 100, "completed": 50},
        {"status": "pulling weights", "digest": "sha256:1", "total": 100, "completed": 100},
        {"status": "success"},
    ]


def test_a_pull_that_fails_is_one_line(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "pull", scripted_pull)
    result = command_line.run("pull", "huge")
    assert (result.exit_code, result.stderr) == (1, "Error: 'huge' names no model\n")


def test_weights_are_converted_to_as_many_bits_as_asked(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "pull", scripted_pull)
    assert "pulling for 4 bits" in command_line.run("pull", "tiny", "--quantize", "4").stderr
    assert command_line.run("pull", "tiny", "--quantize", "9").exit_code == 2


def test_a_running_server_pulls_for_its_own_folder(command_line: CommandLine) -> None:
    command_line.start_server()
    command_line.run("pull", "no/such", "--quantize", "4")
    assert command_line.asked == ["POST http://127.0.0.1:1337/api/pull"]
    assert command_line.bodies == [{"model": "no/such", "stream": True, "quantize": 4}]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_pull_whose_terminal_is_closed_ends_in_order(
    hub: FakeHub, tiny_models: Path, tmp_path: Path, number: signal.Signals
) -> None:
    hub.add("org/Tiny", tiny_models / "tests" / "tiny")
    hub.held["model.safetensors"] = threading.Event()
    process = subprocess.Popen(
        [*PROGRAM, "pull", "org/Tiny", "--models-dir", str(tmp_path / "models")],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "HOME": str(tmp_path), "HF_ENDPOINT": hub.endpoint, "OSU_HUB_CACHE": "off"},
        stderr=subprocess.DEVNULL,
    )
    eventually(lambda: under_way(tmp_path / "models"))
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    assert not list((tmp_path / "models").rglob("*.lock"))
    assert list((tmp_path / "models").rglob("*.part"))
