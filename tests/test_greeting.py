"""What the log says first."""

from collections.abc import Sequence
from pathlib import Path

from twisted.logger import capturedLogs, formatEvent

from osaurus.chat import InstalledModel
from osaurus.greeting import Greeting

URL = "http://127.0.0.1:1337"
HERE = InstalledModel(
    id="my-model",
    repository="local/my-model",
    folder=Path("/models/local/my-model"),
    size=1,
    modified=0.0,
    family="llama",
    parameters=1,
    quantization="Q4",
    context_length=512,
)


def said(*models: InstalledModel, url: str | None = URL) -> list[str]:
    async def installed() -> Sequence[InstalledModel]:
        return models

    with capturedLogs() as events:
        Greeting(Path("/models"), url, installed).give()
    return [formatEvent(event) for event in events]


def test_it_says_where_models_and_the_page_are() -> None:
    assert said()[0] == f"Osaurus is running. Models: /models. In a browser: {URL}/ui"


def test_with_a_model_it_says_how_to_ask_that_one() -> None:
    [_, line] = said(HERE)
    assert f"curl {URL}/v1/chat/completions" in line
    assert '"model":"my-model"' in line


def test_without_one_it_says_how_to_get_one() -> None:
    assert said()[1] == "No model is installed: `osaurus pull smollm2:135m` gets a small one"


def test_where_it_is_not_known_how_to_reach_it_nothing_is_said_of_that() -> None:
    assert said(HERE, url=None) == ["Osaurus is running. Models: /models."]


def test_a_disk_that_fails_is_told_of_and_ends_nothing() -> None:
    async def broken() -> Sequence[InstalledModel]:
        raise OSError("the disk is gone")

    with capturedLogs() as events:
        Greeting(Path("/models"), URL, broken).give()
    assert [event["log_format"] for event in events[1:]] == ["The models cannot be listed"]
