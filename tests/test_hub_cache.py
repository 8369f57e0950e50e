"""The Hugging Face cache: its models are served where they lie, and nothing in it is touched."""

import os
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import LogLevel, capturedLogs

from osaurus.chat import Forbidden, ModelNotFound
from osaurus.library.hub_cache import HubCache
from osaurus.library.store import ModelStore

from .test_store import ids, install, no_tokenizer, shard

FIRST, SECOND = "1" * 40, "2" * 40


def entry(cache: Path, repository: str) -> Path:
    return cache / f"models--{repository.replace('/', '--')}"


def fetch(cache: Path, repository: str, commit: str = FIRST, ref: bool = True, **config: Any) -> Path:
    """Lay out a repository as huggingface_hub does; return the snapshot."""
    made = install(cache.parent / "made" / commit, repository, **config)
    snapshot = entry(cache, repository) / "snapshots" / commit
    snapshot.mkdir(parents=True)
    blobs = entry(cache, repository) / "blobs"
    blobs.mkdir(exist_ok=True)
    for path in made.iterdir():
        blob = blobs / sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    if ref:
        (entry(cache, repository) / "refs").mkdir(exist_ok=True)
        (entry(cache, repository) / "refs" / "main").write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "hub"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path, cache: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", HubCache(cache))


def contents(folder: Path) -> Sequence[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def test_a_model_in_the_cache_is_read_where_it_lies(store: ModelStore, cache: Path) -> None:
    snapshot = fetch(cache, "mlx-community/Tiny-4bit")
    [model] = store.models()
    assert (model.id, model.repository, model.folder) == ("tiny-4bit", "mlx-community/Tiny-4bit", snapshot)
    assert model.size > 300
    assert store.find("mlx-community/tiny-4bit") == store.find("Tiny-4bit:latest") == model
    assert store.digest(model).startswith("sha256:")


def test_its_digest_is_that_of_the_same_model_elsewhere_and_large_files_are_not_read_for_it(
    store: ModelStore, cache: Path
) -> None:
    snapshot = fetch(cache, "org/Tiny")
    shutil.copytree(snapshot, store.folder / "org" / "Other")
    digests = {model.id: store.digest(model) for model in store.models()}
    assert digests["tiny"] == digests["other"]
    blob = (snapshot / "model.safetensors").resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert store.digest(store.find("tiny")) == digests["tiny"]


def test_it_appears_and_goes_without_a_restart(store: ModelStore, cache: Path) -> None:
    assert store.models() == []
    fetch(cache, "org/Tiny")
    assert ids(store) == ["tiny"]
    shutil.rmtree(entry(cache, "org/Tiny"))
    assert ids(store) == []


def test_a_cache_need_not_be_there(tmp_path: Path) -> None:
    assert ModelStore(tmp_path, HubCache(tmp_path / "nowhere")).models() == []
    (tmp_path / "file").write_text("")
    assert ModelStore(tmp_path, HubCache(tmp_path / "file")).models() == []


def test_the_commit_that_main_names_is_used(store: ModelStore, cache: Path) -> None:
    fetch(cache, "org/Tiny", SECOND)
    snapshot = fetch(cache, "org/Tiny", FIRST)
    assert store.find("tiny").folder == snapshot
    (entry(cache, "org/Tiny") / "refs" / "main").write_text(SECOND)
    assert store.find("tiny").folder.name == SECOND


@pytest.mark.parametrize("main", [None, "3" * 40, "../../../../x", "", "\xff"])
def test_without_it_the_newest_is(store: ModelStore, cache: Path, main: str | None) -> None:
    for age, commit in enumerate((SECOND, FIRST)):
        os.utime(fetch(cache, "org/Tiny", commit, ref=False), (10**9 - age, 10**9 - age))
    if main is not None:
        (entry(cache, "org/Tiny") / "refs").mkdir()
        (entry(cache, "org/Tiny") / "refs" / "main").write_text(main, "latin-1")
    assert store.find("tiny").folder.name == SECOND


def test_what_is_no_model_repository_is_not_looked_at(store: ModelStore, cache: Path) -> None:
    fetch(cache, "org/Tiny").parent.parent.rename(cache / "datasets--org--Tiny")
    (cache / "models--org--Empty").mkdir()
    (cache / "models--org--File").write_text("")
    (cache / ".locks" / "models--org--Tiny").mkdir(parents=True)
    (cache / "models--..--..").mkdir()
    with capturedLogs() as events:
        assert store.models() == []
    assert events == []


def test_one_that_is_not_complete_is_passed_over(store: ModelStore, cache: Path) -> None:
    snapshot = fetch(cache, "org/Tiny")
    shard(snapshot, ["model.safetensors", "model-00002-of-00002.safetensors"])
    assert store.models() == []


def test_a_link_that_leads_nowhere_is_a_file_that_is_missing(store: ModelStore, cache: Path) -> None:
    snapshot = fetch(cache, "org/Tiny")
    (snapshot / "model.safetensors").resolve().unlink()
    assert store.models() == []


def test_what_the_cache_holds_for_others_is_no_warning(store: ModelStore, cache: Path) -> None:
    fetch(cache, "sentence-transformers/all-MiniLM", model_type="bert")
    no_tokenizer(fetch(cache, "openai/whisper"))
    with capturedLogs() as events:
        assert store.models() == []
    assert {event["log_level"] for event in events} == {LogLevel.info}


def test_a_repository_without_an_organisation_has_its_name(store: ModelStore, cache: Path) -> None:
    fetch(cache, "gpt2", model_type="gpt2")
    [model] = store.models()
    assert (model.id, model.repository) == ("gpt2", "gpt2")


def test_our_own_copy_of_a_repository_comes_first(store: ModelStore, cache: Path) -> None:
    fetch(cache, "org/Tiny")
    folder = install(store.folder, "Org/tiny")
    [model] = store.models()
    assert (model.id, model.folder) == ("tiny", folder)


def test_our_own_models_keep_their_ids(store: ModelStore, cache: Path) -> None:
    fetch(cache, "alpha/Tiny")
    install(store.folder, "beta/Tiny")
    assert [(model.id, model.repository) for model in store.models()] == [
        ("tiny", "beta/Tiny"),
        ("alpha/tiny", "alpha/Tiny"),
    ]


def test_nothing_in_the_cache_is_deleted(store: ModelStore, cache: Path) -> None:
    fetch(cache, "org/Tiny")
    before = contents(cache)
    with pytest.raises(Forbidden, match="Hugging Face cache"):
        store.take_away(store.find("tiny"))
    assert contents(cache) == before


def test_a_copy_of_what_is_in_the_cache_is_ours(store: ModelStore, cache: Path) -> None:
    fetch(cache, "org/Tiny")
    store.folder.mkdir()
    before = contents(cache)
    store.copy(store.find("tiny"), "mine")
    assert contents(cache) == before
    store.remove(store.take_away(store.find("mine")))
    assert ids(store) == ["tiny"]
    with pytest.raises(ModelNotFound):
        store.find("mine")
