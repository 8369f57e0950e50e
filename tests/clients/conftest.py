"""The server that all clients share, and the programs that they run with: Node.js, a browser, another Python."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ..conftest import CACHE
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


def absent(what: str) -> NoReturn:
    """Skip the test for want of `what`; where everything has to be there, fail it."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


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
def node() -> Path:
    """Node.js, with the packages of package.json."""
    path = Path(sys.executable).with_name("node")
    if not path.exists() or not (HERE / "node_modules" / "openai").exists():
        absent("needs Node.js and its packages: run `make clients`")
    return path


@pytest.fixture(scope="session")
def clients_python() -> Path:
    """The Python that has LangChain and LiteLLM."""
    path = CACHE / "clients" / "bin" / "python"
    if not path.exists():
        absent("needs LangChain and LiteLLM: run `make clients`")
    return path


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser: what CHROME names, one that is installed, or the one that `make clients` fetched."""
    packaged = CACHE / "browser" / "chromium"
    found = [os.environ.get("CHROME"), *map(shutil.which, BROWSERS), str(packaged) if packaged.exists() else None]
    for path in found:
        if path:
            return path
    absent("needs Chromium: run `make clients` (as root, or with Chromium installed), or set CHROME to its path")
