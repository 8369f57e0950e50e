"""The models on disk: what is found, by which names, and what is passed over without harm to the rest."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models
from twisted.logger import LogEvent, LogLevel, capturedLogs

from osaurus.chat import Forbidden, InstalledModel, InvalidRequest, ModelNotFound
from osaurus.library.store import ModelStore

WEIGHTS: dict[str, Any] = {
    "model.norm.weight": np.ones(64, np.float32),
    "model.layer.weight": np.ones((4, 64), np.float16),
}


def install(root: Path, repository: str, weights: dict[str, Any] = WEIGHTS, **config: Any) -> Path:
    """Put a model into a models folder; return its own."""
    folder = root / repository
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}), "utf-8")
    Tokenizer(models.BPE()).save(str(folder / "tokenizer.json"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "mlx"})
    return folder


def shard(folder: Path, names: list[str]) -> None:
    """Have the index of a model name these files, each for one tensor."""
    index = {"weight_map": {f"tensor.{number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def rewrite_header(folder: Path, header: object, length: int | None = None) -> None:
    """Write a safetensors file of a header alone, which may lie about its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    given = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(given.to_bytes(8, "little") + text)


def tensor(**fields: Any) -> dict[str, Any]:
    """A header with one tensor, in which some things are not as they should be; None leaves them out."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0], **fields}
    return {"t": {key: value for key, value in entry.items() if value is not None}}


def ids(store: ModelStore) -> list[str]:
    return [model.id for model in store.models()]


def complaints(events: Sequence[LogEvent], folder: Path) -> list[LogEvent]:
    """Return the warnings about a folder."""
    return [event for event in events if event["log_level"] is LogLevel.warn and event.get("folder") == str(folder)]


@contextmanager
def without_privileges() -> Iterator[None]:
    """Be a user who may not read everything; root may."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(
    "name",
    [
        "tiny-llama-1b",
        "Tiny-Llama-1B",
        "TINY-LLAMA-1B",
        "tiny-llama-1b:latest",
        "Tiny-Llama-1B:LATEST",
        "Some-Org/Tiny-Llama-1B",
        "some-org/tiny-llama-1b",
        "SOME-ORG/tiny-llama-1b:latest",
    ],
)
def test_a_model_is_found_by_each_of_its_names(name: str, tmp_path: Path) -> None:
    folder = install(tmp_path, "Some-Org/Tiny-Llama-1B")
    install(tmp_path, "Some-Org/Tiny-Llama-1B-Chat")
    found = ModelStore(tmp_path).find(name)
    assert (found.id, found.repository, found.folder) == ("tiny-llama-1b", "Some-Org/Tiny-Llama-1B", folder)


def test_an_id_has_hyphens_and_the_name_with_underscores_is_known_as_well(tmp_path: Path) -> None:
    install(tmp_path, "org/My_Model_v2.0")
    store = ModelStore(tmp_path)
    assert ids(store) == ["my-model-v2.0"]
    assert store.find("my_model_V2.0") == store.find("my-model-v2.0") == store.find("org/my_model_v2.0")


@pytest.mark.parametrize("name", ["smollm2:135m", "SmolLM2:135M", "smollm2:135m:latest"])
def test_a_model_is_found_by_the_short_name_it_was_pulled_by(name: str, tmp_path: Path) -> None:
    install(tmp_path, "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert ModelStore(tmp_path).find(name).id == "smollm2-135m-instruct"


@pytest.mark.parametrize("name", ["mistral", "Mistral:latest", "local/mistral"])
@pytest.mark.parametrize("usual", [True, False])
def test_what_somebody_called_by_a_short_name_goes_before_what_that_stands_for(
    usual: bool, name: str, tmp_path: Path
) -> None:
    install(tmp_path, "local/Mistral")
    if usual:
        install(tmp_path, "mlx-community/Mistral-7B-Instruct-v0.3-4bit")
        assert ModelStore(tmp_path).find("mistral:7b").id == "mistral-7b-instruct-v0.3-4bit"
    assert ModelStore(tmp_path).find(name).repository == "local/Mistral"


def test_of_a_folder_that_was_called_by_a_short_name_and_is_no_model_one_is_told_why(tmp_path: Path) -> None:
    no_tokenizer(install(tmp_path, "local/mistral"))
    with pytest.raises(ModelNotFound, match=r"local/mistral is there, but cannot be used: tokenizer.json is missing"):
        ModelStore(tmp_path).find("mistral")


@pytest.mark.parametrize(
    "name", ["tiny", "tiny-llama-1b:q4", "org/tiny-llama-1b", "", ":latest", "smollm2:135m", "../x"]
)
def test_what_is_not_there_is_not_found(name: str, tmp_path: Path) -> None:
    install(tmp_path, "Some-Org/Tiny-Llama-1B")
    with pytest.raises(ModelNotFound) as caught:
        ModelStore(tmp_path).find(name)
    assert caught.value.message == f"Model not found: {name}"
    assert caught.value.param == "model"


@pytest.mark.parametrize("there", [True, False])
def test_without_any_model_one_is_told_how_to_get_one(there: bool, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as caught:
        ModelStore(tmp_path if there else tmp_path / "nowhere").find("Tiny")
    assert caught.value.message.startswith("Model not found: Tiny. ")
    assert "osaurus pull smollm2:135m" in caught.value.message


def test_a_model_is_described(tmp_path: Path) -> None:
    folder = install(tmp_path, "org/Tiny", model_type="qwen2")
    for number, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, (1_710_509_445 + number, 1_710_509_445 + number))
    assert ModelStore(tmp_path).models() == [
        InstalledModel(
            id="tiny",
            repository="org/Tiny",
            folder=folder,
            size=sum(path.stat().st_size for path in folder.iterdir()),
            modified=1_710_509_447,
            family="qwen2",
            parameters=320,
            quantization="F16",
            context_length=4096,
        )
    ]


@pytest.mark.parametrize(
    ("dtypes", "expected"), [(("F16", "F32"), "F16"), (("F32", "F16"), "F32"), (("F32", "F32"), "F32")]
)
def test_without_quantisation_the_type_of_most_bytes_is_told(
    dtypes: tuple[str, str], expected: str, tmp_path: Path
) -> None:
    large, small = ({"F16": np.float16, "F32": np.float32}[dtype] for dtype in dtypes)
    install(tmp_path, "org/tiny", {"a": np.zeros((64, 64), large), "b": np.zeros(64, small)})
    assert ModelStore(tmp_path).models()[0].quantization == expected


def test_parameters_are_counted_as_they_were_before_quantisation(tmp_path: Path) -> None:
    words, halves = np.uint32, np.float16
    install(
        tmp_path,
        "org/tiny",
        {
            # 48 rows of 128 weights of 8 bits, 4 to a word, in groups of 32
            "model.embed_tokens.weight": np.zeros((48, 32), words),
            "model.embed_tokens.scales": np.zeros((48, 4), halves),
            "model.embed_tokens.biases": np.zeros((48, 4), halves),
            # 16 rows of 128 weights of 4 bits, 8 to a word
            "model.layers.0.up.weight": np.zeros((16, 16), words),
            "model.layers.0.up.scales": np.zeros((16, 4), halves),
            "model.layers.0.up.biases": np.zeros((16, 4), halves),
            # 10 rows of 128 weights of 3 bits, 32 to three words
            "model.layers.0.down.weight": np.zeros((10, 12), words),
            "model.layers.0.down.scales": np.zeros((10, 4), halves),
            "model.layers.0.down.biases": np.zeros((10, 4), halves),
            "model.norm.weight": np.zeros(128, np.float32),
        },
        quantization={
            "group_size": 32,
            "bits": 4,
            "model.embed_tokens": {"group_size": 32, "bits": 8},
            "model.layers.0.down": {"group_size": 32, "bits": 3},
        },
    )
    [found] = ModelStore(tmp_path).models()
    assert found.parameters == 48 * 128 + 16 * 128 + 10 * 128 + 128
    assert found.quantization == "Q4"


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization": {"bits": 4, "group_size": 64}, "quantization_config": {"bits": 4, "group_size": 64}},
        {"quantization_config": None},
        {"quantization_config": {}},
    ],
)
def test_what_mlx_lm_reads_of_quantised_weights_is_a_model(config: dict[str, Any], tmp_path: Path) -> None:
    install(tmp_path, "org/tiny", **config)
    assert ids(ModelStore(tmp_path)) == ["tiny"]


def test_a_model_may_be_in_several_files(tmp_path: Path) -> None:
    folder = install(tmp_path, "org/tiny")
    (folder / "model.safetensors").unlink()
    for number in (1, 2):
        save_file(
            {f"t{number}": np.zeros((number, 10), np.float32)}, folder / f"model-0000{number}-of-00002.safetensors"
        )
    assert ModelStore(tmp_path).models()[0].parameters == 30
    shard(folder, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    assert ModelStore(tmp_path).models()[0].parameters == 30


def test_what_the_index_does_not_name_is_no_part_of_the_model(tmp_path: Path) -> None:
    folder = install(tmp_path, "org/tiny")
    shard(folder, ["model.safetensors"])
    save_file({"other": np.zeros(1000, np.float32)}, folder / "model-old.safetensors")
    assert ModelStore(tmp_path).models()[0].parameters == 320


def no_model_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": 64}')


def config_not_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"')


def config_not_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"model_type": "\xff"}')


def config_not_object(folder: Path) -> None:
    (folder / "config.json").write_text('["llama"]')


def config_deep(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def config_is_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def code_of_its_own(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "model_file": "model.py"}')


def unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')


def architecture_elsewhere(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "../models/llama"}')


def quantised_by_others(folder: Path) -> None:
    (folder / "config.json").write_text(
        '{"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes"}}'
    )


def text_quantised_by_others(folder: Path) -> None:
    (folder / "config.json").write_text(
        '{"model_type": "gemma3", "text_config": {"quantization_config": {"quant_method": "hqq"}}}'
    )


def quantised_in_no_way(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "quantization_config": [4]}')


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def pickles_in_the_index(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "pytorch_model.bin")
    shard(folder, ["pytorch_model.bin"])


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")


def broken_link(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "gone")


def missing_shard(folder: Path) -> None:
    shard(folder, ["model.safetensors", "model-00002-of-00002.safetensors"])


def missing_shard_without_an_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def index_elsewhere(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    shard(folder, ["../outside.safetensors"])


def index_absolute(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    shard(folder, [str(folder.parent / "outside.safetensors")])


def index_parent(folder: Path) -> None:
    shard(folder, [".."])


def index_of_strange_names(folder: Path) -> None:
    shard(folder, ["a\0b", "\ud800", "n" * 1000, ""])


def index_empty(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def index_not_object(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["model.safetensors"]}')


def weights_cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])


def weights_cut_in_header(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:20])


def weights_longer(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content + b"\0")


def weights_empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def pipe(name: str) -> Callable[[Path], None]:
    """Return what puts a pipe, into which nobody writes, in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def header(content: object, length: int | None = None) -> Callable[[Path], None]:
    """Return what gives a model such a header."""
    return lambda folder: rewrite_header(folder, content, length)


DEFECTS: dict[str, Callable[[Path], None]] = {
    **{
        damage.__name__: damage
        for damage in (
            no_model_type,
            config_not_json,
            config_not_text,
            config_not_object,
            config_deep,
            config_is_folder,
            code_of_its_own,
            unknown_architecture,
            architecture_elsewhere,
            quantised_by_others,
            text_quantised_by_others,
            quantised_in_no_way,
            pickled,
            pickles_in_the_index,
            no_tokenizer,
            no_weights,
            broken_link,
            missing_shard,
            missing_shard_without_an_index,
            index_elsewhere,
            index_absolute,
            index_parent,
            index_of_strange_names,
            index_empty,
            index_not_object,
            weights_cut,
            weights_cut_in_header,
            weights_longer,
            weights_empty,
        )
    },
    **{
        f"{name} a pipe": pipe(name)
        for name in ("config.json", "model.safetensors", "tokenizer_config.json", "chat_template.jinja", "LICENSE")
    },
    "header longer than it says": header(tensor(), 10),
    "header shorter than it says": header(tensor(), 1000),
    "header of 16 EiB": header(tensor(), 2**64 - 1),
    "header of no length": header(tensor(), 0),
    "header not JSON": header(b"{nothing}"),
    "header not text": header(b'{"\xff\xfe": 1}'),
    "header a list": header([tensor()]),
    "header deep": header(b'{"t":' * 100_000),
    "tensor a number": header({"t": 5}),
    "no dtype": header(tensor(dtype=None)),
    "no shape": header(tensor(shape=None)),
    "shape of fractions": header(tensor(shape=[1.5])),
    "shape of strings": header(tensor(shape=["1"])),
    "shape of lists": header(tensor(shape=[10**30, [1]])),
    "no offsets": header(tensor(data_offsets=None)),
    "one offset": header(tensor(data_offsets=[0])),
    "offsets in words": header(tensor(data_offsets=["none", "none"])),
    "offset beyond the end": header(tensor(data_offsets=[0, 10**30])),
    "offset infinite": header(tensor(data_offsets=[0, float("inf")])),
    "offset no number": header(tensor(data_offsets=[0, float("nan")])),
    "offset before the beginning": header(tensor(data_offsets=[-8, -8])),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_an_unusable_folder_is_passed_over_and_logged_once(defect: str, tmp_path: Path) -> None:
    install(tmp_path, "a/first")
    folder = install(tmp_path, "b/middle")
    install(tmp_path, "c/zlast")
    DEFECTS[defect](folder)
    store = ModelStore(tmp_path)
    with capturedLogs() as events:
        for _ in range(3):
            assert ids(store) == ["first", "zlast"]
            assert store.find("zlast").repository == "c/zlast"
        with pytest.raises(ModelNotFound):
            store.find("middle")
    assert len(complaints(events, folder)) == 1


def test_an_unusable_folder_is_looked_at_again_when_it_has_changed(tmp_path: Path) -> None:
    folder = install(tmp_path, "org/tiny")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    store = ModelStore(tmp_path)
    assert ids(store) == []
    (folder / "model.safetensors").write_bytes(whole)
    assert ids(store) == ["tiny"]
    (folder / "tokenizer.json").unlink()
    assert ids(store) == []


@pytest.mark.parametrize(
    "tensor",
    [
        "vision_tower.encoder.weight",
        "model.vision_model.weight",
        "visual.patch_embed.weight",
        "model.multi_modal_projector.weight",
        "audio_tower.conv1.weight",
    ],
)
def test_a_model_that_sees_or_hears_is_passed_over_with_that_reason(tensor: str, tmp_path: Path) -> None:
    folder = install(tmp_path, "org/tiny", {**WEIGHTS, tensor: np.ones(3, np.float32)})
    with capturedLogs() as events:
        assert ids(ModelStore(tmp_path)) == []
    [complaint] = complaints(events, folder)
    assert "for images or sound" in str(complaint["error"])


@pytest.mark.parametrize("name", ["tiny", "Org/Tiny:latest"])
def test_who_asks_for_a_folder_that_is_no_model_is_told_why(name: str, tmp_path: Path) -> None:
    install(tmp_path, "org/tiny", {**WEIGHTS, "vision_tower.x": np.ones(3, np.float32)})
    with pytest.raises(ModelNotFound) as caught:
        ModelStore(tmp_path).find(name)
    assert caught.value.message.startswith(f"Model not found: {name}. org/tiny is there, but cannot be used: ")
    assert "for images or sound" in caught.value.message


def test_the_text_part_of_a_model_that_could_see_is_a_model(tmp_path: Path) -> None:
    install(tmp_path, "org/tiny", model_type="gemma3", vision_config={"hidden_size": 8})
    assert ids(ModelStore(tmp_path)) == ["tiny"]


@pytest.mark.parametrize("content", ["empty", "no config", "a file", "a broken link"])
def test_what_is_no_model_folder_is_not_talked_about(content: str, tmp_path: Path) -> None:
    install(tmp_path, "org/tiny")
    other = tmp_path / "org" / "other"
    match content:
        case "empty":
            other.mkdir()
        case "no config":
            (install(tmp_path, "org/other") / "config.json").unlink()
        case "a file":
            other.write_text("config.json")
            (tmp_path / "file").write_text("config.json")
        case "a broken link":
            other.symlink_to(tmp_path / "gone")
    with capturedLogs() as events:
        assert ids(ModelStore(tmp_path)) == ["tiny"]
    assert complaints(events, other) == []


def test_a_folder_that_may_not_be_read_harms_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All may read this model; what is above the models folder need not be open.
    for path in (tmp_path, *install(tmp_path, "a/open").iterdir()):
        path.chmod(0o755)
    closed = install(tmp_path, "b/closed")
    closed.chmod(0)
    monkeypatch.chdir(tmp_path)
    try:
        with without_privileges():
            assert ids(ModelStore(Path())) == ["open"]
    finally:
        closed.chmod(0o755)


@pytest.mark.parametrize("repository", [".pull-x/tiny", "org/.tiny", ".org/.tiny"])
def test_hidden_folders_are_downloads_under_way(repository: str, tmp_path: Path) -> None:
    install(tmp_path, repository)
    assert ids(ModelStore(tmp_path)) == []


def test_models_are_two_levels_down(tmp_path: Path) -> None:
    install(tmp_path, "shallow")
    install(tmp_path, "a/b/deep")
    install(tmp_path, "org/tiny")
    assert ids(ModelStore(tmp_path)) == ["tiny"]


def test_a_model_may_be_a_link_to_elsewhere(tmp_path: Path) -> None:
    elsewhere = install(tmp_path / "elsewhere", "x/y")
    (tmp_path / "models" / "org").mkdir(parents=True)
    (tmp_path / "models" / "org" / "tiny").symlink_to(elsewhere)
    assert ids(ModelStore(tmp_path / "models")) == ["tiny"]


def test_models_of_one_name_keep_apart(tmp_path: Path) -> None:
    for repository in ("beta/Tiny", "Alpha/tiny", "gamma/TINY", "alpha/other"):
        install(tmp_path, repository)
    store = ModelStore(tmp_path)
    assert [(model.id, model.repository) for model in store.models()] == [
        ("other", "alpha/other"),
        ("tiny", "Alpha/tiny"),
        ("beta/tiny", "beta/Tiny"),
        ("gamma/tiny", "gamma/TINY"),
    ]
    for model in store.models():
        for name in (model.id, model.repository, f"{model.id}:latest", model.repository.upper()):
            assert store.find(name) == model


def test_an_unusable_folder_takes_no_name(tmp_path: Path) -> None:
    no_tokenizer(install(tmp_path, "alpha/tiny"))
    install(tmp_path, "beta/tiny")
    assert [(model.id, model.repository) for model in ModelStore(tmp_path).models()] == [("tiny", "beta/tiny")]


def test_models_come_and_go(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    assert ids(store) == []
    folder = install(tmp_path, "org/tiny")
    assert ids(store) == ["tiny"]
    shutil.rmtree(folder)
    assert ids(store) == []


def test_an_organisation_that_goes_while_the_models_are_listed_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "org/tiny")
    going = install(tmp_path, "going/other").parent

    def quicker(listing: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def listed(folder: Path) -> Any:
            if Path(folder) == going and going.exists():
                going.rename(tmp_path / ".gone")
            return listing(folder)

        return listed

    monkeypatch.setattr(os, "scandir", quicker(os.scandir))
    monkeypatch.setattr(os, "listdir", quicker(os.listdir))
    assert ids(ModelStore(tmp_path)) == ["tiny"]
    assert not going.exists()


def test_files_that_go_while_they_are_looked_at_harm_no_other_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = install(tmp_path, "a/going")
    install(tmp_path, "org/tiny")

    def take_away(_: object) -> None:
        for path in folder.iterdir():
            path.unlink()

    monkeypatch.setattr("osaurus.library.folder.check_senses", take_away)
    assert ids(ModelStore(tmp_path)) == ["tiny"]


def touch(path: Path, content: bytes) -> None:
    """Write a file, later than it was written before."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_bytes(content)
    later = before + 1_000_000_000
    os.utime(path, ns=(later, later))


def change_byte(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    touch(folder / "model.safetensors", content[:-1] + bytes([content[-1] ^ 1]))


def add_file(folder: Path) -> None:
    touch(folder / "generation_config.json", b"{}")


def rename_file(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer_old.json")
    shutil.copy(folder / "tokenizer_old.json", folder / "tokenizer.json")


@pytest.mark.parametrize("change", [change_byte, add_file, rename_file])
def test_the_digest_tells_contents_apart(change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = install(tmp_path, "org/tiny")
    install(tmp_path, "org/other", {"w": np.zeros(3, np.float32)})
    store = ModelStore(tmp_path)
    before = {model.id: store.digest(model) for model in store.models()}
    change(folder)
    after = {model.id: store.digest(model) for model in store.models()}
    assert after["tiny"] != before["tiny"]
    assert after["other"] == before["other"]
    assert after == {model.id: ModelStore(tmp_path).digest(model) for model in store.models()}


def test_the_digest_depends_on_nothing_but_content(tmp_path: Path) -> None:
    first = install(tmp_path / "here", "org/tiny")
    shutil.copytree(first, tmp_path / "there" / "other" / "name")
    (first / ".DS_Store").write_text("hidden")
    digests = set()
    for root in ("here", "there"):
        store = ModelStore(tmp_path / root)
        [model] = store.models()
        digests |= {store.digest(model), store.digest(model)}
    [digest] = digests
    assert digest.startswith("sha256:")
    assert len(bytes.fromhex(digest.removeprefix("sha256:"))) == 32


def test_the_digest_follows_a_file_that_was_replaced_in_the_same_instant(tmp_path: Path) -> None:
    folder = install(tmp_path, "org/tiny")
    weights = folder / "model.safetensors"
    store = ModelStore(tmp_path)
    before = store.digest(store.find("tiny"))
    moment = weights.stat().st_mtime_ns
    content = weights.read_bytes()
    (folder / "new").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(folder / "new", ns=(moment, moment))
    (folder / "new").replace(weights)
    assert store.digest(store.find("tiny")) != before


def test_a_file_of_any_name_has_a_place_in_the_digest(tmp_path: Path) -> None:
    folder = install(tmp_path, "org/tiny")
    # Some file systems take UTF-8 only; there is nothing to fear then.
    with suppress(OSError):
        Path(os.fsdecode(os.fsencode(folder) + b"/notes-\xff.txt")).write_text("x")
    store = ModelStore(tmp_path)
    assert store.digest(store.find("tiny")).startswith("sha256:")


# Copies, and deletion.


@pytest.fixture
def own(tmp_path: Path, tiny_models: Path) -> ModelStore:
    """A models folder of one's own, with the tiny model."""
    shutil.copytree(tiny_models / "tests" / "tiny", tmp_path / "tests" / "tiny")
    return ModelStore(tmp_path)


@pytest.mark.parametrize(
    ("destination", "repository"),
    [
        ("mine", "local/mine"),
        ("mine:latest", "local/mine"),
        ("org/Mine-2.0", "org/Mine-2.0"),
        ("tests/other", "tests/other"),
        ("mistral", "local/mistral"),
        ("qwen3:latest", "local/qwen3"),
    ],
)
def test_a_copy_is_a_model_of_its_own(own: ModelStore, destination: str, repository: str) -> None:
    own.copy(own.find("tiny"), destination)
    copied = own.find(destination)
    assert copied.repository == repository
    assert own.digest(copied) == own.digest(own.find("tiny"))
    own.remove(own.take_away(own.find("tiny")))
    assert own.digest(copied).startswith("sha256:")


@pytest.mark.parametrize(
    "destination", ["", "../x", "a/../b", "/etc", ".hidden", "a/b/c", "a\\b", "a\0b", "a:7b", "x" * 97, "ä"]
)
def test_a_name_that_is_none_is_refused(own: ModelStore, destination: str) -> None:
    before = sorted(own.folder.rglob("*"))
    with pytest.raises(InvalidRequest) as caught:
        own.copy(own.find("tiny"), destination)
    assert caught.value.param == "destination"
    assert sorted(own.folder.rglob("*")) == before


@pytest.mark.parametrize("destination", ["tests/tiny", "tiny", "TINY", "a/Tiny", "other/tiny:latest"])
def test_a_copy_takes_no_name_that_a_model_has(own: ModelStore, destination: str) -> None:
    with pytest.raises(InvalidRequest, match="already"):
        own.copy(own.find("tiny"), destination)
    assert [model.repository for model in own.models()] == ["tests/tiny"]
    assert sorted(path.name for path in (own.folder / "tests").iterdir()) == ["tiny"]


def test_a_short_name_that_a_copy_has_is_taken(own: ModelStore) -> None:
    own.copy(own.find("tiny"), "mistral")
    with pytest.raises(InvalidRequest, match="already"):
        own.copy(own.find("tiny"), "mistral")


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
def test_a_copy_takes_the_place_of_nothing_that_is_no_model(own: ModelStore, kind: str) -> None:
    way = own.folder / "local" / "other"
    match kind:
        case "folder":
            (way / "notes").mkdir(parents=True)
        case "file":
            way.parent.mkdir()
            way.write_text("notes")
        case "broken link":
            way.parent.mkdir()
            way.symlink_to("gone")
    with pytest.raises(InvalidRequest, match="local/other exists but is no usable model; move it away") as caught:
        own.copy(own.find("tiny"), "other")
    assert caught.value.param == "destination"
    assert [path.name for path in way.parent.iterdir()] == ["other"]


@pytest.mark.parametrize("destination", ["foundation", "Default", "foundation:latest", "org/Foundation"])
def test_a_copy_takes_no_name_of_the_on_device_model_be_it_there_or_not(own: ModelStore, destination: str) -> None:
    with pytest.raises(InvalidRequest, match="Apple's on-device model") as caught:
        own.copy(own.find("tiny"), destination)
    assert caught.value.param == "destination"
    assert [model.repository for model in own.models()] == ["tests/tiny"]


def test_what_is_deleted_is_gone(own: ModelStore) -> None:
    own.remove(own.take_away(own.find("tiny")))
    assert own.models() == []
    assert list(own.folder.iterdir()) == []


def test_deleting_leaves_the_neighbours(own: ModelStore) -> None:
    own.copy(own.find("tiny"), "tests/other")
    own.remove(own.take_away(own.find("other")))
    assert [model.id for model in own.models()] == ["tiny"]


@pytest.mark.parametrize("link", ["model", "organisation"])
def test_nothing_outside_the_models_folder_is_deleted_or_written(
    own: ModelStore, tmp_path_factory: pytest.TempPathFactory, link: str
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (own.folder / "tests" / "tiny").rename(outside / "tiny")
    if link == "model":
        (own.folder / "tests" / "linked").symlink_to(outside / "tiny")
    else:
        (own.folder / "linked").symlink_to(outside)
    [model] = own.models()
    with pytest.raises(Forbidden, match="link out of the models folder"):
        own.remove(own.take_away(model))
    assert (outside / "tiny" / "config.json").exists()
    if link == "organisation":
        with pytest.raises(Forbidden):
            own.copy(model, "linked/mine")
        assert [path.name for path in outside.iterdir()] == ["tiny"]


def test_a_copy_that_fails_leaves_nothing(own: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", full)
    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(OSError, match="No space"):
        own.copy(own.find("tiny"), "mine")
    assert not list(own.folder.rglob(".copying*"))
    assert [model.id for model in own.models()] == ["tiny"]


def test_what_an_earlier_attempt_left_is_removed_with_the_next(own: ModelStore) -> None:
    (own.folder / "tests" / ".deleting-0").mkdir()
    own.remove(own.take_away(own.find("tiny")))
    assert list(own.folder.iterdir()) == []


def test_what_was_cut_short_is_swept_away_and_a_copy_under_way_is_not(own: ModelStore) -> None:
    for name in ("tests/.deleting-0", "tests/.copying-0", "tests/.copying-1", "org/.deleting-1"):
        (own.folder / name / "files").mkdir(parents=True)
    os.utime(own.folder / "tests" / ".copying-0", (0, 0))
    own.sweep()
    assert sorted(path.name for path in (own.folder / "tests").iterdir()) == [".copying-1", "tiny"]
    assert not (own.folder / "org").exists()


def test_what_is_behind_a_link_is_not_swept(own: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / ".deleting-0").mkdir()
    (own.folder / "linked").symlink_to(outside)
    (own.folder / "tests" / ".deleting-1").symlink_to(outside)
    own.sweep()
    assert (outside / ".deleting-0").exists()


def test_what_another_deletion_has_removed_already_is_deleted(own: ModelStore) -> None:
    own.copy(own.find("tiny"), "tests/other")
    first, second = (own.take_away(own.find(name)) for name in ("tiny", "other"))
    own.remove(first)
    own.remove(second)
    assert own.models() == []
    assert list(own.folder.iterdir()) == []


def test_a_copy_of_links_is_of_what_they_lead_to(own: ModelStore) -> None:
    weights = own.folder / "tests" / "tiny" / "model.safetensors"
    weights.rename(own.folder / "tests" / "weights")
    weights.symlink_to("../weights")
    own.copy(own.find("tiny"), "mine")
    assert own.find("mine").parameters == own.find("tiny").parameters
