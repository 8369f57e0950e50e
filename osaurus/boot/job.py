"""What the operating system is to start: this installation's twistd, with the settings of the moment of installing.

Settings come from variables that are set then, and at each start from ~/.osaurus/config.toml. A relative path would be
looked for elsewhere, and is made absolute; what is relative in an endpoint string only its plugin knows, and stays. API
keys do not go along: these files are for others to read, and systemd tells everybody the variables of a system unit.
They go into a file, whose path may.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from ..settings import Settings, table
from ..sources import BadSetting, Sources

# What else has a say in where things are: programs, and the Hugging Face cache. HF_TOKEN is a secret; the hub's library
# keeps it in a file of its own.
CARRIED = ("PATH", "HF_ENDPOINT")
CARRIED_FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
SOCKET_ENDPOINT = "systemd:domain=INET:index=0"
CALL = "from twisted.scripts.twistd import run; run()"
# Beyond what the server takes to end, in seconds.
STOP_MARGIN = 5


@frozen(kw_only=True)
class Job:
    """A server, as it is to be started: for a user, who has this home.

    `stop_seconds` is how long it may take to end. `socket` is the address that somebody else listens on for it.
    """

    program: tuple[str, ...]
    environment: Mapping[str, str]
    user: str
    home: Path
    stop_seconds: int
    socket: str | None = None


def job(environ: Mapping[str, str], user: str, home: Path, *, socket: bool = False) -> Job:
    """Return the server that is described by these variables, and by the user's file. Raises BadSetting."""
    # Whoever installs it, as root perhaps: what is below a home is below theirs.
    with _at(home):
        settings = Sources({}, environ).find().settings
        environment = {name: environ[name] for name in CARRIED if environ.get(name)}
        # As huggingface_hub reads them.
        folders = {name: os.path.expandvars(environ[name]) for name in CARRIED_FOLDERS if environ.get(name)}
        environment |= {name: _absolute(folder) for name, folder in folders.items()}
        environment |= _variables(environ)
    for name, text in environment.items():
        if not text.isprintable():
            raise BadSetting(f"{name} must be printable text to be written down for the next start, not {text!r}")
    program = (*twistd(), "-n", "--pidfile=", "osaurus")
    address = None
    if socket:
        address = _address(settings)
        program += ("--listen", SOCKET_ENDPOINT)
    return Job(
        program=program,
        environment=environment,
        user=user,
        home=home,
        stop_seconds=round(settings.longest_end) + STOP_MARGIN,
        socket=address,
    )


def twistd() -> tuple[str, ...]:
    """Return how this installation's twistd is called."""
    script = Path(sys.executable).with_name("twistd")
    return (str(script),) if script.exists() else (sys.executable, "-P", "-c", CALL)


@contextmanager
def _at(home: Path) -> Iterator[None]:
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(home)
    try:
        yield
    finally:
        del os.environ["HOME"]
        if before is not None:
            os.environ["HOME"] = before


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    found = {"OSU_CONFIG": _absolute(environ["OSU_CONFIG"])} if environ.get("OSU_CONFIG") else {}
    for setting in table():
        text = environ.get(setting.variable)
        if not text:
            continue
        if setting.name == "api_keys":
            if not text.startswith(("/", "~", ".")):
                raise BadSetting(
                    "OSU_API_KEYS holds the keys themselves, and others could read them in what is installed: put them "
                    "into a file that only you can read, and its path into OSU_API_KEYS or into `api_keys` in "
                    "~/.osaurus/config.toml"
                )
            text = _absolute(text)
        elif setting.kind.name in ("folder", "file") and setting.kind.read(text) is not None:
            text = str(setting.kind.read(text))
        found[setting.variable] = text
    return found


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _address(settings: Settings) -> str:
    if settings.listen:
        raise BadSetting("`listen` is set, which a socket takes the place of; where that is say `port` and `expose`")
    return f"{'0.0.0.0' if settings.expose else '127.0.0.1'}:{settings.port}"  # noqa: S104 - as asked
