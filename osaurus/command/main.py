"""The `osaurus` command: its subcommands, put together.

Each is imported when it is asked for. All of them together take a second and a half, most of it for those that fetch
models and chat, and `osaurus version` should not wait for that; nor should Ctrl-C find so much time in which Python
would answer it with a traceback.
"""

import errno
import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any, ClassVar

import click

from .. import __version__

# What a shell reports of a program that SIGINT ended.
INTERRUPTED = 130


class Subcommands(click.Group):
    """The subcommands, by name: the module of each, and what it is called there."""

    places: ClassVar[dict[str, tuple[str, str]]] = {
        "serve": ("server", "serve"),
        "pull": ("models", "pull_model"),
        "import": ("models", "import_model"),
        "list": ("models", "list_models"),
        "show": ("models", "show_model"),
        "rm": ("models", "remove_models"),
        "cp": ("models", "copy_model"),
        "run": ("chat", "run_model"),
        "ps": ("server", "resident"),
        "stop": ("stop", "stop"),
        "status": ("server", "status"),
        "settings": ("settings", "show_settings"),
        "service": ("service", "service"),
        "doctor": ("doctor", "doctor"),
        "version": ("version", "version"),
    }

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as click declares it
        """Return the names."""
        return sorted(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a subcommand."""
        if cmd_name not in self.places:
            return None
        module, name = self.places[cmd_name]
        command: click.Command = getattr(import_module(f"{__package__}.{module}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand; Ctrl-C ends it without a word, what the system refuses in one line."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            # A pipe that nobody reads any more is click's own.
            if error.errno == errno.EPIPE:
                raise
            raise click.ClickException(str(error)) from error
        except (KeyboardInterrupt, click.Abort):
            if sys.stderr.isatty():
                # The terminal has written ^C.
                click.echo(err=True)
            ctx.exit(INTERRUPTED)


@click.group(
    cls=Subcommands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    # As `examples` in terminal.py puts it.
    epilog="\b\nExamples:\n"
    "  osaurus pull smollm2:135m     install a small model\n"
    "  osaurus serve                 run the server\n"
    "  osaurus run smollm2:135m      chat with the model",
)
@click.version_option(__version__, "-v", "--version", message="osaurus %(version)s")
def main() -> None:
    """Serve MLX language models from your own machine, and chat with them."""
    # A stream that whoever started this has closed is none to Python.
    for name, mode in (("stdin", "r"), ("stdout", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the end
    if isinstance(sys.stdout, TextIOWrapper):
        # Not every terminal has every character.
        sys.stdout.reconfigure(errors="backslashreplace")
