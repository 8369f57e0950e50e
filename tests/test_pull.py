"""Pulling a model from a hub: whole and checked, or not at all, and nothing twice."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import define, field
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from osaurus.engine.backend import Backend
from osaurus.library import pull as pulling
from osaurus.library.hub import Hub
from osaurus.library.hub_cache import HubCache
from osaurus.library.names import SHORT_NAMES
from osaurus.library.progress import AccessDenied, NoSuchRepository, Progress, PullError
from osaurus.library.pull import pull
from osaurus.library.store import ModelStore

from .conftest import write_tiny_model
from .hub import FakeHub
from .test_hub_cache import fetch
from .test_store import install, shard

NAME = "mlx-community/Tiny-4bit"
WEIGHTS = "model.safetensors"


@define
class Puller:
    """Pulls from a hub into a models folder, and keeps what it is told."""

    hub: FakeHub
    models: Path
    told: list[Progress] = field(factory=list)

    def pull(self, name: str = NAME, token: str | None = None, **options: Any) -> str:
        self.told.clear()
        hub = Hub(self.hub.endpoint, token, sleep=lambda _: None)
        return pull(name, self.models, self.told.append, hub=hub, **options)

    def fails(self, why: str, name: str = NAME, **options: Any) -> PullError:
        """Pull in vain; return the error, which is of one line, and leaves nothing to be listed."""
        with pytest.raises(PullError, match=why) as caught:
            self.pull(name, **options)
        assert "\n" not in str(caught.value)
        assert ModelStore(self.models).models() == []
        assert "success" not in self.statuses
        return caught.value

    @property
    def statuses(self) -> list[str]:
        return list(dict.fromkeys(progress.status for progress in self.told))

    @property
    def left(self) -> list[str]:
        """The names of what an attempt left for the next one."""
        return sorted(path.name for path in self.models.rglob(".pulling/*/*"))


@pytest.fixture
def puller(hub: FakeHub, tmp_path: Path) -> Puller:
    return Puller(hub, tmp_path / "models")


@pytest.fixture
def source(tmp_path: Path, tiny_models: Path) -> Path:
    """What the hub has: the tiny model, and what a pull should leave alone."""
    folder = tmp_path / "source"
    shutil.copytree(tiny_models / "tests" / "tiny", folder)
    for name in ("pytorch_model.bin", "modeling_tiny.py", "README.md", "model.gguf", ".gitattributes", "model.onnx"):
        (folder / name).write_bytes(b"not wanted")
    (folder / "LICENSE").write_text("MIT")
    (folder / "generation_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def repository(hub: FakeHub, source: Path) -> Path:
    hub.add(NAME, source)
    return source


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# A model that is there.


def test_a_model_is_fetched_and_found(puller: Puller, repository: Path) -> None:
    assert puller.pull() == "tiny-4bit"
    found = ModelStore(puller.models).find(NAME)
    assert found.folder == puller.models / NAME
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        WEIGHTS,
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for path in found.folder.iterdir():
        assert path.read_bytes() == (repository / path.name).read_bytes()
    # Nothing of the way is left.
    assert [path.name for path in puller.models.iterdir()] == ["mlx-community"]


def test_each_stage_and_every_files_progress_is_told(puller: Puller, repository: Path) -> None:
    puller.pull()
    sha256, size = digest(repository / WEIGHTS), (repository / WEIGHTS).stat().st_size
    assert puller.statuses[0] == "pulling manifest"
    assert puller.statuses[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    weights = [progress for progress in puller.told if progress.digest == f"sha256:{sha256}"]
    assert weights[0] == Progress(f"pulling {sha256[:12]}", f"sha256:{sha256}", size, 0)
    assert weights[-1].completed == size


@pytest.mark.usefixtures("repository")
def test_what_is_installed_is_not_fetched_again(puller: Puller, hub: FakeHub) -> None:
    puller.pull()
    asked = len(hub.requests)
    assert puller.pull(NAME.lower()) == "tiny-4bit"
    assert puller.statuses == ["pulling manifest", "success"]
    assert len(hub.requests) == asked


def test_what_is_in_the_hub_cache_is_not_fetched(puller: Puller, hub: FakeHub, tmp_path: Path) -> None:
    fetch(tmp_path / "hub", NAME)
    assert puller.pull(cache=HubCache(tmp_path / "hub")) == "tiny-4bit"
    assert puller.statuses == ["pulling manifest", "success"]
    assert hub.requests == []
    assert not puller.models.exists()


@pytest.mark.usefixtures("repository")
def test_the_folder_is_spelt_as_the_hub_spells_it(puller: Puller) -> None:
    puller.pull("MLX-Community/tiny-4BIT:latest")
    assert (puller.models / NAME).is_dir()


def test_a_short_name_stands_for_a_repository(
    puller: Puller, hub: FakeHub, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHORT_NAMES, "tiny:4b", NAME)
    hub.add(NAME, source)
    assert puller.pull("Tiny:4B") == "tiny-4bit"
    assert ModelStore(puller.models).find("tiny:4b").repository == NAME


def test_a_model_in_several_files_is_fetched_by_its_index(puller: Puller, hub: FakeHub, source: Path) -> None:
    weights = "model-00001-of-00001.safetensors"
    (source / WEIGHTS).rename(source / weights)
    shard(source, [weights])
    (source / "consolidated.safetensors").write_bytes(b"the same once more")
    hub.add(NAME, source)
    puller.pull()
    found = ModelStore(puller.models).find(NAME).folder
    assert (found / weights).exists()
    assert not (found / "consolidated.safetensors").exists()


def test_files_that_are_the_same_are_fetched_once(puller: Puller, hub: FakeHub, source: Path) -> None:
    (source / "LICENSE.txt").write_text("MIT")
    hub.add(NAME, source)
    puller.pull()
    assert (puller.models / NAME / "LICENSE.txt").read_text() == (puller.models / NAME / "LICENSE").read_text()
    assert sum("/LICENSE" in path for path, _ in hub.requests) == 1


@pytest.mark.usefixtures("no_links")
def test_a_disk_without_hard_links_has_files_that_are_the_same(puller: Puller, hub: FakeHub, source: Path) -> None:
    (source / "LICENSE.txt").write_text("MIT")
    hub.add(NAME, source)
    puller.pull()
    assert {(puller.models / NAME / name).read_text() for name in ("LICENSE", "LICENSE.txt")} == {"MIT"}
    assert sum("/LICENSE" in path for path, _ in hub.requests) == 1


# Cuts, and what came before.


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without hard links, as exFAT and many shares on a network are."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(Path, "hardlink_to", refuse)


@pytest.mark.usefixtures("no_links")
def test_a_disk_without_hard_links_keeps_what_was_fetched_as_well(puller: Puller, hub: FakeHub, source: Path) -> None:
    from safetensors.numpy import load_file

    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    weights = load_file(source / WEIGHTS)
    names = sorted(weights)
    for shard_name, part in ((first, names[::2]), (second, names[1::2])):
        save_file({name: weights[name] for name in part}, source / shard_name, metadata={"format": "mlx"})
    places = {name: (first, second)[number % 2] for number, name in enumerate(names)}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (source / WEIGHTS).unlink()
    hub.add(NAME, source)
    hub.statuses[second] = [503] * 6
    puller.fails("the server answers 503")
    puller.pull()
    assert len(hub.asked(first)) == 1


@pytest.mark.parametrize("cuts", [[100], [1, 70_000], [0, 0, 5, 0, 0, 0, 3]])
def test_a_connection_that_is_cut_is_gone_on_with(
    puller: Puller, hub: FakeHub, repository: Path, cuts: list[int]
) -> None:
    hub.cuts[WEIGHTS] = list(cuts)
    puller.pull()
    assert digest(puller.models / NAME / WEIGHTS) == digest(repository / WEIGHTS)
    beginnings = [int((headers.get("range") or "bytes=0-")[6:-1]) for headers in hub.asked(WEIGHTS)]
    assert beginnings == [sum(cuts[:number]) for number in range(len(cuts) + 1)]


def test_what_one_attempt_fetched_the_next_one_has(puller: Puller, hub: FakeHub, repository: Path) -> None:
    hub.cuts[WEIGHTS] = [1000, *[0] * 9]
    puller.fails("1000 of .* Try again")
    assert f"{digest(repository / WEIGHTS)}.part" in puller.left
    hub.cuts.clear()
    hub.requests.clear()
    puller.pull()
    assert [headers["range"] for headers in hub.asked(WEIGHTS)] == ["bytes=1000-"]
    assert not any("/resolve/" in path and path.endswith("config.json") for path, _ in hub.requests)
    assert not (puller.models / ".pulling").exists()


@pytest.mark.usefixtures("repository")
def test_a_commit_that_came_in_between_is_not_mixed_with_the_one_before(
    puller: Puller, hub: FakeHub, source: Path
) -> None:
    hub.cuts[WEIGHTS] = [1000, *[0] * 9]
    puller.fails("Try again")
    hub.cuts.clear()
    (source / "LICENSE").write_text("Apache-2.0")
    hub.add(NAME, source, commit="d" * 40)
    puller.pull()
    assert (puller.models / NAME / "LICENSE").read_text() == "Apache-2.0"
    assert [headers.get("range") for headers in hub.asked(WEIGHTS)][-1] == "bytes=1000-"


def test_a_server_without_ranges_sends_all_again(puller: Puller, hub: FakeHub, repository: Path) -> None:
    hub.ranges = False
    hub.cuts[WEIGHTS] = [1000, 2000]
    puller.pull()
    assert digest(puller.models / NAME / WEIGHTS) == digest(repository / WEIGHTS)


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("page", [b"", b"\xfcberlastet", b'["bad gateway"]'])
def test_a_server_that_is_busy_is_asked_again(puller: Puller, hub: FakeHub, page: bytes) -> None:
    hub.statuses[WEIGHTS], hub.refusal = [503, 429], page
    assert puller.pull() == "tiny-4bit"


@pytest.mark.usefixtures("repository")
def test_a_server_that_stays_busy_is_an_error(puller: Puller, hub: FakeHub) -> None:
    hub.statuses[WEIGHTS] = [503] * 20
    puller.fails("the server answers 503")


@pytest.mark.parametrize("file", [WEIGHTS, "tokenizer.json"])
def test_a_file_that_is_not_the_expected_one_is_thrown_away(
    puller: Puller, hub: FakeHub, repository: Path, file: str
) -> None:
    hub.repositories[NAME].corrupt = {file}
    puller.fails(f"{file} is not the expected file and was thrown away")
    assert not any(name.endswith(".part") for name in puller.left)
    hub.repositories[NAME].corrupt = set()
    assert puller.pull() == "tiny-4bit"
    assert digest(puller.models / NAME / file) == digest(repository / file)


@pytest.mark.usefixtures("repository")
def test_a_part_that_is_too_long_is_begun_anew(puller: Puller, hub: FakeHub, source: Path) -> None:
    folder = puller.models / ".pulling" / NAME.lower().replace("/", "--")
    folder.mkdir(parents=True)
    (folder / f"{digest(source / WEIGHTS)}.part").write_bytes(b"x" * 10**6)
    assert puller.pull() == "tiny-4bit"


def test_what_nobody_came_back_for_is_thrown_away(puller: Puller, repository: Path) -> None:
    old, recent = (puller.models / ".pulling" / name for name in ("org--old", "org--recent"))
    for folder, age in ((old, 8), (recent, 6)):
        folder.mkdir(parents=True)
        (folder / "a.part").write_text("x")
        os.utime(folder / "a.part", (time.time() - age * 86400,) * 2)
    puller.pull()
    assert not old.exists()
    assert recent.exists()


@pytest.mark.usefixtures("repository")
def test_only_one_process_pulls_a_model(puller: Puller) -> None:
    (puller.models / ".pulling").mkdir(parents=True)
    lock = puller.models / ".pulling" / f"{NAME.lower().replace('/', '--')}.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        puller.fails("being pulled by another process")
    assert puller.pull() == "tiny-4bit"


# Who is let in.


@pytest.mark.usefixtures("repository")
def test_a_gated_repository_takes_a_token(puller: Puller, hub: FakeHub) -> None:
    hub.repositories[NAME].gated = True
    error = puller.fails(f"for those who have asked for access at {hub.endpoint}/{NAME}; .* HF_TOKEN")
    assert isinstance(error, AccessDenied)
    assert isinstance(puller.fails("of somebody who has not", token="hf_wrong"), AccessDenied)
    assert puller.pull(token=hub.token) == "tiny-4bit"


@pytest.mark.usefixtures("repository")
def test_the_token_goes_to_the_hub_and_nowhere_else(puller: Puller, hub: FakeHub) -> None:
    puller.pull(token=hub.token)
    assert hub.asked(WEIGHTS)
    for path, headers in hub.requests:
        assert headers.get("authorization") == (None if "/content/" in path else f"Bearer {hub.token}")


@pytest.mark.usefixtures("repository")
def test_a_private_repository_is_not_there_without_a_token(puller: Puller, hub: FakeHub) -> None:
    hub.repositories[NAME].private = True
    assert isinstance(puller.fails("There is no .* unless it is private"), NoSuchRepository)
    assert puller.pull(token=hub.token) == "tiny-4bit"


def test_a_repository_that_is_not_there_is_named(puller: Puller, hub: FakeHub) -> None:
    assert isinstance(puller.fails(f"There is no org/none at {hub.endpoint}", "org/none"), NoSuchRepository)
    assert puller.left == []


@pytest.mark.parametrize(
    "name",
    [
        "llama9",
        "",
        "../escape",
        "org/..",
        "org/.hidden",
        "org/a/b",
        "/etc/passwd",
        "org/na me",
        "org/name?x=1",
        "org/name#x",
        "org/name@main",
        "http://evil.example/org/name",
        "evil.example/org/name",
        "org//name",
        "org/a--b",
        "org/a..b",
        "org/name.git",
        "org/ünï",
        "org\\name",
        "org/name\0",
        "org/" + "x" * 97,
    ],
)
def test_a_name_that_is_none_reaches_no_hub_and_no_disk(puller: Puller, hub: FakeHub, name: str) -> None:
    error = puller.fails("names no model", name)
    assert isinstance(error, NoSuchRepository)
    assert "smollm2:135m" in str(error)
    assert hub.requests == []
    assert not puller.models.exists()


def test_a_hub_that_is_not_reached_is_named(puller: Puller) -> None:
    puller.hub.endpoint = "http://127.0.0.1:9"
    puller.fails("http://127.0.0.1:9 cannot be reached: .* HF_ENDPOINT")


# What is no model, told before gigabytes are fetched.


def change(source: Path, **fields: Any) -> None:
    content = {**json.loads((source / "config.json").read_text()), **fields}
    (source / "config.json").write_text(json.dumps(content))


def pickles(source: Path) -> None:
    (source / WEIGHTS).unlink()
    (source / "model.gguf").unlink()


def gguf(source: Path) -> None:
    (source / WEIGHTS).unlink()
    (source / "pytorch_model.bin").unlink()


def sees(source: Path) -> None:
    index = {"weight_map": {"language_model.x": WEIGHTS, "vision_tower.x": WEIGHTS}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def incomplete(source: Path) -> None:
    shard(source, [WEIGHTS, "model-00002-of-00002.safetensors"])


def incomplete_without_an_index(source: Path) -> None:
    shutil.copy(source / WEIGHTS, source / "model-00002-of-00003.safetensors")
    shutil.copy(source / WEIGHTS, source / "model-00003-of-00003.safetensors")


def elsewhere(source: Path) -> None:
    shard(source, ["../../../../etc/passwd"])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda source: (source / "config.json").unlink(), "lacks config.json or tokenizer.json"),
        (lambda source: (source / "tokenizer.json").unlink(), "lacks config.json or tokenizer.json"),
        (lambda source: change(source, model_type="bert"), "'bert', is not one that mlx-lm can run"),
        (lambda source: change(source, model_file="model.py"), "run code of its own"),
        (
            lambda source: change(source, quantization=None, quantization_config={"quant_method": "bitsandbytes"}),
            r"quantised in a way \(bitsandbytes\) that mlx-lm does not read",
        ),
        (pickles, "no weights in safetensors files, only .bin"),
        (gguf, "only .gguf; a GGUF file can be imported"),
        (sees, "for images or sound"),
        (incomplete, "the hub has no model-00002-of-00002.safetensors"),
        (incomplete_without_an_index, "the hub has no model-00001-of-00003.safetensors"),
        (elsewhere, "names files outside the folder"),
    ],
)
def test_what_cannot_be_served_is_refused_early(
    puller: Puller, hub: FakeHub, source: Path, damage: Callable[[Path], object], why: str
) -> None:
    damage(source)
    hub.add(NAME, source)
    puller.fails(why)
    assert hub.asked(WEIGHTS) == []


def test_weights_that_are_no_safetensors_are_refused_in_the_end(puller: Puller, hub: FakeHub, source: Path) -> None:
    (source / WEIGHTS).write_bytes(b"\xff" * 100)
    hub.add(NAME, source)
    puller.fails("is damaged")


@pytest.mark.usefixtures("repository")
def test_too_little_room_is_told_before_anything_large_is_fetched(
    puller: Puller, hub: FakeHub, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (source / WEIGHTS).stat().st_size
    usage = shutil.disk_usage(source)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=pulling.MARGIN + size - 1))
    puller.fails(f"not enough room in {puller.models}: .* GiB are needed")
    assert hub.asked(WEIGHTS) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=pulling.MARGIN + size))
    assert puller.pull() == "tiny-4bit"


def test_a_folder_in_the_way_that_is_no_model_is_named_and_left_alone(puller: Puller, repository: Path) -> None:
    folder = puller.models / NAME
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    puller.fails("is no usable model; move it away")
    assert (folder / "mine.txt").exists()


@pytest.mark.usefixtures("repository")
def test_nothing_is_written_through_a_link_out_of_the_models_folder(puller: Puller, tmp_path: Path) -> None:
    puller.models.mkdir()
    (tmp_path / "outside").mkdir()
    (puller.models / "mlx-community").symlink_to(tmp_path / "outside")
    puller.fails("is a link out of the models folder")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.usefixtures("repository")
def test_a_models_folder_that_cannot_be_written_is_named(puller: Puller) -> None:
    puller.models.write_text("a file")
    with pytest.raises(PullError, match=f"could not be stored in {puller.models}"):
        puller.pull()


# Weights of another kind.


@pytest.fixture
def foreign(hub: FakeHub, tmp_path: Path, tiny_tokenizer: Tokenizer, backend: Backend) -> Path:
    """The tiny model as other programs write it."""
    from safetensors.numpy import load_file

    folder = tmp_path / "foreign"
    write_tiny_model(folder, tiny_tokenizer)
    weights = load_file(folder / WEIGHTS)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    change(folder, auto_map={"AutoModelForCausalLM": "evil.Model"}, torch_dtype="float32")
    (folder / "LICENSE").write_text("MIT")
    hub.add("org/Foreign", folder, tags=["transformers"])
    return folder


def test_weights_that_are_not_mlxs_are_converted(puller: Puller, foreign: Path) -> None:
    assert puller.pull("org/Foreign") == "foreign"
    assert "converting" in puller.statuses
    model = ModelStore(puller.models).find("org/foreign")
    assert model.quantization == "F32"
    assert (model.folder / "LICENSE").read_text() == "MIT"
    header = (model.folder / WEIGHTS).read_bytes()[8:2000]
    assert b'"format":"mlx"' in header
    assert not (puller.models / ".pulling").exists()


@pytest.mark.usefixtures("foreign")
def test_weights_are_quantised_as_asked_under_a_name_of_its_own(puller: Puller, backend: Backend, desk: Any) -> None:
    assert puller.pull("org/Foreign", quantize=4) == "foreign-4bit"
    assert "quantizing to 4 bits" in puller.statuses
    model = ModelStore(puller.models).find("org/foreign-4bit")
    assert model.quantization == "Q4"
    assert desk.engine.load("quantised", model.folder).context_length == 512
    assert puller.pull("org/Foreign", quantize=4) == "foreign-4bit"
    assert puller.statuses == ["pulling manifest", "success"]


def test_what_cannot_be_converted_is_told_and_left_for_another_attempt(
    puller: Puller, hub: FakeHub, foreign: Path
) -> None:
    save_file({"nothing": np.zeros(3, np.float32)}, foreign / WEIGHTS, metadata={"format": "pt"})
    hub.add("org/Foreign", foreign, tags=[])
    puller.fails("could not be converted: ValueError", "org/Foreign")


def test_quantised_weights_are_not_quantised_again(puller: Puller, hub: FakeHub, source: Path) -> None:
    change(source, quantization={"bits": 4, "group_size": 64})
    hub.add(NAME, source)
    puller.fails("is quantised already", quantize=8)


@pytest.mark.parametrize("bits", [0, 1, 7, 16, -4])
def test_bits_that_mlx_cannot_pack_are_refused(puller: Puller, bits: int) -> None:
    puller.fails("2, 3, 4, 5, 6, 8 bits, not", quantize=bits)


def test_a_model_of_the_same_name_keeps_its_id(puller: Puller, repository: Path) -> None:
    install(puller.models, "another/Tiny-4bit")
    assert puller.pull() == "mlx-community/tiny-4bit"
