"""The `osaurus` command."""

import os
from pathlib import Path

import click

from . import __version__, settings
from .library.hub_cache import HubCache
from .library.pull import Progress, PullError, pull
from .library.store import ModelStore


def _settings(models_dir: Path | None) -> settings.Settings:
    try:
        return settings.load({"models_dir": str(models_dir)} if models_dir else {}, os.environ)
    except settings.BadSetting as error:
        raise click.ClickException(str(error)) from error


def _cache(chosen: settings.Settings) -> HubCache | None:
    return HubCache(chosen.hub_cache) if chosen.hub_cache else None


models_dir = click.option(
    "--models-dir", type=click.Path(path_type=Path), help="Where models are; as OSU_MODELS_DIR, else ~/MLXModels."
)


@click.group()
def main() -> None:
    """Serve MLX language models from your own machine. The server itself is `twistd -n osaurus`."""


@main.command("pull")
@click.argument("model")
@click.option("--quantize", type=click.IntRange(2, 8), help="Convert the weights to so many bits.")
@models_dir
def pull_command(model: str, models_dir: Path | None, quantize: int | None) -> None:
    """Install MODEL, unless it is installed: organisation/name as on the Hugging Face hub, or a short name."""
    told = ""

    def tell(progress: Progress) -> None:
        nonlocal told
        if progress.status != told:
            click.echo(progress.status)
        told = progress.status

    chosen = _settings(models_dir)
    try:
        click.echo(pull(model, chosen.models_dir, tell, quantize=quantize, cache=_cache(chosen)))
    except PullError as error:
        raise click.ClickException(str(error)) from error


@main.command("list")
@models_dir
def list_command(models_dir: Path | None) -> None:
    """List the installed models."""
    chosen = _settings(models_dir)
    for model in ModelStore(chosen.models_dir, _cache(chosen)).models():
        click.echo(f"{model.id}\t{model.repository}\t{model.size / 2**20:.0f} MiB")


@main.command("version")
def version_command() -> None:
    """Tell the version."""
    click.echo(__version__)
