"""What the subcommands reach outside of themselves, and how they find the running server and the models.

Two questions have one answer each, here, for all subcommands.

Which server? The one that is named: `--host`, else OSU_HOST, else OSU_PORT on this machine. Else the one that tells of
itself (osaurus/discovery.py), the latest if there are several. Else the port of the settings, 1337.

Which models? With `--host` or OSU_HOST those of that server, asked for over HTTP. Else those of a folder of this
machine: the one that is named (`--models-dir`, or the settings), else that of the running server, else ~/MLXModels. It
is read straight from the disk, so that `list`, `show` and `cp` need no server and cannot differ from what is there.
What a server has in hand goes through the one that serves the folder: `rm`, since it may have the model in memory, and
`pull`, since it may be fetching it already; unless `--models-dir` says to work on the folder from here.

Rejected: to ask a server for everything where one runs. The same line would then tell of different folders, depending
on who happens to run; a list would take the minutes that its digests take; and it would want an API key for a folder
that its user owns.
"""

import os
import re
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from attrs import define, field, frozen
from rich.console import Console

from .. import settings, sources
from ..boot.manager import Run
from ..boot.manager import run as run_program
from ..discovery import Instance, default_folder, running

if TYPE_CHECKING:
    from ..library.store import ModelStore
    from .client import Client, HTTPClient

T = TypeVar("T")

# A name or an address, perhaps a port; with a scheme it is a URL.
HOST = re.compile(r"(?:(https?)://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?")


@frozen(kw_only=True)
class Place:
    """Where a server is, or should be. `instance` is what it tells of itself; `named` says that somebody named it."""

    url: str
    instance: Instance | None = None
    named: bool = False


def run_reactor(task: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function, which is given the reactor, and return or raise what it does. Once a process.

    Raises click.Abort if the reactor is stopped meanwhile, as by Ctrl-C.
    """
    import asyncio

    from twisted.internet import asyncioreactor
    from twisted.internet.defer import CancelledError, Deferred

    # prompt_toolkit runs on asyncio.
    asyncioreactor.install(asyncio.new_event_loop())
    from twisted.internet.task import deferLater, react

    results: list[T] = []
    errors: list[BaseException] = []

    async def main(reactor: Any) -> None:
        # This is called before the reactor runs; asyncio's functions want their loop to.
        await deferLater(reactor, 0, lambda: None)
        running = Deferred.fromCoroutine(task(reactor))
        ended: Deferred[None] = Deferred()

        def interrupt() -> Deferred[None]:
            running.cancel()
            # The reactor goes on until then: a terminal that was made raw is made as it was.
            return ended

        reactor.addSystemEventTrigger("before", "shutdown", interrupt)
        try:
            results.append(await running)
        except (CancelledError, asyncio.CancelledError):
            errors.append(click.Abort())
        except BaseException as error:  # noqa: BLE001 - raised below, where click sees it
            errors.append(error)
        finally:
            ended.callback(None)

    # It always ends so.
    with suppress(SystemExit):
        react(main)
    if errors:
        raise errors[0]
    return results[0]


def _http_client(reactor: Any) -> "HTTPClient":
    from .client import http_client

    return http_client(reactor)


@define
class Surroundings:
    """The environment, the servers on this machine, the terminal and the reactor; click's context object.

    `run_program` runs what starts servers at boot on a `platform`, whose files are below `root`.
    """

    environ: Mapping[str, str] = field(factory=lambda: os.environ)
    runtime: Path = field(factory=default_folder)
    history: Path = field(factory=lambda: Path.home() / ".osaurus" / "history")
    run: Callable[[Callable[[Any], Coroutine[Any, Any, Any]]], Any] = run_reactor
    http: "Callable[[Any], HTTPClient]" = _http_client
    platform: str = sys.platform
    root: Path = Path("/")
    run_program: Run = run_program
    out: Console = field(factory=lambda: Console(highlight=False, markup=False, emoji=False))
    err: Console = field(factory=lambda: Console(stderr=True, highlight=False, markup=False, emoji=False))

    def instances(self, *, stopping: bool = False) -> list[Instance]:
        """Return the servers that run on this machine, the latest first; and those that are `stopping`, if asked."""
        return [instance for instance in running(self.runtime) if stopping or instance.ends_by is None]

    def settings(self, **given: str) -> settings.Settings:
        """Return the settings, `given` as if on the command line. Raises click.ClickException.

        Whether a server could begin with them is not asked: the one that runs may have other variables than a shell.
        """
        try:
            return sources.Sources(given, self.environ).gather().settings
        except sources.BadSetting as error:
            raise click.ClickException(str(error)) from error

    def named_host(self, host: str | None) -> str | None:
        """Return the server that is named by the option or by the variable, as it is written there."""
        return host or self.environ.get("OSU_HOST") or None

    def server(self, host: str | None) -> Place:
        """Return where the server is; `host` is the option. Raises click.ClickException."""
        named = self.named_host(host)
        if named:
            return Place(url=self._url(named), named=True)
        instances = self.instances()
        if self.environ.get("OSU_PORT"):
            port = self.settings().port
            found = next((instance for instance in instances if instance.port == port), None)
            url = found.url if found is not None else None
            return Place(url=url or f"http://127.0.0.1:{port}", instance=found, named=True)
        latest = next((instance for instance in instances if instance.url), None)
        if latest is not None and latest.url:
            return Place(url=latest.url, instance=latest)
        if instances:
            raise click.ClickException(
                f"The server that runs here (process {instances[0].pid}) listens on no plain TCP port. Name it with "
                "--host https://NAME:PORT, or have it listen on tcp:1337:interface=127.0.0.1 as well."
            )
        return Place(url=f"http://127.0.0.1:{self.settings().port}")

    def client(self, reactor: Any, place: Place) -> "Client":
        """Return what speaks with a server.

        Whoever has the usual port while no server runs may be anybody on this machine, and is told no API key.
        """
        from .client import Client

        known = place.named or place.instance is not None
        return Client(self.http(reactor), place.url, self.environ.get("OSU_API_KEY", "") if known else "")

    def models_folder(self, given: Path | None) -> Path:
        """Return the folder of models; `given` is the option. Raises click.ClickException."""
        if given is not None:
            return self.settings(models_dir=str(given)).models_dir
        chosen = self.settings().models_dir
        if self.environ.get("OSU_MODELS_DIR") or chosen != settings.Settings().models_dir:
            return chosen
        return next((found.models_dir for found in self.instances() if found.models_dir is not None), chosen)

    def store(self, folder: Path) -> "ModelStore":
        """Return the models of a folder, and those of the Hugging Face cache. Raises click.ClickException."""
        from ..library.hub_cache import HubCache
        from ..library.store import ModelStore

        cache = self.settings().hub_cache
        return ModelStore(folder, HubCache(cache) if cache else None)

    def server_of(self, folder: Path) -> Place | None:
        """Return the server on this machine that serves a folder of models, if there is one."""
        for instance in self.instances():
            if instance.url and instance.models_dir == folder:
                return Place(url=instance.url, instance=instance)
        return None

    def _url(self, named: str) -> str:
        match = HOST.fullmatch(named)
        if match is None or (match[3] and not 0 < int(match[3]) < 65536):
            raise click.UsageError(
                f"--host, OSU_HOST: must be a host, host:port, or a URL such as http://127.0.0.1:1337, not {named!r}"
            )
        port = match[3] or ("" if match[1] == "https" else str(self.settings().port))
        return f"{match[1] or 'http'}://{match[2]}" + (f":{port}" if port else "")


host_option = click.option(
    "--host", metavar="HOST[:PORT]", help="The server to ask; as OSU_HOST. If not: the running one."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
models_dir_option = click.option(
    "--models-dir",
    type=click.Path(path_type=Path),
    help="Where models are; as OSU_MODELS_DIR. If not set: the running server's, else ~/MLXModels.",
)
pass_surroundings = click.make_pass_decorator(Surroundings, ensure=True)
