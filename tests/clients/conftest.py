"""The server that all clients share, and the programs they run with: curl, Node.js, a browser, another Python."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from ..conftest import CACHE
from ..hub import running_hub
from ..programs import absent, program
from ..server import Server, serving

HERE = Path(__file__).parent

MODEL = "smollm2:135m"
QUESTION: Any = [{"role": "user", "content": "Tell me the capital of France."}]
ANSWER = "The capital of France is Paris."
ITALY: Any = [*QUESTION, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": "And of Italy?"}]
STORY: Any = [{"role": "user", "content": "Write a very long story."}]

# The example of OpenAI's guide to function calling, word for word.
WEATHER: Any = [{"role": "user", "content": "What is the weather like in Paris today?"}]
GET_WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get current temperature for a given location.",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string", "description": "City and country e.g. Bogotá, Colombia"}},
            "required": ["location"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


# Fixtures that take what pip does not bring into this environment.
PROGRAMS = {"curl", "node", "clients_python", "chromium"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have whatever asks for a program be a test for `make test-system`."""
    for item in items:
        if PROGRAMS & set(getattr(item, "fixturenames", ())):
            item.add_marker("system")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, starter_models: Path) -> Iterator[Server]:
    """A server with the starter model, one for all clients, who together ask more often than one may."""
    with serving(tmp_path_factory.mktemp("clients"), starter_models, "--requests-per-minute=0") as running:
        yield running


@pytest.fixture(scope="session")
def client_environment(server: Server) -> dict[str, str]:
    """What clients in processes of their own are told."""
    return {
        **os.environ,
        "OSU_TEST_URL": server.url,
        # LiteLLM would fetch its table of prices from the network while it is imported.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_COLOR": "1",
    }


@pytest.fixture(scope="session")
def curl() -> str:
    """What the pages' commands begin with."""
    return program("curl")


@pytest.fixture(scope="session")
def node() -> Path:
    """Node.js, with the packages of package.json."""
    path = Path(sys.executable).with_name("node")
    if not path.exists() or not (HERE / "node_modules" / "openai").exists():
        absent("needs Node.js and its packages: run `make test-system`")
    return path


@pytest.fixture(scope="session")
def clients_python() -> Path:
    """The Python that has LangChain and LiteLLM."""
    path = CACHE / "clients" / "bin" / "python"
    if not path.exists():
        absent("needs LangChain and LiteLLM: run `make test-system`")
    return path


def found_browser() -> str | None:
    """A browser: what CHROME names, one that is installed, or the one that `make test-system` fetched."""
    packaged = CACHE / "browser" / "chromium"
    found = [os.environ.get("CHROME"), *map(shutil.which, BROWSERS), str(packaged) if packaged.exists() else None]
    return next(filter(None, found), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser."""
    return found_browser() or absent("needs Chromium: run `make test-system`, or set CHROME to its path")


@pytest.fixture(scope="session")
def page_servers(tmp_path_factory: pytest.TempPathFactory, starter_models: Path, tiny_models: Path) -> Iterator[Any]:
    """What suites/page.mjs is told: servers with a key, without models in front of a hub, and read only.

    The key's takes one request at a time. Of the hub's models one comes at once, and of the other only half.
    """
    folder = tmp_path_factory.mktemp("page")
    folders = {name: folder / name for name in ("locked", "pulling", "read-only")}
    for each in folders.values():
        each.mkdir()
    limits = ("--max-concurrent=1", "--requests-per-minute=0")
    with running_hub() as hub:
        hub.add("tests/quick", tiny_models / "tests" / "tiny")
        slow = hub.add("tests/slow", tiny_models / "tests" / "tiny")
        slow.files["model-slow.safetensors"] = slow.files.pop("model.safetensors")
        hub.held["model-slow.safetensors"] = Event()
        with (
            serving(folders["locked"], starter_models, *limits, OSU_API_KEYS="right-key") as locked,
            serving(folders["pulling"], folder / "models", HF_ENDPOINT=hub.endpoint) as pulling,
            serving(folders["read-only"], folder / "none", "--read-only") as read_only,
        ):
            yield {
                "OSU_LOCKED_URL": locked.url,
                "OSU_PULLING_URL": pulling.url,
                "OSU_READ_ONLY_URL": read_only.url,
            }
