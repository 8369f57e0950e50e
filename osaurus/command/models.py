"""The subcommands about models: what there is, getting it, and getting rid of it."""

import json
from pathlib import Path
from typing import Any

import attrs
import click
from rich.filesize import decimal

from ..library.ending import ends_in_order
from ..library.importing import ImportFailed, import_gguf
from ..library.names import SHORT_NAMES
from ..library.progress import Progress
from .errors import understanding
from .library import library
from .surroundings import Surroundings, host_option, json_option, models_dir_option, pass_surroundings
from .terminal import Reporter, ago, examples, print_json, print_table, printable

STARTER = next(iter(SHORT_NAMES))


@click.command("list", epilog=examples("osaurus list", "osaurus list --json | jq -r '.[].name'"))
@host_option
@models_dir_option
@json_option
@pass_surroundings
def list_models(surroundings: Surroundings, host: str | None, models_dir: Path | None, as_json: bool) -> None:
    """List the installed models. Into a pipe goes a line for each, its columns separated by tabs."""
    models = library(surroundings, host, models_dir).models()
    if as_json:
        print_json(models)
        return
    with understanding():
        rows = [
            (
                model["name"],
                decimal(model["size"]),
                model["details"]["parameter_size"],
                model["details"]["quantization_level"],
                ago(model["modified_at"]),
            )
            for model in models
        ]
    print_table(surroundings.out, ("NAME", "SIZE", "PARAMETERS", "QUANTIZATION", "MODIFIED"), rows)
    if not models:
        click.echo(f"No model is installed. `osaurus pull {STARTER}` gets a small one.", err=True)


@click.command("show", epilog=examples("osaurus show smollm2:135m", "osaurus show smollm2:135m --template"))
@click.argument("model")
@click.option("--template", "part", flag_value="template", help="Only the chat template.")
@click.option("--license", "part", flag_value="license", help="Only the licence.")
@click.option("--modelfile", "part", flag_value="modelfile", help="Only what Ollama calls the Modelfile.")
@host_option
@models_dir_option
@json_option
@pass_surroundings
def show_model(
    surroundings: Surroundings, model: str, part: str | None, host: str | None, models_dir: Path | None, as_json: bool
) -> None:
    """Tell what is known of MODEL."""
    known = library(surroundings, host, models_dir).show(model)
    if as_json:
        print_json(known)
    elif part:
        click.echo(printable(str(known.get(part, ""))))
    else:
        for line in description(known):
            click.echo(printable(line))


@understanding()
def description(known: dict[str, Any]) -> list[str]:
    """Return what is known of a model, as lines for people. Raises click.ClickException."""
    details, info = known["details"], known["model_info"]
    facts = {
        "architecture": info["general.architecture"],
        "parameters": details["parameter_size"],
        "quantization": details["quantization_level"],
        **{
            name.partition(".")[2].replace(".", " ").replace("_", " "): value
            for name, value in info.items()
            if "general." not in name
        },
        **{name: known[name] for name in ("repository", "folder") if name in known},
    }
    lines = ["Model", *(f"  {name:<24}{value}" for name, value in facts.items())]
    lines += ["", "Capabilities", *(f"  {capability}" for capability in known.get("capabilities", ()))]
    if known.get("license"):
        lines += ["", "License", *(f"  {line}" for line in known["license"].strip().splitlines()[:2])]
    return lines


@click.command(
    "pull",
    epilog=examples(
        "osaurus pull qwen3:4b", "osaurus pull mlx-community/Qwen3-4B-4bit", "osaurus pull Qwen/Qwen3-4B --quantize 4"
    ),
)
@click.argument("model")
@click.option("--quantize", type=click.IntRange(2, 8), help="Convert the weights to so many bits.")
@host_option
@models_dir_option
@json_option
@pass_surroundings
def pull_model(
    surroundings: Surroundings,
    model: str,
    quantize: int | None,
    host: str | None,
    models_dir: Path | None,
    as_json: bool,
) -> None:
    """Install MODEL, unless it is installed: organisation/name as on the Hugging Face hub, or a short name.

    With --json each step is a line of JSON.
    """
    models = library(surroundings, host, models_dir, changes=True)
    if as_json:
        models.pull(model, quantize, _print_step)
        return
    with Reporter(surroundings.err) as reporter:
        models.pull(model, quantize, reporter.tell)


@click.command(
    "import",
    epilog=examples("osaurus import Qwen3-4B-Q4_K_M.gguf", "osaurus import model-00001-of-00003.gguf --name my-model"),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="What the model is to be called: a name, or organisation/name. If not set: as the file.")
@models_dir_option
@json_option
@pass_surroundings
def import_model(
    surroundings: Surroundings, file: Path, name: str | None, models_dir: Path | None, as_json: bool
) -> None:
    """Convert the GGUF FILE to a model that can be served; of a split file, any part.

    With --json each step is a line of JSON.
    """
    folder = surroundings.models_folder(models_dir)
    status = f"importing {file.name}"
    with Reporter(surroundings.err) as reporter:
        tell = _print_step if as_json else reporter.tell
        try:
            with ends_in_order():
                repository = import_gguf(
                    file, folder, lambda news: tell(Progress(status, total=news.total, completed=news.done)), name=name
                )
        except ImportFailed as error:
            raise click.ClickException(str(error)) from error
        tell(Progress("success"))
    if not as_json:
        click.echo(f"Imported {printable(repository)}")


def _print_step(progress: Progress) -> None:
    click.echo(json.dumps({name: value for name, value in attrs.asdict(progress).items() if value}))


@click.command("rm", epilog=examples("osaurus rm smollm2:135m", "osaurus rm my-model organisation/other"))
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@host_option
@models_dir_option
@pass_surroundings
def remove_models(
    surroundings: Surroundings, models: tuple[str, ...], host: str | None, models_dir: Path | None
) -> None:
    """Remove each MODEL from the disk, without asking."""
    library(surroundings, host, models_dir, changes=True).remove(
        models, lambda name: click.echo(f"Removed {printable(name)}")
    )


@click.command("cp", epilog=examples("osaurus cp smollm2:135m my-model"))
@click.argument("source")
@click.argument("destination")
@host_option
@models_dir_option
@pass_surroundings
def copy_model(
    surroundings: Surroundings, source: str, destination: str, host: str | None, models_dir: Path | None
) -> None:
    """Have the model SOURCE under the name DESTINATION as well. The disk holds its weights once, where it can."""
    library(surroundings, host, models_dir).copy(source, destination)
    click.echo(f"Copied {source} to {destination}")
