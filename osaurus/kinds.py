"""What settings may be: how each kind is read from text, what is said of text that is none, and how it is written."""

import math
import os
import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from attrs import frozen

from . import durations

UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
LARGEST_UNITS = (("GiB", 2**30), ("GB", 10**9), ("MiB", 2**20), ("MB", 10**6), ("KiB", 2**10), ("kB", 10**3), ("", 1))
OFF = ("off", "0")
HOST = re.compile(r"\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
ORIGIN = re.compile(rf"([a-z][a-z0-9+.-]*)://(?:{HOST.pattern})(?::([0-9]{{1,5}}))?")
# Of pages in files and in frames that are cut off, and of those in some programs.
HOSTLESS_ORIGINS = ("null", "file://")
# Browsers leave these out.
OWN_PORTS = (("http", "80"), ("https", "443"))
# More than any machine has; the kernels count in C.
MOST_THREADS = 1024
SWITCH = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


def _as_it_is(text: str, folder: Path) -> str:  # noqa: ARG001 - of most kinds nothing is relative
    return text


def _within(text: str, folder: Path) -> str:
    """Return a path, absolute unless it is in somebody's home; a slash at its end stays."""
    return text if not text or text.startswith("~") else os.path.join(folder, text)  # noqa: PTH118 - pathlib drops it


@frozen(kw_only=True)
class Kind:
    """What a setting may be. `read` takes it from text, or raises ValueError with what would be right.

    `at` makes text that names a file relative to a folder name it from everywhere. `free` says that almost any text
    will do, so that a number or a word of TOML's would pass for text unnoticed.
    """

    name: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str
    at: Callable[[str, Path], str] = _as_it_is
    free: bool = False


def _kind(name: str, write: Callable[[Any], str] = str, **more: Any) -> Callable[[Callable[[str], Any]], Kind]:
    """Make a kind of the function that reads it."""
    return lambda read: Kind(name=name, read=read, write=write, **more)


def _written_bytes(count: int) -> str:
    unit, size = next((unit, size) for unit, size in LARGEST_UNITS if count % size == 0)
    return f"{count // size}{unit}" if count else "0"


def _comma(words: tuple[str, ...]) -> str:
    return ",".join(words)


@_kind("port")
def port(text: str) -> int:
    """A TCP port."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError("must be a port number, 1 to 65535")
    return int(text)


@_kind("bytes", _written_bytes)
def byte_count(text: str) -> int:
    """A number of bytes, with a unit or without."""
    match = re.fullmatch(r"(\d+) ?([A-Za-z]*)", text)
    if match is None or match[2].upper() not in UNITS or int(match[1]) == 0:
        raise ValueError("must be a number of bytes such as 33554432 or 32MiB")
    return int(match[1]) * UNITS[match[2].upper()]


@_kind("bytes", _written_bytes)
def byte_count_or_none(text: str) -> int:
    """The same, or 0."""
    return 0 if text == "0" else int(byte_count.read(text))


@_kind("folder", at=_within, free=True)
def folder(text: str) -> Path:
    """A folder, made absolute."""
    if not text:
        raise ValueError("must be a folder")
    return expanded(text).absolute()


def expanded(text: str) -> Path:
    """Return a path, `~` being somebody's home. Raises ValueError."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError("must be a folder; there is no such home") from error


@_kind("endpoints", " ".join, free=True)
def endpoints(text: str) -> tuple[str, ...]:
    """Endpoint strings of Twisted, separated by spaces."""
    endpoints = tuple(text.split())
    if not endpoints:
        raise ValueError("must be one or more endpoint strings, such as tcp:1337:interface=127.0.0.1")
    return endpoints


@_kind("names", _comma, free=True)
def names(text: str) -> tuple[str, ...]:
    """Names of models, separated by commas."""
    names = tuple(text.replace(",", " ").split())
    if not names:
        raise ValueError("must be one or more names of models, separated by commas")
    return names


@_kind("hosts", _comma, free=True)
def hosts(text: str) -> tuple[str, ...]:
    """Names and addresses of hosts in any case, as the header `Host` has them without the port; or `*`."""
    hosts = tuple(_bracketed(word) for word in text.lower().replace(",", " ").split())
    if not hosts or not all(host == "*" or HOST.fullmatch(host) for host in hosts):
        raise ValueError(
            "must be one or more names or addresses such as chat.example.org, without scheme, port and path, "
            "separated by commas; or *"
        )
    return hosts


def _bracketed(host: str) -> str:
    """Return a host as it is in the header, which has addresses of version 6 of IP in brackets."""
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return host
    return str(address) if address.version == 4 else f"[{address}]"


@_kind("origins", _comma, free=True)
def origins(text: str) -> tuple[str, ...]:
    """Origins of web pages in any case, as browsers send them; or `*`."""
    origins = tuple(text.lower().replace(",", " ").split())
    if not origins or not all(_is_origin(origin) for origin in origins):
        raise ValueError(
            "must be one or more origins such as https://chat.example.org or http://localhost:3000, without a path and "
            "without the scheme's own port, separated by commas; or *"
        )
    return origins


def _is_origin(origin: str) -> bool:
    if origin in ("*", *HOSTLESS_ORIGINS):
        return True
    match = ORIGIN.fullmatch(origin)
    return match is not None and (match[1], match[2]) not in OWN_PORTS


def _within_if_file(text: str, folder: Path) -> str:
    return _within(text, folder) if text.startswith(".") else text


@_kind("keys", _comma, at=_within_if_file, free=True)
def keys(text: str) -> tuple[str, ...]:
    """API keys, or the file that has them."""
    if text.startswith(("/", "~", ".")):
        try:
            keys = _in_lines(expanded(text).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ValueError(f"names a file that cannot be read ({reason})") from error
    else:
        keys = tuple(text.replace(",", " ").split())
    if not keys or not all(key.isascii() for key in keys):
        raise ValueError("must be one or more keys of ASCII characters, separated by commas, or a file of them")
    return keys


def _in_lines(text: str) -> tuple[str, ...]:
    """Return the keys of a file: one on each line that is not empty and no comment. Raises ValueError."""
    keys: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        # What was meant for words beside the key would open the door as well.
        if "," in key or len(key.split()) > 1:
            raise ValueError(f"must be a file with one key on each line, without spaces and commas (see line {number})")
        keys.append(key)
    return tuple(keys)


@_kind("number")
def count(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise ValueError("must be a whole number from 0")
    return int(text)


@_kind("number")
def positive(text: str) -> int:
    """A whole number from 1."""
    if count.read(text) == 0:
        raise ValueError("must be a whole number from 1")
    return int(text)


@_kind("number")
def threads(text: str) -> int:
    """How many threads; 0 leaves that to be found out."""
    if count.read(text) > MOST_THREADS:
        raise ValueError(f"must be a whole number from 0 to {MOST_THREADS}")
    return int(text)


@_kind("on or off", lambda value: "on" if value else "off")
def switch(text: str) -> bool:
    """On or off."""
    if text.lower() not in SWITCH:
        raise ValueError("must be on or off")
    return SWITCH[text.lower()]


def one_of(*words: str) -> Kind:
    """One of these words, in any case."""

    def read(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be {', '.join(words[:-1])} or {words[-1]}")
        return text.lower()

    return Kind(name=" or ".join(words), read=read)


@_kind("file", at=_within, free=True)
def file(text: str) -> Path:
    """A file, made absolute."""
    if not text or text.endswith(os.sep):
        raise ValueError("must be a file")
    return expanded(text).absolute()


@_kind("duration", durations.text)
def duration(text: str) -> float:
    """A duration in seconds; without end if negative."""
    try:
        return durations.seconds(text)
    except ValueError as error:
        raise ValueError("must be a duration such as 5m or 1h30m; negative: without end") from error


@_kind("duration", durations.text)
def bounded_duration(text: str) -> float:
    """One that has an end."""
    try:
        seconds = durations.seconds(text)
    except ValueError:
        seconds = math.inf
    if math.isinf(seconds):
        raise ValueError("must be a duration such as 30s or 5m; 0: none")
    return seconds


@_kind("duration", durations.text)
def duration_of_quiet(text: str) -> float:
    """One that is not none; without end if negative."""
    try:
        seconds = durations.seconds(text)
    except ValueError:
        seconds = 0.0
    if not seconds:
        raise ValueError("must be a duration such as 30m; negative: never")
    return seconds


def _within_unless_off(text: str, folder: Path) -> str:
    return text if text.lower() in OFF else _within(text, folder)


@_kind("folder", at=_within_unless_off, free=True)
def folder_or_none(text: str) -> Path | None:
    """A folder, made absolute, or `off`."""
    return None if text.lower() in OFF else folder.read(text)
