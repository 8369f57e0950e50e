"""The routes about models: which there are, which are in memory, what is known of one, copies and deletion."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from attrs import define
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http import Request

from ..chat import ModelNotFound
from ..dialects import ollama_models, openai
from ..serving.blocking import Blocking
from ..serving.catalogue import Catalogue
from ..serving.scheduler import Scheduler
from .answers import body, json_answer

log = Logger()


@define(eq=False)
class Library:
    """Answers over the catalogue. `clock` tells the time of day, in seconds since the epoch."""

    _catalogue: Catalogue
    _scheduler: Scheduler
    _blocking: Blocking
    _clock: IReactorTime

    async def models(self, request: Request) -> bytes:
        """List the models as OpenAI does."""
        return json_answer(request, openai.models(await self._catalogue.models()))

    async def model(self, request: Request, name: str) -> bytes:
        """Describe one model as OpenAI does."""
        return json_answer(request, openai.model(await self._catalogue.find(name)))

    async def tags(self, request: Request) -> bytes:
        """List the models as Ollama does."""
        found = []
        for model in await self._catalogue.models():
            try:
                found.append((model, await self._catalogue.digest(model)))
            except OSError as error:
                log.warn("{model} is left out of a list, it cannot be read: {error}", model=model.id, error=error)
        return json_answer(request, ollama_models.tags(found))

    async def running(self, request: Request) -> bytes:
        """List the models in memory as Ollama does."""
        found = []
        for resident, stays in await self._scheduler.resident():
            try:
                model = await self._catalogue.find(resident.id)
                digest = await self._catalogue.digest(model, in_memory=True)
                found.append((model, digest, resident, stays))
            except (ModelNotFound, OSError) as error:
                log.warn("{model} is in memory, but not on disk: {error}", model=resident.id, error=error)
        now = datetime.fromtimestamp(self._clock.seconds(), UTC)
        return json_answer(request, ollama_models.running(found, now))

    async def show(self, request: Request) -> bytes:
        """Tell what is known of a model as Ollama does."""
        name = await self._read(ollama_models.name_call, request)
        return json_answer(request, ollama_models.show(await self._catalogue.card(name)))

    async def version(self, request: Request) -> bytes:
        """Tell which version of Ollama's API this is."""
        return json_answer(request, {"version": ollama_models.VERSION})

    async def copy(self, request: Request) -> bytes:
        """Have a model under another name as well."""
        asked = await self._read(ollama_models.copy_call, request)
        await self._catalogue.copy(asked.source, asked.destination)
        return json_answer(request, {"status": "success"})

    async def delete(self, request: Request) -> bytes:
        """Remove a model from memory and from the disk."""
        model = await self._catalogue.find(await self._read(ollama_models.name_call, request))
        await self._catalogue.delete(model, self._scheduler.let_go)
        return json_answer(request, {"status": "success"})

    def _read(self, read: Callable[[bytes], Any], request: Request) -> Awaitable[Any]:
        return self._blocking(read, body(request))
