"""Converting weights runs nothing of a model's own; that what it makes can be used is in test_pull.py."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from osaurus.engine.backend import Backend

from .conftest import write_tiny_model


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def pickled(folder: Path, ran: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "weights.npz"):
        (folder / name).write_bytes(pickle.dumps(Bomb(ran)))


def code_of_its_own(folder: Path, ran: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    for name, fields in (
        ("config.json", {"model_file": "evil.py", "auto_map": {"AutoConfig": "evil.Config"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"}),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **fields}))


@pytest.mark.parametrize(("damage", "why"), [(pickled, "No safetensors found"), (code_of_its_own, "custom module")])
def test_what_would_run_code_is_refused_in_one_line(
    damage: object, why: str, tmp_path: Path, tiny_tokenizer: Tokenizer, backend: Backend
) -> None:
    source, ran = tmp_path / "source", tmp_path / "ran"
    write_tiny_model(source, tiny_tokenizer)
    assert callable(damage)
    damage(source, ran)
    done = subprocess.run(
        [sys.executable, "-m", "osaurus.engine.conversion", str(source), str(tmp_path / "target")],
        input="y\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert why in done.stderr.splitlines()[-1]
    assert not ran.exists()
    assert not (tmp_path / "target").exists()
