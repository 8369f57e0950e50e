"""The subcommand that ends a server, in order or at once.

How long that takes is the server's to know: when it begins to stop, it writes into its file (osaurus/discovery.py) by
when it will have ended, and that is waited for.
"""

import os
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import Any

import click

from ..boot.manager import Manager, ManagerFailed
from ..discovery import Instance
from .boot import managing
from .surroundings import Surroundings, host_option, pass_surroundings
from .terminal import examples

# In seconds: until a server has begun to stop, and beyond the time by which it says it will have ended.
BEGIN_SECONDS = 30.0
GRACE_SECONDS = 5.0
LOOK_EVERY = 0.05
# The same where a program has to be asked.
ASK_EVERY = 0.5


@click.command("stop", epilog=examples("osaurus stop", "osaurus stop --now", "osaurus stop smollm2:135m"))
@click.argument("model", required=False)
@click.option("--pid", type=int, help="The server with this process number, where several run.")
@click.option("--all", "every", is_flag=True, help="Every server of this user on this machine.")
@click.option("--now", is_flag=True, help="Do not wait for answers under way: they end with an error.")
@host_option
@pass_surroundings
def stop(
    surroundings: Surroundings, model: str | None, pid: int | None, every: bool, now: bool, host: str | None
) -> None:
    """Stop the server on this machine; with MODEL only take that model out of its memory.

    What is being answered becomes complete first, for as long as the server's setting `drain` says.
    """
    if pid is not None and (every or model is not None):
        raise click.UsageError("--pid says which server to stop: not with --all, and not with MODEL")
    if model is not None:

        async def unload(reactor: Any) -> None:
            client = surroundings.client(reactor, surroundings.server(host))
            await client.post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})

        surroundings.run(unload)
        click.echo(f"{model} is no longer in memory")
        return
    if host:
        raise click.UsageError("--host is for `stop MODEL`; a server is stopped on its own machine")
    for instance in _chosen(surroundings, pid, every):
        manager = stop_server(surroundings, instance, now)
        click.echo(f"Stopped the server at {_place(instance)}, process {instance.pid}")
        if manager is not None:
            click.echo(f"`{_by(manager, 'start')}` starts it again, and so does the next login or boot")


def _chosen(surroundings: Surroundings, pid: int | None, every: bool) -> Sequence[Instance]:
    """Return the servers to stop. OSU_HOST has no say: they are on this machine."""
    ours = [instance for instance in surroundings.instances(stopping=True) if instance.pid is not None]
    which = ""
    if pid is not None:
        ours, which = [instance for instance in ours if instance.pid == pid], f" as process {pid}"
    elif surroundings.environ.get("OSU_PORT") and not every:
        port = surroundings.settings().port
        ours, which = [instance for instance in ours if instance.port == port], f" at port {port} (OSU_PORT)"
    if not ours:
        raise click.ClickException(f"No server of yours runs on this machine{which} that could be stopped")
    if len(ours) > 1 and not every:
        listed = ", ".join(f"{_place(instance)} (process {instance.pid})" for instance in ours)
        raise click.UsageError(f"Several servers run: {listed}. Say which with --pid, or --all")
    return ours


def _place(instance: Instance) -> str:
    return instance.url or "its socket"


def stop_server(surroundings: Surroundings, instance: Instance, now: bool) -> Manager | None:
    """End a server on this machine and wait for it; `now` has it wait for nobody.

    Returns what starts it at boot, which was told and would have started it again. Raises click.ClickException.
    """
    manager = managing(surroundings, instance)
    if instance.ends_by is None:
        if manager is None:
            _signal(instance)
        else:
            try:
                manager.stop()
            except ManagerFailed as error:
                whose = f". It is the machine's server: `{_by(manager, 'stop')}`" if manager.system else ""
                raise click.ClickException(f"{error}{whose}") from error
    # A second signal hurries, but one that comes before the first was heard is none.
    wait_for_end(instance, (lambda: _signal(instance)) if now else None)
    return manager


def wait_for_end(instance: Instance, hurry: Callable[[], None] | None = None) -> None:
    """Wait until a server has ended that was told to; once it has begun to, `hurry` it. Raises click.ClickException."""
    patience = monotonic() + BEGIN_SECONDS
    told = False
    while (found := instance.now()) is not None:
        left = patience - monotonic()
        if found.ends_by is not None:
            left = (found.ends_by - datetime.now(UTC)).total_seconds() + GRACE_SECONDS
            if not told:
                told = True
                if hurry is not None:
                    hurry()
                else:
                    click.echo(
                        "It completes what it is answering, "
                        f"until {found.ends_by.astimezone():%H:%M:%S} at the latest (--now: at once)",
                        err=True,
                    )
        if left < 0:
            raise click.ClickException(f"Process {instance.pid} was asked to end and is still there")
        sleep(LOOK_EVERY)


def wait_for_manager(manager: Manager, pid: int) -> None:
    """Wait until what starts a server at boot, which was told to stop it, knows it no more; it bounds that itself.

    Raises ManagerFailed.
    """
    if manager.status().pid != pid:
        return
    click.echo("It completes what it is answering", err=True)
    while manager.status().pid == pid:
        sleep(ASK_EVERY)


def _by(manager: Manager, verb: str) -> str:
    """Return the command that has a manager do something."""
    return f"sudo osaurus service {verb} --system" if manager.system else f"osaurus service {verb}"


def _signal(instance: Instance) -> None:
    """Tell a server to end.

    Its file is locked as long as it lives, so that the process is the one that wrote it.
    """
    assert instance.pid is not None, "chosen for it"
    try:
        if instance.now() is not None:
            os.kill(instance.pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise click.ClickException(f"Process {instance.pid} may not be ended by you") from error
