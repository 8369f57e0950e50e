"""The subcommands about the server: running it, ending it, and what it does at the moment."""

import os
import signal
import sys
from collections.abc import Sequence
from time import monotonic, sleep
from typing import Any

import click
from rich.filesize import decimal

from .. import settings
from ..discovery import Instance
from .client import NoServer, understanding
from .surroundings import Surroundings, host_option, json_option, pass_surroundings
from .terminal import ago, examples, print_json, print_table, printable

HEALTH_SECONDS = 5.0
# For a server to end: what it answers at the moment ends with an error, but a step of the engine may be long.
STOP_SECONDS = 30.0


def _serve(**options: Any) -> None:
    """Run the server until Ctrl-C; for one in the background there is `twistd osaurus`.

    The options are those of `twistd osaurus`, the settings.
    """
    arguments: list[str] = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            arguments.append(option)
        elif value:
            arguments += [f"{option}={each}" for each in (value if isinstance(value, tuple) else (value,))]
    command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile="]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, "osaurus", *arguments])  # noqa: S606 - this very Python, no shell


def _option(name: str, meaning: str) -> click.Option:
    if name in settings.FLAGS:
        return click.Option([f"--{name.replace('_', '-')}", name], is_flag=True, help=meaning)
    return click.Option([f"--{name.replace('_', '-')}", name], multiple=name == "listen", help=meaning)


serve = click.Command(
    "serve",
    callback=_serve,
    params=[
        _option("config", "A TOML file with settings."),
        *(_option(name, meaning) for name, meaning in settings.table()),
    ],
    help=_serve.__doc__,
    epilog=examples("osaurus serve", "osaurus serve --port 8080 --preload smollm2:135m"),
)


@click.command("status", epilog=examples("osaurus status", "osaurus status --json"))
@host_option
@json_option
@pass_surroundings
def status(surroundings: Surroundings, host: str | None, as_json: bool) -> None:
    """Tell whether the server runs and can answer. The exit status is 0 if so, else 1."""
    place = surroundings.server(host)
    found: dict[str, Any] = {"running": True, "url": place.url}

    async def ask(reactor: Any) -> dict[str, Any]:
        return await surroundings.client(reactor, place).health(HEALTH_SECONDS)

    try:
        found |= surroundings.run(ask)
    except NoServer as error:
        found |= {"running": False, "status": "error", "reason": error.message}
    if place.instance is not None:
        found |= {"pid": place.instance.pid, "exposed": place.instance.exposed}
        found |= {"models_dir": str(place.instance.models_dir)} if place.instance.models_dir else {}
    healthy = found["status"] == "ok"
    if as_json:
        print_json(found)
    elif healthy:
        pid = f", process {found['pid']}" if found.get("pid") else ""
        click.echo(f"Osaurus {printable(found['version'] or '')} is running at {place.url}{pid}".replace("  ", " "))
    else:
        click.echo(printable(found.get("reason") or "The server is not well"), err=True)
    sys.exit(0 if healthy else 1)


@click.command("ps", epilog=examples("osaurus ps"))
@host_option
@json_option
@pass_surroundings
def resident(surroundings: Surroundings, host: str | None, as_json: bool) -> None:
    """List the models in memory."""

    async def ask(reactor: Any) -> Any:
        return await surroundings.client(reactor, surroundings.server(host)).get("/api/ps")

    answer = surroundings.run(ask)
    with understanding():
        models = list(answer["models"])
        rows = [
            (
                model["name"],
                decimal(model["size"]),
                "GPU" if model["size_vram"] else "CPU",
                str(model.get("context_length", "")),
                ago(model["expires_at"]),
            )
            for model in models
        ]
    if as_json:
        print_json(models)
        return
    print_table(surroundings.out, ("NAME", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), rows)


@click.command("stop", epilog=examples("osaurus stop", "osaurus stop smollm2:135m"))
@click.argument("model", required=False)
@click.option("--all", "every", is_flag=True, help="Every server of this user on this machine.")
@host_option
@pass_surroundings
def stop(surroundings: Surroundings, model: str | None, every: bool, host: str | None) -> None:
    """Stop the server on this machine; with MODEL only take that model out of its memory.

    What is being answered ends with an error that says so.
    """
    if model is not None:

        async def unload(reactor: Any) -> None:
            client = surroundings.client(reactor, surroundings.server(host))
            await client.post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})

        surroundings.run(unload)
        click.echo(f"{model} is no longer in memory")
        return
    if host:
        raise click.UsageError("--host is for `stop MODEL`; a server is stopped on its own machine")
    for instance in _chosen(surroundings, every):
        stop_server(instance)
        click.echo(f"Stopped the server at {instance.url or 'its socket'}, process {instance.pid}")


def _chosen(surroundings: Surroundings, every: bool) -> Sequence[Instance]:
    """Return the servers to stop."""
    ours = [instance for instance in surroundings.instances() if instance.pid is not None]
    if surroundings.environ.get("OSU_PORT") and not every:
        ours = [instance for instance in ours if instance.url == surroundings.server(None).url]
    if not ours:
        raise click.ClickException("No server of yours runs on this machine that could be stopped")
    if len(ours) > 1 and not every:
        listed = ", ".join(f"{instance.url} (process {instance.pid})" for instance in ours)
        raise click.UsageError(f"Several servers run: {listed}. Say which by its port, with OSU_PORT, or --all")
    return ours


def stop_server(instance: Instance) -> None:
    """End a server on this machine in order, and wait for it. Raises click.ClickException.

    Its file is locked as long as it lives (osaurus/discovery.py), so that the process is the one that wrote it.
    """
    assert instance.pid is not None, "chosen for it"
    try:
        if instance.is_alive():
            os.kill(instance.pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise click.ClickException(f"Process {instance.pid} may not be ended by you") from error
    deadline = monotonic() + STOP_SECONDS
    while instance.is_alive():
        if monotonic() > deadline:
            raise click.ClickException(
                f"Process {instance.pid} was asked to end and is still there after {STOP_SECONDS:.0f} seconds"
            )
        sleep(0.05)
