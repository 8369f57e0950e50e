"""What a pull tells while it is under way, and what may keep it from succeeding."""

from attrs import frozen


@frozen
class Progress:
    """A stage of a pull, in Ollama's words; of a file its digest, and its size and what is here of it, in bytes."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


class PullError(Exception):
    """The model cannot be had; one line says why and what to do."""


class NoSuchRepository(PullError):
    """There is no such model to be had."""


class AccessDenied(PullError):
    """Its owner does not let everybody have it."""
