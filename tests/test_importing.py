"""Importing a GGUF file: a model in the models folder that can be used, or one line and nothing else."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tokenizers import Tokenizer

import osaurus
from osaurus.engine.backend import Backend
from osaurus.library.gguf.__main__ import seconds
from osaurus.library.importing import ImportFailed, ImportProgress, import_gguf, repository_of
from osaurus.library.store import ModelStore

from .test_gguf import write_gguf

SOURCES = str(Path(osaurus.__file__).parents[1])


def nobody(progress: ImportProgress) -> None:
    pass


def failure(path: Path, models: Path) -> str:
    """Return why a file is not imported; it is one line, and nothing is left."""
    before = sorted(models.rglob("*")) if models.exists() else []
    with pytest.raises(ImportFailed) as caught:
        import_gguf(path, models, nobody)
    assert (sorted(models.rglob("*")) if models.exists() else []) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_parts(folder: Path, tokenizer: Tokenizer, count: int = 3) -> list[Path]:
    """Write a model to as many files, as llama.cpp's program that splits them does: metadata in the first."""
    write_gguf(folder / "whole.gguf", tokenizer)
    reader = gguf.GGUFReader(folder / "whole.gguf")
    tensors = list(reader.tensors)
    paths = []
    for number in range(count):
        path = folder / f"model-{number + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            for field in reader.fields.values():
                if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                    kinds = [*field.types, None]
                    writer.add_key_value(field.name, field.contents(), kinds[0], sub_type=kinds[1])
        else:
            writer.kv_data[0].pop("general.architecture")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(tensors))
        for tensor in tensors[number::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    (folder / "whole.gguf").unlink()
    return paths


def test_a_file_becomes_a_model_that_the_store_finds_and_nothing_else(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    write_gguf(tmp_path / "Tiny Model.Q4.gguf", tiny_tokenizer)
    models = tmp_path / "models"
    told: list[ImportProgress] = []
    assert import_gguf(tmp_path / "Tiny Model.Q4.gguf", models, told.append) == "local/Tiny-Model.Q4"
    assert ModelStore(models).find("tiny-model.q4").folder == models / "local" / "Tiny-Model.Q4"
    assert [path.name for path in models.iterdir()] == ["local"]
    assert told[-1].done == told[-1].total > 0
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)


def test_an_imported_model_can_be_loaded_and_asked(tmp_path: Path, tiny_tokenizer: Tokenizer, backend: Backend) -> None:
    from osaurus.engine.loader import load

    write_gguf(tmp_path / "tiny.gguf", tiny_tokenizer)
    import_gguf(tmp_path / "tiny.gguf", tmp_path / "models", nobody, name="org/tiny")
    model = load("tiny", tmp_path / "models" / "org" / "tiny", backend, 2**30, lambda nbytes: None)
    assert model.end_tokens == {tiny_tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")}
    assert model.tokenizer.encode("hello").ids == tiny_tokenizer.encode("hello").ids


@pytest.mark.parametrize("given", range(3))
def test_any_part_of_a_model_in_several_files_brings_the_others(
    given: int, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    parts = write_parts(tmp_path, tiny_tokenizer)
    models = tmp_path / "models"
    assert import_gguf(parts[given], models, nobody) == "local/model"
    assert ModelStore(models).find("local/model").family == "llama"


def test_a_part_that_is_missing_is_named(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    parts = write_parts(tmp_path, tiny_tokenizer)
    parts[1].unlink()
    assert "model-00002-of-00003.gguf is missing" in failure(parts[0], tmp_path / "models")


def test_a_part_that_was_cut_is_named(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    parts = write_parts(tmp_path, tiny_tokenizer)
    os.truncate(parts[2], parts[2].stat().st_size - 100)
    assert "model-00003-of-00003.gguf is damaged or cut" in failure(parts[0], tmp_path / "models")


def test_a_part_in_the_place_of_another_is_named(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    parts = write_parts(tmp_path, tiny_tokenizer)
    parts[2].write_bytes(parts[1].read_bytes())
    assert "model-00003-of-00003.gguf is not part 3 of 3" in failure(parts[0], tmp_path / "models")


def test_a_part_under_another_name_is_told_how_it_should_be_named(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    parts = write_parts(tmp_path, tiny_tokenizer)
    parts[0].rename(tmp_path / "other.gguf")
    assert "model-00001-of-00003.gguf" in failure(tmp_path / "other.gguf", tmp_path / "models")


@pytest.mark.parametrize(
    ("file", "name", "repository"),
    [
        ("Qwen3-4B-Q4_K_M.gguf", None, "local/Qwen3-4B-Q4_K_M"),
        ("big-00002-of-00007.gguf", None, "local/big"),
        ("a b(c).gguf", None, "local/a-b-c"),
        (f"{'x' * 95}-{'y' * 95}.gguf", None, f"local/{'x' * 95}"),
        (".hidden.gguf", None, "local/hidden"),
        ("x.gguf", "mine", "local/mine"),
        ("x.gguf", "me/mine", "me/mine"),
    ],
)
def test_a_model_is_called_as_asked_or_as_its_file(file: str, name: str | None, repository: str) -> None:
    assert repository_of(Path(file), name) == repository


@pytest.mark.parametrize("name", ["", "../x", "a/b/c", "/x", ".x", "a/.x", "x y", "x-", "x" * 97])
def test_a_name_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ImportFailed, match=re.escape(repr(name))):
        import_gguf(tmp_path / "x.gguf", tmp_path / "models", nobody, name=name)
    assert not (tmp_path / "models").exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none.gguf") in failure(tmp_path / "none.gguf", tmp_path / "models")


def test_a_folder_in_the_place_of_the_file_is_told_to_be_none(tmp_path: Path) -> None:
    assert failure(tmp_path, tmp_path / "models") == f"{tmp_path} is no file"


def test_a_model_that_is_there_is_left_alone(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "x.gguf", tiny_tokenizer)
    folder = tmp_path / "models" / "local" / "x"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    assert "exists already" in failure(tmp_path / "x.gguf", tmp_path / "models")
    assert (folder / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("content", [b"GGUF", b"", b"\x00" * 1000, b"GGUF" + b"\xff" * 1000])
def test_a_file_that_is_no_model_is_answered_with_a_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    assert "x.gguf" in failure(tmp_path / "x.gguf", tmp_path / "models")


def test_what_is_found_out_late_leaves_nothing_either(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    # The last tensor of the file; all others are written by then.
    values = np.full(64, np.nan, np.float32)
    write_gguf(tmp_path / "x.gguf", tiny_tokenizer, further={"blk.1.ffn_norm.weight": (values, Kind.F32)})
    assert "values that are no numbers" in failure(tmp_path / "x.gguf", tmp_path / "models")


def test_a_models_folder_that_cannot_be_written_is_named(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "x.gguf", tiny_tokenizer)
    (tmp_path / "models").write_text("a file")
    assert f"could not be stored in {tmp_path / 'models'}" in failure(tmp_path / "x.gguf", tmp_path / "models")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -SEGV $$", "ended by SIGSEGV"),
        ("kill -KILL $$", "ended by SIGKILL"),
        ("echo one >&2; echo two >&2; exit 3", "two"),
        ("kill -XCPU $$", "took too long"),
        ("exit 3", "failed"),
    ],
)
def test_a_conversion_that_dies_is_told_and_leaves_nothing(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    program = tmp_path / "program"
    # It is given the folder last, and leaves something there.
    program.write_text(f'#!/bin/sh\nfor folder; do :; done\necho begun > "$folder/config.json"\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert said in failure(tmp_path / "x.gguf", tmp_path / "models")


def test_who_gives_up_leaves_nothing_and_no_process(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "x.gguf", tiny_tokenizer)
    started: list[Any] = []
    popen: Any = subprocess.Popen

    def note(*arguments: Any, **further: Any) -> Any:
        started.append(popen(*arguments, **further))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", note)

    def give_up(progress: ImportProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_gguf(tmp_path / "x.gguf", tmp_path / "models", give_up)
    assert list((tmp_path / "models").iterdir()) == []
    assert [process.poll() is not None for process in started] == [True]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_is_closed_leaves_nothing_and_no_process(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho $$ > pid\necho \'{"done": 1, "total": 2}\'\nexec sleep 60\n')
    program.chmod(0o755)
    code = (
        "import sys\n"
        "from osaurus.command.main import main\n"
        f"sys.executable = {str(program)!r}\n"
        "main(['import', 'x.gguf', '--models-dir', 'models', '--json'], prog_name='osaurus')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": SOURCES},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert b"importing" in process.stdout.readline()
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert list((tmp_path / "models").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_one_left_that_was_killed_is_removed_by_another_a_day_later(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_tokenizer)
    models = tmp_path / "models"
    for name, hours in ((".import-old", 25), (".import-recent", 23)):
        (models / name / "model").mkdir(parents=True)
        (models / name / "model" / "model.safetensors").write_text("x")
        for path in (models / name / "model" / "model.safetensors", models / name / "model"):
            os.utime(path, (time.time() - hours * 3600,) * 2)
    import_gguf(tmp_path / "tiny.gguf", models, nobody)
    assert sorted(path.name for path in models.iterdir()) == [".import-recent", "local"]


@pytest.mark.usefixtures("refused_memory_limits")
def test_a_system_that_bounds_no_memory_imports_as_well(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_tokenizer)
    assert import_gguf(tmp_path / "tiny.gguf", tmp_path / "models", nobody) == "local/tiny"


@pytest.mark.parametrize("name", ["x.gguf", "x.GGUF", f"sha256-{'ab' * 32}"])
def test_a_large_file_may_take_long_whatever_its_name(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(40 * 2**30)
    assert seconds(tmp_path / name) > 40_000


def test_a_file_in_parts_may_take_as_long_as_all_of_them(tmp_path: Path) -> None:
    for number in (1, 2):
        with (tmp_path / f"x-0000{number}-of-00002.gguf").open("wb") as file:
            file.truncate(20 * 2**30)
    assert seconds(tmp_path / "x-00001-of-00002.gguf") > 40_000


def test_the_process_that_waits_imports_nothing_that_reads_files() -> None:
    code = (
        "import sys, osaurus.library.importing\n"
        "heavy = {'mlx', 'numpy', 'gguf', 'tokenizers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
