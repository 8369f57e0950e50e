"""The `osaurus` command: its subcommands, put together."""

import click

from .. import __version__
from .chat import run_model
from .doctor import doctor
from .models import copy_model, import_model, list_models, pull_model, remove_models, show_model
from .server import resident, serve, status
from .service import service
from .settings import show_settings
from .stop import stop
from .surroundings import json_option
from .terminal import examples, print_json


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "osaurus pull smollm2:135m     install a small model",
        "osaurus serve                 run the server",
        "osaurus run smollm2:135m      chat with the model",
    ),
)
@click.version_option(__version__, "-v", "--version", message="osaurus %(version)s")
def main() -> None:
    """Serve MLX language models from your own machine, and chat with them."""


@click.command("version")
@json_option
def version(as_json: bool) -> None:
    """Tell the version."""
    if as_json:
        print_json({"version": __version__})
    else:
        click.echo(__version__)


for command in (
    serve,
    pull_model,
    import_model,
    list_models,
    show_model,
    remove_models,
    copy_model,
    run_model,
    resident,
    stop,
    status,
    show_settings,
    service,
    doctor,
    version,
):
    main.add_command(command)
