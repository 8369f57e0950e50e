"""The installed models, asked for from the reactor: the disk is looked at on the second thread pool."""

from collections.abc import Awaitable, Callable

from attrs import Factory, define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..chat import InstalledModel, InternalError, ModelCard, ModelNotFound
from ..library.card import card
from ..library.folder import UnusableFolder
from ..library.store import ModelStore
from .blocking import Blocking
from .digests import Digests

log = Logger()


@define(eq=False)
class Catalogue:
    """What there is, and what is to be there no more."""

    _store: ModelStore
    _blocking: Blocking
    _digests: Digests = field(
        default=Factory(lambda self: Digests(self._store.digest, self._blocking), takes_self=True), init=False
    )

    async def models(self) -> list[InstalledModel]:
        """Return the installed models."""
        return await self._blocking(self._store.models)

    async def find(self, name: str) -> InstalledModel:
        """Return a model by any of its names. Raises ModelNotFound."""
        return await self._blocking(self._store.find, name)

    async def digest(self, model: InstalledModel, *, in_memory: bool = False) -> str:
        """Return the digest of a model's files, sooner of one in memory. Raises OSError if one cannot be read."""
        return await self._digests.of(model, in_memory=in_memory)

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
        except ModelNotFound as error:
            raise ModelNotFound(error.message, param="source") from error
        except OSError as error:
            raise InternalError(f"{source} cannot be copied: {error}") from error

    async def delete(self, model: InstalledModel, let_go: Callable[[InstalledModel], Awaitable[None]]) -> None:
        """Remove a model from the disk; once nobody finds it any more, `let_go`. Raises Forbidden, InternalError.

        What is begun is done: cancelling this only ends the waiting.
        """
        told: Deferred[None] = Deferred()

        def failed(failure: Failure) -> None:
            if told.called:
                log.failure("{model} cannot be deleted", failure, model=model.repository)
            else:
                told.errback(failure)

        Deferred.fromCoroutine(self._delete(model, let_go)).addCallbacks(told.callback, failed)
        await told

    async def _delete(self, model: InstalledModel, let_go: Callable[[InstalledModel], Awaitable[None]]) -> None:
        try:
            doomed = await self._blocking(self._store.take_away, model)
            await let_go(model)
            await self._blocking(self._store.remove, doomed)
        except OSError as error:
            raise InternalError(f"{model.repository} cannot be deleted: {error}") from error
