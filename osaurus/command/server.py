"""The subcommands about the server: running it, and what it does at the moment."""

import os
import sys
from typing import Any

import click
from rich.filesize import decimal

from .errors import NoServer, understanding
from .settings import setting_options
from .surroundings import Surroundings, host_option, json_option, pass_surroundings
from .terminal import ago, examples, print_json, print_table, printable

HEALTH_SECONDS = 5.0

# What `osaurus serve` becomes. Ctrl-C before there is a reactor to hear it ends the process as any other.
TWISTD = """\
import sys
try:
    from twisted.scripts.twistd import run
    run()
except KeyboardInterrupt:
    sys.exit(130)
"""


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
    # The folder that one happens to be in is none for modules.
    command = [sys.executable, "-P", "-c", TWISTD, "--nodaemon", "--pidfile="]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, "osaurus", *arguments])  # noqa: S606 - this very Python, no shell


serve = click.Command(
    "serve",
    callback=_serve,
    params=setting_options(),
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
