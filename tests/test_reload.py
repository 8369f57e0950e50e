"""Reading the settings again: what changes, what is told, and what leaves everything as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs, formatEvent

from osaurus.reload import Reload
from osaurus.settings import Settings
from osaurus.sources import Sources


@define
class House:
    """A server with a file, and what was applied since it started. Reading it takes until the test lets it go on."""

    file: Path
    options: dict[str, str | list[str]] = field(factory=dict)
    applied: list[Settings] = field(factory=list)
    reading: list[tuple[Callable[..., Any], Deferred[Any]]] = field(factory=list)
    reload: Reload = field(init=False)

    def __attrs_post_init__(self) -> None:
        sources = Sources({"config": str(self.file), **self.options}, {"OSU_HUB_CACHE": "off", "OSU_MODELS_DIR": "/m"})
        self.reload = Reload(sources.find().settings, sources.find, self.applied.append, self.blocking)

    def blocking(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()
        self.reading.append((function, result))
        return result

    def go_on(self) -> None:
        """Have the thread that reads come to its end."""
        function, result = self.reading.pop(0)
        try:
            found = function()
        except Exception as error:  # noqa: BLE001 - it crosses from the thread
            result.errback(error)
        else:
            result.callback(found)

    def read(self, text: str) -> list[str]:
        """Have another file read; return what the log says, each line with its level."""
        self.file.write_text(text)
        with capturedLogs() as events:
            self.reload.begin()
            while self.reading:
                self.go_on()
        return [f"{event['log_level'].name} {formatEvent(event)}" for event in events]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "osaurus.toml"
    path.write_text("max_concurrent = 1")
    return path


def test_what_may_change_does_and_is_told(file: Path) -> None:
    house = House(file)
    assert house.read("max_concurrent = 2\nkeep_alive = '1h'") == [
        "info The settings were read again; 2 of them changed",
        "info keep_alive is now 1h",
        "info max_concurrent is now 2",
    ]
    [applied] = house.applied
    assert applied is house.reload.settings
    assert (applied.max_concurrent, applied.keep_alive) == (2, 3600.0)


def test_what_needs_a_restart_is_named_and_not_applied(file: Path) -> None:
    house = House(file)
    assert house.read("max_concurrent = 1\nport = 8080") == [
        "info The settings were read again; none of them changed",
        "warn port would be 8080, but that takes a restart",
    ]
    assert house.reload.settings.port == 1337


@pytest.mark.parametrize("text", ["max_concurrent = 2\nprot = 1", "max_concurrent = 'many'", "max_concurrent = "])
def test_a_bad_file_leaves_everything_as_it_was(file: Path, text: str) -> None:
    house = House(file)
    [line] = house.read(text)
    assert line.startswith("error The settings were read again and stay as they were: ")
    assert str(file) in line
    assert (house.applied, house.reload.settings.max_concurrent) == ([], 1)


def test_keys_are_not_told(file: Path) -> None:
    house = House(file)
    said = house.read("max_concurrent = 1\napi_keys = ['secret', 'other']")
    assert said[1:] == ["info api_keys is now 2 of them, not shown"]
    assert house.reload.settings.api_keys == ("secret", "other")


def test_a_file_of_keys_is_read_again(file: Path) -> None:
    keys = file.with_name("keys")
    keys.write_text("one")
    file.write_text(f"api_keys = '{keys}'")
    house = House(file)
    keys.write_text("one\ntwo")
    house.read(file.read_text())
    assert house.reload.settings.api_keys == ("one", "two")


def test_an_option_outweighs_the_file_still(file: Path) -> None:
    house = House(file, {"max_concurrent": "7"})
    house.read("max_concurrent = 2")
    assert house.reload.settings.max_concurrent == 7


EXPOSED = "listen = 'tcp:1337'\napi_keys = 'secret'"


@pytest.mark.parametrize(
    "text",
    [
        "listen = 'tcp:1337'",
        # The port that is open stays so until a restart, whatever the file says.
        "listen = 'unix:/run/osaurus'",
        "",
    ],
)
def test_an_open_port_never_loses_its_keys(file: Path, text: str) -> None:
    file.write_text(EXPOSED)
    house = House(file)
    [line] = house.read(text)
    assert line.startswith(
        "error The settings were read again and stay as they were: Other machines could reach tcp:1337"
    )
    assert (house.applied, house.reload.settings.api_keys) == ([], ("secret",))


def test_unless_somebody_says_that_nobody_needs_one(file: Path) -> None:
    file.write_text(EXPOSED)
    house = House(file)
    house.read("listen = 'tcp:1337'\nno_auth = true")
    assert (house.reload.settings.api_keys, house.reload.settings.no_auth) == ((), True)


def test_being_asked_while_reading_reads_once_more(file: Path) -> None:
    house = House(file)
    for _ in range(3):
        house.reload.begin()
    assert len(house.reading) == 1
    file.write_text("max_concurrent = 2")
    house.go_on()
    file.write_text("max_concurrent = 3")
    house.go_on()
    assert (house.reading, house.reload.settings.max_concurrent) == ([], 3)


def test_when_the_server_ends_by_them_they_stay_as_they_are(file: Path) -> None:
    house = House(file)
    house.reload.begin()
    house.reload.end()
    file.write_text("max_concurrent = 2")
    house.go_on()
    house.reload.begin()
    assert (house.reading, house.applied, house.reload.settings.max_concurrent) == ([], [], 1)


def test_an_error_of_another_kind_does_not_keep_it_from_the_next_time(file: Path) -> None:
    house = House(file)
    with capturedLogs() as events:
        house.reload.begin()
        _, result = house.reading.pop()
        result.errback(MemoryError())
    assert [event["log_level"] for event in events] == [LogLevel.critical]
    house.read("max_concurrent = 2")
    assert house.reload.settings.max_concurrent == 2
