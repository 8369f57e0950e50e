"""The `osaurus` command."""

import os
from pathlib import Path

import click

from . import __version__, settings
from .library.pull import Progress, PullError, pull
from .library.store import ModelStore


def _models_folder(given: Path | None) -> Path:
    try:
        return settings.load({"models_dir": str(given)} if given else {}, os.environ).models_dir
    except settings.BadSetting as error:
        raise click.ClickException(str(error)) from error


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

    try:
        click.echo(pull(model, _models_folder(models_dir), tell, quantize=quantize))
    except PullError as error:
        raise click.ClickException(str(error)) from error


@main.command("list")
@models_dir
def list_command(models_dir: Path | None) -> None:
    """List the installed models."""
    folder = _models_folder(models_dir)
    for model in ModelStore(folder).models():
        click.echo(f"{model.id}\t{model.repository}\t{model.size / 2**20:.0f} MiB")


@main.command("version")
def version_command() -> None:
    """Tell the version."""
    click.echo(__version__)
