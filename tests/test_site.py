"""docs/ as a site: it is built without a warning, and shows nothing that has to be fetched from elsewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

DOCS = Path(__file__).parent.parent / "docs"

# What a browser fetches without being asked, by the element and its attribute.
FETCHED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("object", "data")}


class Fetched(HTMLParser):
    """Gathers what a page has a browser fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if value and (tag, name) in FETCHED]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # As `make docs` does it, which says of each option what for.
    build = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"]
    done = subprocess.run([*build, str(DOCS), str(folder)], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_every_page_is_there(site: Path) -> None:
    made = {page.relative_to(site).with_suffix("") for page in site.rglob("*.html")}
    assert {page.relative_to(DOCS).with_suffix("") for page in DOCS.rglob("*.md")} <= made


def test_what_pages_show_is_all_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        for address in Fetched(page.read_text("utf-8")).addresses:
            parts = urlsplit(address)
            assert not parts.scheme, (page, address)
            assert not parts.netloc, (page, address)
            assert (page.parent / parts.path).exists(), (page, address)


def test_no_style_fetches_anything_from_elsewhere(site: Path) -> None:
    for style in site.rglob("*.css"):
        for address in re.findall(r"""(?:url\(|@import)\s*["']?([^"')]+)""", style.read_text("utf-8")):
            assert not re.match(r"(https?:)?//", address), (style, address)


def test_programs_do_not_either(site: Path) -> None:
    for script in site.rglob("*.js"):
        text = script.read_text("utf-8")
        assert not re.search(r"""(fetch|importScripts|import)\(\s*["'](https?:)?//""", text), script
