"""Everything that can be set, in one table: what it is, where it may be set, and what it means.

A setting has four spellings, of rising precedence: its default, its key in a TOML file (`max_body`), a variable of the
environment (`OSU_MAX_BODY`), an option of the command line (`--max-body`). The fields of `Settings` are the table; the
command line, the readers here and the documentation are made from them.
"""

import difflib
import os
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
LISTS = ("listen", "preload", "api_keys", "hosts", "origins")

# Settings that are on where they are named on the command line.
FLAGS = ("no_auth", "expose", "read_only")

# Settings whose value is not for the log.
SECRETS = ("api_keys",)

# Endpoint strings that only this machine can reach; those of other kinds are taken for exposed.
LOCAL_ENDPOINT = re.compile(r"^unix:|:interface=(127\.|localhost|(::|\\:\\:)1\b)")


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


def _words(text: str) -> tuple[str, ...]:
    words = tuple(text.lower().replace(",", " ").split())
    if not words:
        raise ValueError("must be one or more, separated by commas")
    return words


def _keys(text: str) -> tuple[str, ...]:
    if text.startswith(("/", "~", ".")):
        try:
            text = _expanded(text).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ValueError(f"names a file that cannot be read ({reason})") from error
    keys = tuple(text.replace(",", " ").split())
    if not keys or not all(key.isascii() for key in keys):
        raise ValueError("must be one or more keys of ASCII characters, separated by commas, or a file of them")
    return keys


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("must be a whole number from 0")
    return int(text)


def _positive(text: str) -> int:
    if _count(text) == 0:
        raise ValueError("must be a whole number from 1")
    return int(text)


def _switch(text: str) -> bool:
    if text.lower() not in SWITCH:
        raise ValueError("must be on or off")
    return SWITCH[text.lower()]


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be {', '.join(words[:-1])} or {words[-1]}")
        return text.lower()

    return read


def _file(text: str) -> Path:
    if not text or text.endswith(os.sep):
        raise ValueError("must be a file")
    return _expanded(text).absolute()


def _duration(text: str) -> float:
    try:
        return durations.seconds(text)
    except ValueError as error:
        raise ValueError("must be a duration such as 5m or 1h30m; negative: without end") from error


def _folder_or_none(text: str) -> Path | None:
    return None if text.lower() in ("off", "0") else _folder(text)


def _default_hub_cache() -> Path:
    """Return where huggingface_hub keeps what it fetches."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if folder := os.environ.get(variable):
            return Path(os.path.expandvars(folder)).expanduser() / below
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "huggingface" / "hub"


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
    hub_cache: Path | None = _setting(
        _folder_or_none,
        "The Hugging Face cache, whose models are served as well; off: none. If not set: where HF_HUB_CACHE and "
        "HF_HOME say, else ~/.cache/huggingface/hub.",
        factory=_default_hub_cache,
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
    cpu_threads: int = _setting(
        _count, "Threads for models where there is no GPU; 0: as many as there are processors.", default=0
    )

    log_file: Path | None = _setting(
        _file, "A file for the log. If not set: where twistd logs, which is stdout in the foreground.", default=None
    )
    log_file_size: int = _setting(
        _byte_count_or_none,
        "The size at which the log's file is put aside and another begun; 0: never, it is left to logrotate.",
        default=10 * 2**20,
    )
    log_files_kept: int = _setting(_positive, "How many files of the log that were put aside are kept.", default=5)
    log_format: str = _setting(
        _one_of("human", "json"), "What lines of the log are: human, or json, an object each.", default="human"
    )
    log_level: str = _setting(
        _one_of("debug", "info", "warn", "error", "critical"),
        "The least that is logged: debug, info, warn, error or critical.",
        default="info",
    )
    log_content: bool = _setting(
        _switch, "Whether the log has what prompts and answers say, the last and first 4096 characters.", default=False
    )

    max_connections: int = _setting(
        _positive, "Connections at the same time; one beyond them is closed at once.", default=512
    )
    max_concurrent: int = _setting(
        _count, "Requests for one model at the same time, waiting or being answered; 0: any number.", default=10
    )
    requests_per_minute: int = _setting(_count, "Requests for one model within a minute; 0: any number.", default=100)
    api_keys: tuple[str, ...] = _setting(
        _keys,
        "Keys, one of which every request must have, separated by commas; or a file with one on each line, "
        "by a path that begins with / ~ or a dot.",
        default=(),
        repr=False,
    )
    no_auth: bool = _setting(_switch, "Whether other machines may be let in without API keys.", default=False)
    expose: bool = _setting(
        _switch, "Whether to listen on the port of every network interface instead of 127.0.0.1 only.", default=False
    )
    read_only: bool = _setting(
        _switch, "Whether clients may only use models, not pull, copy or delete them.", default=False
    )
    hosts: tuple[str, ...] = _setting(
        _words,
        "Host names to answer to beside the machine's own and local ones, separated by commas; *: any.",
        default=(),
    )
    origins: tuple[str, ...] = _setting(
        _words,
        "Origins whose pages may use the models, such as https://chat.example.org, separated by commas; *: any. "
        "Those that are named may also change what is installed.",
        default=("*",),
    )

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoint strings to listen on."""
        return self.listen or (f"tcp:{self.port}" + ("" if self.expose else ":interface=127.0.0.1"),)

    @property
    def exposed(self) -> tuple[str, ...]:
        """Those of the endpoints that other machines may reach."""
        return tuple(endpoint for endpoint in self.endpoints if LOCAL_ENDPOINT.search(endpoint) is None)


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
            if isinstance(text, list) and name == "listen":
                values[name] = tuple(text)
            else:
                values[name] = readers[name](",".join(text) if isinstance(text, list) and name in LISTS else str(text))
        except ValueError as error:
            said = "what was given" if name in SECRETS else repr(text)
            raise BadSetting(f"{spelling} {error}, not {said}") from error
    settings = Settings(**values)
    if settings.exposed and not settings.api_keys and not settings.no_auth:
        raise BadSetting(
            f"Other machines could reach {settings.exposed[0]} and use this one: set keys (OSU_API_KEYS), "
            "or say that nobody needs one (--no-auth)"
        )
    return settings


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
