"""Everything that can be set, in one table: what it is, what it may be, what it means, and whether that may change.

The fields of `Settings` are the table. The file, the variables and the options by which they are given
(osaurus/sources.py), `osaurus settings` and the documentation are made from it. A setting that is `live` may change
while the server runs; `Live` in osaurus/live.py passes it on.
"""

import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from . import inherited, kinds
from .kinds import Kind

# Settings whose value may be a list of its parts.
LISTS = ("listen", "preload", "api_keys", "hosts", "origins")

# Settings that are on where they are named on the command line.
FLAGS = ("no_auth", "expose", "read_only")

# Settings whose value is not for the log.
SECRETS = ("api_keys",)

# What the end may take after the drain, in seconds: a step of the engine, the prefix cache, pulls.
BEYOND_DRAIN = 25.0

# A part of an endpoint string: up to the next colon without a backslash, which has the next character mean itself.
ENDPOINT_PART = re.compile(r"(?:[^:\\]|\\.)+", re.DOTALL)


def _default_hub_cache() -> Path:
    """Return where huggingface_hub keeps what it fetches."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if folder := os.environ.get(variable):
            return Path(os.path.expandvars(folder)).expanduser() / below
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "huggingface" / "hub"


def _default_models_folder() -> Path:
    candidates = [Path.home() / "MLXModels", Path.home() / "Documents" / "MLXModels"]
    return next((folder for folder in candidates if folder.is_dir()), candidates[0])


def _setting(kind: Kind, meaning: str, *, live: bool = False, **default: Any) -> Any:
    return attrs.field(metadata={"kind": kind, "meaning": meaning, "live": live}, **default)


@frozen(kw_only=True)
class Settings:
    """What the server was told. Sizes are in bytes."""

    port: int = _setting(kinds.port, "The TCP port on 127.0.0.1.", default=1337)
    listen: tuple[str, ...] = _setting(
        kinds.endpoints,
        "Twisted server endpoint strings, separated by spaces, to listen on instead of the port on 127.0.0.1.",
        default=(),
    )
    models_dir: Path = _setting(
        kinds.folder,
        "Where models are, as organisation/repository. If not set: ~/MLXModels, else ~/Documents/MLXModels.",
        factory=_default_models_folder,
    )
    hub_cache: Path | None = _setting(
        kinds.folder_or_none,
        "The Hugging Face cache, whose models are served as well; off: none. If not set: where HF_HUB_CACHE and "
        "HF_HOME say, else ~/.cache/huggingface/hub.",
        factory=_default_hub_cache,
    )
    cache_dir: Path = _setting(
        kinds.folder, "Where what can be made again is kept.", factory=lambda: Path.home() / ".osaurus" / "cache"
    )
    max_body: int = _setting(
        kinds.byte_count, "The largest request body, such as 32MiB.", live=True, default=32 * 2**20
    )
    prefix_cache: int = _setting(
        kinds.byte_count, "Memory for prompts and answers that were read already, such as 1GiB.", default=2**30
    )
    prefix_disk: int = _setting(
        kinds.byte_count_or_none, "Disk space for the same, so that it outlasts a restart; 0: none.", default=2**30
    )
    memory_limit: int | None = _setting(
        kinds.byte_count,
        "Memory for models, answers under way and the prefix cache together. If not set: three quarters of all.",
        default=None,
    )
    keep_alive: float = _setting(
        kinds.duration,
        "How long a model stays in memory after its last answer; negative: until the end.",
        live=True,
        default=300.0,
    )
    preload: tuple[str, ...] = _setting(
        kinds.names, "Models to load at the start, separated by commas; they stay in memory.", default=()
    )
    speculation: bool = _setting(
        kinds.switch,
        "Whether drafts are checked several tokens at a time where an answer repeats its prompt.",
        default=True,
    )
    cpu_threads: int = _setting(
        kinds.threads, "Threads for models where there is no GPU; 0: as many as there are processors.", default=0
    )

    log_file: Path | None = _setting(
        kinds.file,
        "A file for the log. If not set: where twistd logs, which is stdout in the foreground.",
        default=None,
    )
    log_file_size: int = _setting(
        kinds.byte_count_or_none,
        "The size at which the log's file is put aside and another begun; 0: never, it is left to logrotate.",
        default=10 * 2**20,
    )
    log_files_kept: int = _setting(kinds.positive, "How many files of the log that were put aside are kept.", default=5)
    log_format: str = _setting(
        kinds.one_of("human", "json"), "What lines of the log are: human, or json, an object each.", default="human"
    )
    log_level: str = _setting(
        kinds.one_of("debug", "info", "warn", "error", "critical"),
        "The least that is logged: debug, info, warn, error or critical.",
        live=True,
        default="info",
    )
    log_content: bool = _setting(
        kinds.switch,
        "Whether the log has what prompts and answers say, the last and first 4096 characters.",
        live=True,
        default=False,
    )
    drain: float = _setting(
        kinds.bounded_duration,
        "How long answers under way have to become complete when the server stops; 0: they end at once.",
        live=True,
        default=30.0,
    )
    exit_when_idle: float | None = _setting(
        kinds.duration_of_quiet,
        "After how long without a request the server ends; negative: never. If not set: 30m where systemd's socket "
        "starts it anew, else never.",
        live=True,
        default=None,
    )
    max_connections: int = _setting(
        kinds.positive, "Connections at the same time; one beyond them is closed at once.", live=True, default=512
    )
    max_concurrent: int = _setting(
        kinds.count,
        "Requests for one model at the same time, waiting or being answered; 0: any number.",
        live=True,
        default=10,
    )
    requests_per_minute: int = _setting(
        kinds.count, "Requests for one model within a minute; 0: any number.", live=True, default=100
    )
    api_keys: tuple[str, ...] = _setting(
        kinds.keys,
        "Keys, one of which every request must have, separated by commas; or a file with one on each line, "
        "by a path that begins with / ~ or a dot; its lines that begin with # are comments.",
        live=True,
        default=(),
        repr=False,
    )
    no_auth: bool = _setting(
        kinds.switch, "Whether other machines may be let in without API keys.", live=True, default=False
    )
    expose: bool = _setting(
        kinds.switch,
        "Whether to listen on the port of every network interface instead of 127.0.0.1 only.",
        default=False,
    )
    read_only: bool = _setting(
        kinds.switch, "Whether clients may only use models, not pull, copy or delete them.", live=True, default=False
    )
    hosts: tuple[str, ...] = _setting(
        kinds.hosts,
        "Host names to answer to beside the machine's own and local ones, separated by commas; *: any.",
        live=True,
        default=(),
    )
    origins: tuple[str, ...] = _setting(
        kinds.origins,
        "Origins whose pages may use the models, such as https://chat.example.org, separated by commas; *: any. "
        "Those that are named may also change what is installed.",
        live=True,
        default=("*",),
    )

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoint strings to listen on."""
        return self.listen or (f"tcp:{self.port}" + ("" if self.expose else ":interface=127.0.0.1"),)

    @property
    def longest_end(self) -> float:
        """How long the server may take to end, in seconds."""
        return self.drain + BEYOND_DRAIN

    @property
    def exposed(self) -> tuple[str, ...]:
        """Those of the endpoints that other machines may reach."""
        return tuple(
            endpoint for endpoint in self.endpoints if not _is_local(endpoint) and not inherited.is_local(endpoint)
        )


def _is_local(endpoint: str) -> bool:
    """Tell whether only this machine can reach an endpoint, by what it says; kinds that are not known are exposed."""
    if endpoint.startswith("unix:"):
        return True
    parts = [re.sub(r"\\(.)", r"\1", part) for part in ENDPOINT_PART.findall(endpoint)]
    interfaces = [part.removeprefix("interface=") for part in parts if part.startswith("interface=")]
    # Of several Twisted takes the last. Nobody means that.
    if len(interfaces) != 1:
        return False
    try:
        return interfaces[0] == "localhost" or ip_address(interfaces[0]).is_loopback
    except ValueError:
        return False


@frozen
class Setting:
    """A row of the table. `live` says that it may change while the server runs."""

    name: str
    kind: Kind
    meaning: str
    live: bool
    default: Any
    """None also where it depends on the machine."""

    @property
    def variable(self) -> str:
        """Its spelling in the environment."""
        return f"OSU_{self.name.upper()}"

    @property
    def option(self) -> str:
        """Its spelling on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def shown(self, value: Any) -> str:
        """Return what people may see of a value."""
        if value == ():
            return "none"
        if value is None:
            return "not set"
        if self.name in SECRETS:
            return f"{len(value)} of them, not shown"
        return self.kind.write(value)


def table() -> list[Setting]:
    """Return every setting."""
    return [
        Setting(
            field.name,
            field.metadata["kind"],
            field.metadata["meaning"],
            field.metadata["live"],
            None if isinstance(field.default, attrs.Factory) else field.default,  # type: ignore[arg-type]  # it is a class
        )
        for field in attrs.fields(Settings)
    ]
