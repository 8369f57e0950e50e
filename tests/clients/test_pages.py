"""What the pages in docs/clients, and others with programs, tell people to paste works, and prints what they say."""

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from attrs import frozen

from ..server import Server
from .conftest import HERE

ROOT = HERE.parent.parent
PAGES = sorted((ROOT / "docs" / "clients").glob("*.md"))
# Beside those, pages with programs.
OTHERS = [ROOT / "README.md", ROOT / "docs" / "quickstart.md", ROOT / "docs" / "function-calling.md"]
BASE = "http://127.0.0.1:1337"

# What these pages' Python needs is not in this environment.
ELSEWHERE = {"langchain.md", "litellm.md"}
# This one's JavaScript is for a page: suites/browser.mjs runs it in one.
IN_A_PAGE = {"browser.md"}

pytestmark = pytest.mark.starter


@frozen
class Program:
    """All blocks of one language on a page, in their order, and what they print together."""

    page: Path
    language: str
    source: str
    output: str


def blocks(page: Path) -> list[tuple[str, str]]:
    """The page's fenced blocks: language and text."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def programs(page: Path) -> list[Program]:
    """Put the blocks of each language together; a block of text is the output of the one before it."""
    sources: dict[str, str] = {}
    outputs: dict[str, str] = {}
    last = ""
    for language, text in blocks(page):
        if language == "text":
            outputs[last] = outputs.get(last, "") + text
        else:
            sources[language] = sources.get(language, "") + text
            last = language
    return [Program(page, language, source, outputs.get(language, "")) for language, source in sources.items()]


def those(language: str) -> list[object]:
    """The programs in a language on all pages, as a test's parameters."""
    found = [program for page in [*OTHERS, *PAGES] for program in programs(page)]
    return [
        pytest.param(
            program, id=program.page.name, marks=[pytest.mark.system] if program.page.name in ELSEWHERE else []
        )
        for program in found
        if program.language == language and program.page.name not in IN_A_PAGE
    ]


def run(command: list[str], program: Program, server: Server, environment: dict[str, str], folder: Path) -> str:
    """Run a program against the server that is there."""
    assert BASE in program.source
    ended = subprocess.run(
        command,
        input=program.source.replace(BASE, server.url),
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def check(program: Program, output: str) -> None:
    if program.output:
        assert output == program.output
    else:
        assert output.strip()


@pytest.mark.parametrize("program", those("python"))
def test_python(
    request: pytest.FixtureRequest,
    program: Program,
    server: Server,
    client_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    elsewhere = program.page.name in ELSEWHERE
    python = str(request.getfixturevalue("clients_python")) if elsewhere else sys.executable
    check(program, run([python, "-"], program, server, client_environment, tmp_path))


@pytest.mark.parametrize("program", those("javascript"))
def test_javascript(node: Path, program: Program, server: Server, client_environment: dict[str, str]) -> None:
    # In this folder, since that is where packages are found.
    check(program, run([str(node), "--input-type=module", "-"], program, server, client_environment, HERE))


@pytest.mark.usefixtures("curl")
@pytest.mark.parametrize("program", those("console"))
def test_commands(program: Program, server: Server, client_environment: dict[str, str], tmp_path: Path) -> None:
    commands = re.findall(r"^\$ (curl (?:.*\\\n)*.*\n)", program.source, re.MULTILINE)
    assert commands
    for command in commands:
        only = Program(program.page, "console", command, "")
        output = run(["bash", "-eu"], only, server, client_environment, tmp_path)
        if output.startswith("data: "):
            assert output.endswith("data: [DONE]\n\n")
            output = output.partition("\n")[0].removeprefix("data: ")
        assert "error" not in json.loads(output)


def examples() -> list[object]:
    """The commands on the dialects' pages, each with the answer that the page shows."""
    found: list[object] = []
    for page in (ROOT / "docs" / "openai.md", ROOT / "docs" / "ollama.md"):
        shown = blocks(page)
        for (_, command), (language, answer) in zip(shown[::2], shown[1::2], strict=True):
            assert language == "json"
            program = Program(page, "console", command.removeprefix("$ "), answer)
            found.append(pytest.param(program, id=f"{page.name}-{len(found)}"))
    return found


def shape(value: object) -> object:
    """What of an answer is the same each time: its fields, and what kind of values they have."""
    match value:
        case dict():
            return {key: shape(inner) for key, inner in value.items()}
        case list():
            return [shape(inner) for inner in value]
        case int() | float() if not isinstance(value, bool):
            return "a number"
        case str():
            return "a text"
    return value


def values(text: str) -> list[object]:
    """The JSON values in a text, which follow each other."""
    found = []
    while text := text.lstrip():
        value, end = json.JSONDecoder().raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


@pytest.mark.usefixtures("curl")
@pytest.mark.parametrize("program", examples())
def test_the_dialects_pages_show_what_comes_back(
    program: Program, server: Server, client_environment: dict[str, str], tmp_path: Path
) -> None:
    if "/api/ps" in program.source:
        # It tells of something only while there is something.
        urlopen(f"{server.url}/api/chat", b'{"model": "smollm2:135m", "messages": []}').close()
    answer = run(["bash", "-eu"], program, server, client_environment, tmp_path)
    told, shown = values(answer), values(program.output)
    # How many lines a stream has depends on what there is to do.
    assert (len(told) == 1) == (len(shown) == 1)
    assert (shape(told[0]), shape(told[-1])) == (shape(shown[0]), shape(shown[-1]))
    assert all(shape(one) in map(shape, shown) for one in told)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_the_base_urls_of_a_page_answer(page: Path, server: Server) -> None:
    urls = set(re.findall(re.escape(BASE) + r"[\w/]*", page.read_text("utf-8")))
    assert urls
    for url in urls & {BASE, f"{BASE}/v1"}:
        with urlopen(url.replace(BASE, server.url) + ("/models" if url.endswith("/v1") else "/api/tags")) as answer:
            assert answer.status == 200
    # Whatever else is named is a path that an example asks.
    assert urls <= {BASE, f"{BASE}/v1", f"{BASE}/v1/chat/completions", f"{BASE}/api/chat", f"{BASE}/api/tags"}


@pytest.mark.parametrize("program", those("json"))
def test_json_is_json(program: Program) -> None:
    assert BASE in json.dumps(json.loads(program.source))


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "clients" / "README.md").read_text("utf-8")
    named = re.findall(r"\]\(([^/)]+\.md)\)", index)
    assert sorted(named) == [page.name for page in PAGES if page.name != "README.md"]
