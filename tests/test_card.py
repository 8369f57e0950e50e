"""What a model's folder says about it."""

import json
from pathlib import Path
from typing import Any

import pytest

from osaurus.chat import InstalledModel, ModelCard
from osaurus.library.card import card
from osaurus.library.folder import UnusableFolder
from osaurus.library.store import ModelStore


@pytest.fixture
def model(tmp_path: Path, tiny_models: Path) -> InstalledModel:
    """A copy of the tiny model, to be changed."""
    ModelStore(tiny_models).copy(ModelStore(tiny_models).find("tiny"), "changing")
    source = tiny_models / "local" / "changing"
    target = tmp_path / "local" / "changing"
    target.parent.mkdir()
    source.rename(target)
    source.parent.rmdir()
    return ModelStore(tmp_path).find("changing")


def changed(model: InstalledModel, name: str, **fields: Any) -> ModelCard:
    """The card after a JSON file of the folder got other fields."""
    path = model.folder / name
    content = {**json.loads(path.read_text()), **fields}
    path.unlink()
    path.write_text(json.dumps(content))
    return card(model)


def test_the_configuration_is_told_under_the_names_of_gguf(model: InstalledModel) -> None:
    found = card(model)
    assert found.architecture == "llama"
    assert found.facts["context_length"] == 512
    assert (found.facts["embedding_length"], found.facts["block_count"]) == (64, 2)
    assert (found.facts["attention.head_count"], found.facts["attention.head_count_kv"]) == (4, 2)


def test_facts_may_be_in_the_text_part(model: InstalledModel) -> None:
    found = changed(model, "config.json", hidden_size=None, text_config={"hidden_size": 99, "num_hidden_layers": 7})
    assert (found.facts["embedding_length"], found.facts["block_count"]) == (99, 2)


def test_the_template_is_the_tokenizers(model: InstalledModel) -> None:
    assert "<|im_start|>" in card(model).template


def test_a_template_in_a_file_of_its_own_comes_first(model: InstalledModel) -> None:
    (model.folder / "chat_template.jinja").write_text("{{ messages }}")
    assert card(model).template == "{{ messages }}"


@pytest.mark.parametrize(
    ("given", "template"),
    [
        ([{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}], "b"),
        ([7], ""),
        (7, ""),
        (None, ""),
    ],
)
def test_of_several_templates_it_is_the_default(model: InstalledModel, given: Any, template: str) -> None:
    assert changed(model, "tokenizer_config.json", chat_template=given).template == template


def test_a_tokenizer_configuration_that_cannot_be_read_has_no_template(model: InstalledModel) -> None:
    (model.folder / "tokenizer_config.json").unlink()
    assert card(model).template == ""


def test_the_license_is_told(model: InstalledModel) -> None:
    assert card(model).license == ""
    (model.folder / "LICENSE").write_text("MIT")
    assert card(model).license == "MIT"


def test_a_model_with_the_marks_can_fill_in(model: InstalledModel) -> None:
    assert not card(model).fills_in
    path = model.folder / "tokenizer.json"
    text = path.read_text("utf-8")
    path.unlink()
    path.write_text(text + '\n"<|fim_prefix|>" "<|fim_suffix|>" "<|fim_middle|>"')
    assert card(model).fills_in


def test_a_model_whose_template_takes_tools_is_found_by_giving_it_one(model: InstalledModel) -> None:
    assert not card(model).takes_tools
    (model.folder / "chat_template.jinja").write_text("{{ tools }}")
    assert card(model).takes_tools


def test_of_several_templates_the_one_for_tools_tells(model: InstalledModel) -> None:
    templates = [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ tools }}"}]
    found = changed(model, "tokenizer_config.json", chat_template=templates)
    assert (found.template, found.takes_tools) == ("{{ messages }}", True)


def test_a_damaged_configuration_is_an_error(model: InstalledModel) -> None:
    (model.folder / "config.json").unlink()
    (model.folder / "config.json").write_text("{")
    with pytest.raises(UnusableFolder):
        card(model)


@pytest.mark.parametrize(
    ("marks", "thinks"),
    [
        (("<think>", "</think>"), True),
        (("<|start|>", "<|channel|>", "<|message|>", "<|end|>"), True),
        (("<|start|>", "<|message|>", "<|end|>"), False),
    ],
)
def test_a_model_thinks_whose_tokenizer_has_marks_for_it(
    marks: tuple[str, ...], thinks: bool, model: InstalledModel
) -> None:
    assert changed(model, "tokenizer.json", marks=marks).thinks is thinks


@pytest.mark.parametrize(("template", "thinks"), [("{{ '<think>' }}", False), ("<think></think>", True)])
def test_a_model_thinks_whose_template_spells_marks_for_it(template: str, thinks: bool, model: InstalledModel) -> None:
    assert changed(model, "tokenizer_config.json", chat_template=template).thinks is thinks
