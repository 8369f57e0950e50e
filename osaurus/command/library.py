"""The models that a subcommand is about: those of a folder on this machine's disk, or those of a server.

Both tell of them in the words of Ollama's API, so that `--json` is the same wherever they are; a folder leaves out the
digest, which takes reading every file, and says where each model is.
"""

import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click
from attrs import define

from ..chat import ApiError, InstalledModel
from ..dialects import ollama_models
from ..library.ending import ends_in_order
from ..library.folder import UnusableFolder
from ..library.progress import Progress, PullError
from ..library.store import ModelStore
from .errors import understanding
from .surroundings import Place, Surroundings

if TYPE_CHECKING:
    # Half a second of imports, which most of the subcommands need not wait for.
    from .client import Client

T = TypeVar("T")

Tell = Callable[[Progress], None]


class Library(Protocol):
    """Models, and what can be done with them. Everything raises click.ClickException."""

    def models(self) -> list[dict[str, Any]]:
        """Return the models, as `/api/tags` does."""

    def show(self, name: str) -> dict[str, Any]:
        """Return what is known of a model, as `/api/show` does."""

    def copy(self, source: str, destination: str) -> None:
        """Have a model under another name as well."""

    def remove(self, names: Sequence[str], tell: Callable[[str], None]) -> None:
        """Remove models from the disk; `tell` each that is gone."""

    def pull(self, name: str, quantize: int | None, tell: Tell) -> None:
        """Install a model, unless it is installed; its weights converted to so many bits, if told how many."""


def library(surroundings: Surroundings, host: str | None, models_dir: Path | None, changes: bool = False) -> Library:
    """Return the models that the options and the environment mean.

    `changes` says that a server may have them in hand, so that the one that serves them should do it.
    """
    if surroundings.named_host(host):
        if models_dir is not None:
            raise click.UsageError("--models-dir is a folder of this machine, --host another server: give one of them")
        return Served(surroundings, surroundings.server(host))
    folder = surroundings.models_folder(models_dir)
    if os.access(folder, os.F_OK) and not folder.is_dir():
        raise click.ClickException(f"models_dir: {folder} is no folder")
    serving = surroundings.server_of(folder) if changes and models_dir is None else None
    return Served(surroundings, serving) if serving else Disk(surroundings.store(folder))


@define
class Disk:
    """The models of a folder."""

    _store: ModelStore

    def models(self) -> list[dict[str, Any]]:
        """Return the models; tells of a folder that is not there, which may be one that was misspelt."""
        if not self._store.folder.is_dir():
            click.echo(f"There is no folder {self._store.folder} yet, in which models are to be.", err=True)
        return [_entry(model) for model in self._store.models()]

    def show(self, name: str) -> dict[str, Any]:
        """Return what a model's folder says."""
        from ..library.card import card

        with _told(name):
            model = self._store.find(name)
            return {**ollama_models.show(card(model)), "repository": model.repository, "folder": str(model.folder)}

    def copy(self, source: str, destination: str) -> None:
        """Copy within the folder."""
        with _told(source):
            self._store.copy(self._store.find(source), destination)

    def remove(self, names: Sequence[str], tell: Callable[[str], None]) -> None:
        """Remove from the folder."""
        for name in names:
            with _told(name):
                model = self._store.find(name)
                self._store.remove(self._store.take_away(model))
            tell(model.id)

    def pull(self, name: str, quantize: int | None, tell: Tell) -> None:
        """Install into the folder, in this process."""
        from ..library.pull import pull

        try:
            with ends_in_order():
                pull(name, self._store.folder, tell, quantize=quantize, cache=self._store.cache)
        except PullError as error:
            raise click.ClickException(str(error)) from error


@define
class Served:
    """The models of a server."""

    _surroundings: Surroundings
    _place: Place

    def models(self) -> list[dict[str, Any]]:
        """Return the models; without what this machine knows of their places."""
        answer = self._ask(lambda client: client.get("/api/tags"))
        with understanding():
            return list(answer["models"])

    def show(self, name: str) -> dict[str, Any]:
        """Return what the server knows of a model."""
        answer = self._ask(lambda client: client.post("/api/show", {"model": name}))
        with understanding():
            return dict(answer)

    def copy(self, source: str, destination: str) -> None:
        """Have the server copy."""
        self._ask(lambda client: client.post("/api/copy", {"source": source, "destination": destination}))

    def remove(self, names: Sequence[str], tell: Callable[[str], None]) -> None:
        """Have the server let go of models and remove them."""

        async def each(client: "Client") -> None:
            for name in names:
                await client.delete("/api/delete", {"model": name})
                tell(name)

        self._ask(each)

    def pull(self, name: str, quantize: int | None, tell: Tell) -> None:
        """Have the server install a model; it goes on with it if it does already."""
        self._ask(partial(served_pull, name=name, quantize=quantize, tell=tell))

    def _ask(self, question: "Callable[[Client], Coroutine[Any, Any, T]]") -> T:
        async def ask(reactor: Any) -> T:
            return await question(self._surroundings.client(reactor, self._place))

        result: T = self._surroundings.run(ask)
        return result


async def served_pull(client: "Client", name: str, quantize: int | None, tell: Tell) -> None:
    """Have a server install a model. Raises click.ClickException."""

    def news(said: dict[str, Any]) -> None:
        total, completed = (value if type(value := said.get(key)) is int else 0 for key in ("total", "completed"))
        tell(Progress(str(said.get("status", "")), str(said.get("digest", "")), total, completed))

    asked: dict[str, Any] = {"model": name, "stream": True}
    await client.stream("/api/pull", asked if quantize is None else asked | {"quantize": quantize}, news)


def _entry(model: InstalledModel) -> dict[str, Any]:
    [tag] = ollama_models.tags([(model, "")])["models"]
    del tag["digest"]
    return {
        **tag,
        "repository": model.repository,
        "folder": str(model.folder),
        "context_length": model.context_length,
    }


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        raise click.ClickException(error.message) from error
    except (OSError, UnusableFolder) as error:
        raise click.ClickException(f"{name}: {error}") from error
