"""What the documentation says about the code is true."""

import re
from pathlib import Path
from typing import Any

import attrs
import pytest

import osaurus
from osaurus import settings
from osaurus.dialects import ollama, openai
from osaurus.dialects.completions import CompletionBody
from osaurus.dialects.ollama_generate import GenerateBody
from osaurus.dialects.ollama_models import PullBody
from osaurus.library.names import SHORT_NAMES, USUAL_SIZES

ROOT = Path(osaurus.__file__).parent
DOCS = ROOT.parent / "docs"

# What the table says of a default that depends on the machine, or that is nothing, where that can be said in a word.
DEFAULTS = {"listen": "the port on 127.0.0.1", "cache_dir": "`~/.osaurus/cache`", "log_file": "none"}


@pytest.mark.parametrize("setting", settings.table(), ids=lambda setting: setting.name)
def test_every_setting_has_its_row_in_the_table(setting: settings.Setting) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (DOCS / "settings.md").read_text("utf-8").splitlines()
        if line.startswith(f"| `{setting.name}`")
    ]
    [[name, variable, option, kind, default, live, meaning]] = rows
    assert (name, variable, option) == (f"`{setting.name}`", f"`{setting.variable}`", f"`{setting.option}`")
    assert (kind, live, meaning) == (setting.kind.name, "yes" if setting.live else "", setting.meaning)
    otherwise = "see meaning" if setting.default is None else setting.shown(setting.default)
    assert default == DEFAULTS.get(setting.name, otherwise)


def test_the_settings_page_has_no_other_rows() -> None:
    rows = re.findall(r"^\| `(\w+)`", (DOCS / "settings.md").read_text("utf-8"), re.MULTILINE)
    assert rows == [setting.name for setting in settings.table()]


def test_the_architecture_page_names_every_module_and_no_other() -> None:
    tree = (DOCS / "architecture.md").read_text("utf-8").split("```")[1]
    named = {word for line in tree.splitlines() for word in line.split("  ") if word.strip().endswith(".py")}
    modules = {path.name for path in ROOT.rglob("*.py") if path.name != "__init__.py"} | {"osaurus_plugin.py"}
    assert {word.strip().rpartition("/")[2] for word in named} == modules


@pytest.mark.parametrize(
    "page", ["README.md", *(str(path.relative_to(ROOT.parent)) for path in sorted(DOCS.rglob("*.md")))]
)
def test_relative_links_lead_somewhere(page: str) -> None:
    path = ROOT.parent / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    ("page", "body"),
    [
        ("openai.md", openai.ChatBody),
        ("openai.md", CompletionBody),
        ("ollama.md", ollama.ChatBody),
        ("ollama.md", ollama.Options),
        ("ollama.md", GenerateBody),
        ("ollama.md", PullBody),
    ],
)
def test_every_field_of_a_body_is_on_its_page(page: str, body: type[Any]) -> None:
    text = (DOCS / page).read_text("utf-8")
    missing = [
        field.name for field in attrs.fields(body) if f"`{field.name}" not in text and f".{field.name}`" not in text
    ]
    assert missing == []


def test_every_short_name_is_on_its_page() -> None:
    text = (DOCS / "models.md").read_text("utf-8")
    for name, repository in SHORT_NAMES.items():
        assert f"| `{name}` | `{repository}` |" in text
    for family, size in USUAL_SIZES.items():
        assert f"`{family}` {size}" in " ".join(text.split())
