"""Everything that can be set, in one table: what it is, where it may be set, and what it means.

A setting has four spellings, of rising precedence: its default, its key in a TOML file (`max_body`), a variable of the
environment (`OSU_MAX_BODY`), an option of the command line (`--max-body`). The fields of `Settings` are the table; the
command line, the readers here and the documentation are made from them.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from . import durations

UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
SWITCH = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}

# Settings whose value may be a list of its parts.
LISTS = ("listen", "preload")


class BadSetting(Exception):
    """A setting is unknown or has a value that it cannot have; the message says which, where, and what would do."""


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError("must be a port number, 1 to 65535")
    return int(text)


def _byte_count(text: str) -> int:
    match = re.fullmatch(r"(\d+) ?([A-Za-z]*)", text)
    if match is None or match[2].upper() not in UNITS or int(match[1]) == 0:
        raise ValueError("must be a number of bytes such as 33554432 or 32MiB")
    return int(match[1]) * UNITS[match[2].upper()]


def _byte_count_or_none(text: str) -> int:
    return 0 if text == "0" else _byte_count(text)


def _folder(text: str) -> Path:
    if not text:
        raise ValueError("must be a folder")
    return _expanded(text).absolute()


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError("must be a folder; there is no such home") from error


def _endpoints(text: str) -> tuple[str, ...]:
    endpoints = tuple(text.split())
    if not endpoints:
        raise ValueError("must be one or more endpoint strings, such as tcp:1337:interface=127.0.0.1")
    return endpoints


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.replace(",", " ").split())
    if not names:
        raise ValueError("must be one or more names of models, separated by commas")
    return names


def _switch(text: str) -> bool:
    if text.lower() not in SWITCH:
        raise ValueError("must be on or off")
    return SWITCH[text.lower()]


def _duration(text: str) -> float:
    try:
        return durations.seconds(text)
    except ValueError as error:
        raise ValueError("must be a duration such as 5m or 1h30m; negative: without end") from error


def _default_models_folder() -> Path:
    candidates = [Path.home() / "MLXModels", Path.home() / "Documents" / "MLXModels"]
    return next((folder for folder in candidates if folder.is_dir()), candidates[0])


def _setting(read: Callable[[str], Any], meaning: str, **default: Any) -> Any:
    return attrs.field(metadata={"read": read, "meaning": meaning}, **default)


@frozen(kw_only=True)
class Settings:
    """What the server was told. Sizes are in bytes."""

    port: int = _setting(_port, "The TCP port on 127.0.0.1.", default=1337)
    listen: tuple[str, ...] = _setting(
        _endpoints,
        "Twisted server endpoint strings, separated by spaces, to listen on instead of the port on 127.0.0.1.",
        default=(),
    )
    models_dir: Path = _setting(
        _folder,
        "Where models are, as organisation/repository. If not set: ~/MLXModels, else ~/Documents/MLXModels.",
        factory=_default_models_folder,
    )
    cache_dir: Path = _setting(
        _folder, "Where what can be made again is kept.", factory=lambda: Path.home() / ".osaurus" / "cache"
    )
    max_body: int = _setting(_byte_count, "The largest request body, such as 32MiB.", default=32 * 2**20)
    prefix_cache: int = _setting(
        _byte_count, "Memory for prompts and answers that were read already, such as 1GiB.", default=2**30
    )
    prefix_disk: int = _setting(
        _byte_count_or_none, "Disk space for the same, so that it outlasts a restart; 0: none.", default=2**30
    )
    memory_limit: int | None = _setting(
        _byte_count,
        "Memory for models, answers under way and the prefix cache together. If not set: three quarters of all.",
        default=None,
    )
    keep_alive: float = _setting(
        _duration, "How long a model stays in memory after its last answer; negative: until the end.", default=300.0
    )
    preload: tuple[str, ...] = _setting(
        _names, "Models to load at the start, separated by commas; they stay in memory.", default=()
    )
    speculation: bool = _setting(
        _switch, "Whether drafts are checked several tokens at a time where an answer repeats its prompt.", default=True
    )

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoint strings to listen on."""
        return self.listen or (f"tcp:{self.port}:interface=127.0.0.1",)


def table() -> list[tuple[str, str]]:
    """Return every setting's name and meaning."""
    return [(field.name, field.metadata["meaning"]) for field in attrs.fields(Settings)]


def load(command_line: Mapping[str, str | list[str]], environ: Mapping[str, str]) -> Settings:
    """Gather the settings; `command_line` holds those given there, by name, and perhaps `config`, a TOML file.

    Raises BadSetting.
    """
    values: dict[str, Any] = {}
    config = command_line.get("config") or environ.get("OSU_CONFIG")
    given: list[tuple[str, str, str | list[str]]] = _from_file(str(config)) if config else []
    given += [
        (name, f"OSU_{name.upper()}", environ[f"OSU_{name.upper()}"])
        for name, _ in table()
        if environ.get(f"OSU_{name.upper()}")
    ]
    given += [(name, f"--{name.replace('_', '-')}", text) for name, text in command_line.items() if name != "config"]
    readers = {field.name: field.metadata["read"] for field in attrs.fields(Settings)}
    for name, spelling, text in given:
        try:
            values[name] = tuple(text) if isinstance(text, list) and name in LISTS else readers[name](str(text))
        except ValueError as error:
            raise BadSetting(f"{spelling} {error}, not {text!r}") from error
    return Settings(**values)


def _from_file(path: str) -> list[tuple[str, str, str | list[str]]]:
    try:
        content = tomllib.loads(_expanded(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadSetting(f"The configuration file {path} cannot be read: {error}") from error
    known = [name for name, _ in table()]
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise BadSetting(f"{path} sets {name}, which is no setting; {hint}")
    return [
        (name, f"{name} in {path}", [str(entry) for entry in value] if isinstance(value, list) else str(value))
        for name, value in content.items()
    ]
