"""What goes wrong with a server, each as one line; apart from the client, whose import takes half a second."""

from collections.abc import Iterator
from contextlib import contextmanager

import click


class NoServer(click.ClickException):
    """There is nobody where the server should be, or not one of ours."""


class Refused(click.ClickException):
    """The server answered with an error; `status` is its HTTP status, 200 if it came in the middle of a stream."""

    def __init__(self, message: str, status: int) -> None:
        if status == 401:
            message += ". It goes to a server that runs here as you, or that is named with --host"
        super().__init__(message)
        self.status = status


@contextmanager
def understanding() -> Iterator[None]:
    """Have a server's answer that lacks what is looked for, or has something else in its place, be one line."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise click.ClickException(
            f"The server's answer is not understood ({error!r}). Is it of another version, or no Osaurus?"
        ) from error
