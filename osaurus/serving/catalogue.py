"""The installed models, asked for from the reactor: the disk is looked at on the second thread pool."""

from collections.abc import Awaitable, Callable

from attrs import define, field
from twisted.internet.defer import DeferredLock

from ..chat import InstalledModel, InternalError, ModelCard
from ..library.card import card
from ..library.folder import UnusableFolder
from ..library.store import ModelStore
from .scheduler import Blocking


@define(eq=False)
class Catalogue:
    """What there is, and what is to be there no more."""

    _store: ModelStore
    _blocking: Blocking
    _hashing: DeferredLock = field(factory=DeferredLock, init=False)

    async def models(self) -> list[InstalledModel]:
        """Return the installed models."""
        return await self._blocking(self._store.models)

    async def find(self, name: str) -> InstalledModel:
        """Return a model by any of its names. Raises ModelNotFound."""
        return await self._blocking(self._store.find, name)

    async def digest(self, model: InstalledModel) -> str:
        """Return the digest of a model's files. Raises OSError if one cannot be read.

        One at a time: it may take long, and the threads are for other things as well.
        """
        async with self._hashing:
            return await self._blocking(self._store.digest, model)

    async def card(self, name: str) -> ModelCard:
        """Return what a model's folder says about it. Raises ModelNotFound, InternalError."""
        try:
            return await self._blocking(card, await self.find(name))
        except (OSError, UnusableFolder) as error:
            raise InternalError(f"The folder of {name} cannot be read: {error}") from error

    async def copy(self, source: str, destination: str) -> None:
        """Have a model under another name as well. Raises ModelNotFound, InvalidRequest, Forbidden, InternalError."""
        try:
            await self._blocking(self._store.copy, await self.find(source), destination)
        except OSError as error:
            raise InternalError(f"{source} cannot be copied: {error}") from error

    async def delete(self, model: InstalledModel, let_go: Callable[[InstalledModel], Awaitable[None]]) -> None:
        """Remove a model from the disk; once nobody finds it any more, `let_go`. Raises Forbidden, InternalError."""
        try:
            doomed = await self._blocking(self._store.take_away, model)
            await let_go(model)
            await self._blocking(self._store.remove, doomed)
        except OSError as error:
            raise InternalError(f"{model.repository} cannot be deleted: {error}") from error
