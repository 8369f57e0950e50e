"""The subcommand that tells the version."""

import click

from .. import __version__
from .surroundings import json_option
from .terminal import print_json


@click.command("version")
@json_option
def version(as_json: bool) -> None:
    """Tell the version."""
    if as_json:
        print_json({"version": __version__})
    else:
        click.echo(__version__)
