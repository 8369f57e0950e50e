"""The subcommands that have the operating system start the server: launchd on a Mac, elsewhere systemd."""

import getpass
import pwd
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from ..boot.job import Job, job
from ..boot.manager import Manager, ManagerFailed
from ..sources import BadSetting
from .boot import manager_of
from .stop import wait_for_end, wait_for_manager
from .surroundings import Surroundings, json_option, pass_surroundings
from .terminal import examples, print_json, printable

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def _plainly() -> Iterator[None]:
    """Have what goes wrong be one line."""
    try:
        yield
    except (BadSetting, ManagerFailed) as error:
        raise click.ClickException(printable(str(error))) from error
    except PermissionError as error:
        raise click.ClickException(
            f"{error.filename} may not be written by you; with --system this takes sudo"
        ) from error
    except OSError as error:
        raise click.ClickException(str(error)) from error


def _manager_options(function: F) -> F:
    for option in (
        click.option("--system", is_flag=True, help="The machine's, which starts at boot; takes sudo."),
        click.option("--systemd", "kind", flag_value="systemd", help="systemd. If not given: where this is no Mac."),
        click.option("--launchd", "kind", flag_value="launchd", help="launchd. If not given: on a Mac."),
    ):
        function = option(function)
    return function


def _job_options(function: F) -> F:
    for option in (
        click.option("--user", help="With --system: whom the server runs as. If not given: who calls sudo."),
        click.option("--socket", is_flag=True, help="systemd listens, and starts the server for who comes first."),
    ):
        function = option(function)
    return _manager_options(function)


@click.group("service", epilog=examples("osaurus service install", "osaurus service status", "osaurus service print"))
def service() -> None:
    """Have the server started at login or at boot: by launchd on a Mac, elsewhere by systemd."""


@service.command("install")
@_job_options
@pass_surroundings
def install(surroundings: Surroundings, kind: str | None, system: bool, socket: bool, user: str | None) -> None:
    """Have the server started from now on, and start it. It gets the OSU_ variables that are set now."""
    with _plainly():
        manager, chosen = _planned(surroundings, kind, system, socket, user)
        changed = manager.install(chosen)
        for path in manager.files(chosen):
            click.echo(f"{'Installed' if changed else 'Already installed:'} {path}")
    click.echo(_when(manager, chosen))


@service.command("uninstall")
@_manager_options
@pass_surroundings
def uninstall(surroundings: Surroundings, kind: str | None, system: bool) -> None:
    """End the server and have it started no more."""
    manager = manager_of(surroundings, kind, system)
    with _plainly():
        removed = manager.uninstall()
    click.echo(f"Removed from {manager.name}" if removed else f"Nothing of Osaurus is installed in {manager.name}")


@service.command("start")
@_manager_options
@pass_surroundings
def start(surroundings: Surroundings, kind: str | None, system: bool) -> None:
    """Start the server that is installed."""
    manager = _installed(surroundings, kind, system)
    with _plainly():
        manager.start()
    click.echo("Started")


@service.command("stop")
@_manager_options
@pass_surroundings
def stop_service(surroundings: Surroundings, kind: str | None, system: bool) -> None:
    """Stop the server that is installed, until the next login or boot, or `start`."""
    manager = _installed(surroundings, kind, system)
    with _plainly():
        pid = manager.status().pid
        manager.stop()
        if pid is not None:
            # What root stops tells of itself in somebody else's home.
            mine = [instance for instance in surroundings.instances(stopping=True) if instance.pid == pid]
            if mine:
                wait_for_end(mine[0])
            else:
                wait_for_manager(manager, pid)
    click.echo("Stopped")


@service.command("status")
@_manager_options
@json_option
@pass_surroundings
def service_status(surroundings: Surroundings, kind: str | None, system: bool, as_json: bool) -> None:
    """Tell whether the server is installed and runs. The exit status is 0 if so, else 1."""
    manager = manager_of(surroundings, kind, system)
    with _plainly():
        found = manager.status()
    if as_json:
        print_json(
            {
                "manager": manager.name,
                "system": system,
                "installed": found.installed,
                "state": found.state,
                "pid": found.pid,
                "waiting": found.waiting,
            }
        )
    elif not found.installed:
        click.echo(f"Osaurus is not installed in {manager.name}; `osaurus service install` does that")
    else:
        doing = f", process {found.pid}" if found.pid else ", will be started" if found.waiting else ""
        click.echo(printable(f"Osaurus in {manager.name}: {found.state}{doing}"))
    sys.exit(0 if found.pid or found.waiting else 1)


@service.command("print")
@_job_options
@pass_surroundings
def print_files(surroundings: Surroundings, kind: str | None, system: bool, socket: bool, user: str | None) -> None:
    """Print what `install` would write."""
    with _plainly():
        manager, chosen = _planned(surroundings, kind, system, socket, user)
        files = manager.files(chosen)
    for path, content in files.items():
        if len(files) > 1:
            click.echo(f"# {path}")
        click.echo(content, nl=False)


def _planned(
    surroundings: Surroundings, kind: str | None, system: bool, socket: bool, user: str | None
) -> tuple[Manager, Job]:
    manager = manager_of(surroundings, kind, system)
    if socket and manager.name != "systemd":
        raise click.UsageError("--socket is for systemd; launchd starts the server at once")
    if user and not system:
        raise click.UsageError("--user is for --system; otherwise the server is yours")
    name, home = getpass.getuser(), Path.home()
    if system:
        name = user or surroundings.environ.get("SUDO_USER") or name
        if name == "root" and not user:
            raise click.UsageError("--user: say whom the server is to run as, who is better not root")
        try:
            home = Path(pwd.getpwnam(name).pw_dir)
        except KeyError as error:
            raise click.UsageError(f"--user: there is no user {name!r} here") from error
    return manager, job(surroundings.environ, name, home, socket=socket)


def _installed(surroundings: Surroundings, kind: str | None, system: bool) -> Manager:
    manager = manager_of(surroundings, kind, system)
    with _plainly():
        if manager.status().installed:
            return manager
    whole = "osaurus service install" + (" --system" if system else "")
    raise click.ClickException(f"Osaurus is not installed in {manager.name}; `{whole}` does that")


def _when(manager: Manager, chosen: Job) -> str:
    """Return what begins from now on, and when."""
    if chosen.socket:
        begun = f"systemd listens on {chosen.socket} and starts the server for who comes first"
    else:
        begun = "The server is started"
    if manager.system:
        return f"{begun}, from now on and after every boot."
    if manager.name == "launchd":
        return f"{begun}, from now on and at every login."
    return f"{begun}, from now on and at every login; `loginctl enable-linger` makes that every boot."
