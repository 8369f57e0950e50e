"""The page at /ui as it is sent: which files, with which headers, to whom. What it does is in tests/clients/suites."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import osaurus
from osaurus.web.guard import Guard

from .test_api import PREFIXES, Client

FOLDER = Path(osaurus.__file__).parent / "web" / "ui"
FILES = sorted(path.name for path in FOLDER.iterdir())
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@pytest.fixture
def client(tiny_models: Path) -> Client:
    return Client(tiny_models)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("slash", ["", "/"])
def test_the_page_is_under_every_prefix_and_its_files_are_where_it_says(
    client: Client, prefix: str, slash: str
) -> None:
    answer = client.ask("GET", f"{prefix}/ui{slash}")
    assert (answer.status, answer.headers["content-type"]) == (200, TYPES[".html"])
    # As a browser takes them: beside what comes after the last slash.
    places = re.findall(rb'="\./([^"]+)"', answer.body)
    assert len(places) >= 3
    base = f"{prefix}/ui/" if slash else f"{prefix}/"
    for place in places:
        assert client.ask("GET", base + place.decode()).status == 200


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_sent_as_what_it_is_and_nothing_else(client: Client, name: str) -> None:
    answer = client.ask("GET", f"/ui/{name}")
    assert (answer.status, answer.body) == (200, (FOLDER / name).read_bytes())
    assert answer.headers["content-type"] == TYPES[Path(name).suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["/ui", "/ui/", *(f"/ui/{name}" for name in FILES)])
def test_the_policy_allows_the_servers_own_and_nothing_inline(client: Client, path: str) -> None:
    policy = client.ask("GET", path).headers["content-security-policy"]
    directives = {name: values for name, *values in map(str.split, policy.split(";"))}
    assert directives == {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'"],
        "connect-src": ["'self'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }


def test_a_browser_that_has_a_file_is_not_sent_it_again(client: Client) -> None:
    tag = client.ask("GET", "/ui/main.js").headers["etag"]
    answer = client.ask("GET", "/ui/main.js", If_None_Match=tag)
    assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
    assert "content-security-policy" in answer.headers
    assert client.ask("GET", "/ui/main.js", If_None_Match='"another"').status == 200
    tags = {client.ask("GET", path).headers["etag"] for path in ("/ui", "/ui/", "/ui/main.js")}
    assert len(tags) == 3


@pytest.mark.parametrize("path", ["/ui", "/ui/page.css"])
def test_head_has_the_headers_alone(client: Client, path: str) -> None:
    whole, head = client.ask("GET", path), client.ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    for name in ("content-type", "etag", "content-security-policy"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/ui", "/ui/main.js"])
def test_it_is_for_reading_only(client: Client, method: str, path: str) -> None:
    answer = client.ask(method, path, {})
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path",
    [
        "/ui/nothing.js",
        "/ui/page.py",
        "/ui/../page.py",
        "/ui/..%2Fpage.py",
        "/ui/%2e%2e/page.py",
        "/ui//etc/passwd",
        "/ui/main.js/x",
        "/ui/main.js%00",
        "/ui/" + "x" * 5000,
    ],
)
def test_any_other_file_is_a_404(tiny_models: Path, path: str) -> None:
    # With keys, so that it is seen as well that nobody is let in by a path that begins like the page's.
    answer = Client(tiny_models, guard=Guard(api_keys=("key",))).ask("GET", path)
    assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")


def test_its_files_are_open_where_keys_are_set_and_nothing_else_is(tiny_models: Path) -> None:
    client = Client(tiny_models, guard=Guard(api_keys=("key",)))
    for prefix in PREFIXES:
        for path in ("/ui", "/ui/", *(f"/ui/{name}" for name in FILES)):
            assert client.ask("GET", prefix + path).status == 200
    for path in ("/uix", "/models/ui", "/tags", "/ui.html"):
        assert client.ask("GET", path).status == 401


def test_it_is_not_sent_to_a_name_that_somebody_else_may_own(client: Client) -> None:
    for path in ("/ui", "/ui/main.js"):
        assert client.ask("GET", path, Host="evil.example").status == 403


def test_the_root_stays_as_it_is(client: Client) -> None:
    assert client.ask("GET", "/").body == b"Osaurus is running"


def test_no_file_holds_what_the_policy_refuses() -> None:
    index = (FOLDER / "index.html").read_text("utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:|data:", index)
    for path in FOLDER.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|@import", text)


def test_every_file_is_asked_for_by_another_that_is_sent() -> None:
    wanted = set()
    for path in FOLDER.iterdir():
        wanted |= set(re.findall(r'"\./([\w.]+)"', path.read_text("utf-8")))
    assert wanted | {"index.html"} == set(FILES)


def test_the_package_brings_its_files(tmp_path: Path) -> None:
    root = Path(osaurus.__file__).parent.parent
    source = tmp_path / "source"
    # From a copy, since a build leaves folders behind.
    for name in ("osaurus", "twisted"):
        shutil.copytree(root / name, source / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
        timeout=300,
    )
    [wheel] = tmp_path.glob("osaurus-*.whl")
    with ZipFile(wheel) as archive:
        brought = {name for name in archive.namelist() if name.startswith("osaurus/web/ui/")}
    assert brought == {f"osaurus/web/ui/{name}" for name in FILES}
