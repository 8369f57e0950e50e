"""From a request to a row: finds the model, has it loaded, has the prompt read as tokens, and submits the row."""

from collections.abc import Callable, Iterator
from itertools import count
from time import monotonic_ns
from typing import Any, Protocol, TypeVar

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger

from ..chat import (
    ApiError,
    ChatRequest,
    Event,
    Failed,
    Finished,
    InstalledModel,
    InternalError,
    NoRoomYet,
    ServiceUnavailable,
    Started,
)
from ..engine.runner import LoadedModel, MLXRunner, Row
from ..library.store import ModelStore
from .generation import Generation
from .residency import Residency

log = Logger()

T = TypeVar("T")


class Blocking(Protocol):
    """Runs a function that may block on a thread of the second pool, never on the reactor."""

    def __call__(self, function: Callable[..., T], *args: Any) -> Deferred[T]:
        """Fire with what the function returns, or fail with what it raises."""


@frozen
class Loaded:
    """A model that was asked for is in memory; loading it took this many nanoseconds."""

    stored: InstalledModel
    model: LoadedModel
    duration: int


@define(eq=False)
class Scheduler:
    """Admits requests and keeps account of those that are being answered."""

    _store: ModelStore
    _runner: MLXRunner
    _residency: Residency
    _blocking: Blocking
    _row_ids: Iterator[int] = field(factory=lambda: count(1), init=False)
    _ending: dict[Generation, Callable[[], None]] = field(factory=dict, init=False)
    _waiting_for_room: list[Deferred[None]] = field(factory=list, init=False)
    _rows: dict[Generation, int] = field(factory=dict, init=False)
    _using: dict[Generation, str] = field(factory=dict, init=False)
    _hashing: DeferredLock = field(factory=DeferredLock, init=False)
    _stopping: bool = field(default=False, init=False)

    @property
    def problem(self) -> str | None:
        """Why no answer can be generated; None while one can."""
        return "The server is stopping" if self._stopping else self._runner.problem

    def submit(self, request: ChatRequest) -> Generation:
        """Begin to answer; whatever goes wrong is told through the Generation."""
        generation = Generation(self._end, self._park)
        if self._stopping:
            generation.deliver(Failed(_stopping()))
            return generation
        admission = Deferred.fromCoroutine(self._admit(request, generation, monotonic_ns()))
        if not generation.over and generation not in self._ending:
            self._ending[generation] = admission.cancel
        return generation

    async def models(self) -> list[InstalledModel]:
        """Return the installed models."""
        return await self._blocking(self._store.models)

    async def digest(self, model: InstalledModel) -> str:
        """Return the digest of a model's files. Raises OSError if one cannot be read.

        One at a time: it may take long, and the threads are for other things as well.
        """
        async with self._hashing:
            return await self._blocking(self._store.digest, model)

    async def load(self, name: str, keep_alive: float | None = None) -> Loaded:
        """Have a model in memory, for that many seconds. Raises ModelNotFound, ModelLoadFailed, ServiceUnavailable."""
        if self._stopping:
            raise _stopping()
        stored = await self._blocking(self._store.find, name)
        self._residency.begin(stored.id, keep_alive)
        try:
            return await self._load(stored)
        finally:
            self._residency.end(stored.id)

    async def preload(self, name: str) -> None:
        """Have a model in memory to stay; if that cannot be, the log says why."""
        try:
            stored = await self._blocking(self._store.find, name)
            self._residency.keep(stored.id)
            await self.load(stored.id)
        except ApiError as error:
            log.error("{name} is not loaded at the start: {error}", name=name, error=error)

    async def unload(self, name: str) -> None:
        """Give back a model's memory once its answers are complete. Raises ModelNotFound."""
        stored = await self._blocking(self._store.find, name)
        await self._runner.unload(stored.id)

    def stop(self) -> None:
        """Refuse what comes from now on and end what is being answered with an error."""
        self._stopping = True
        self._store.stop()
        self._residency.stop()
        for generation, end in list(self._ending.items()):
            del self._ending[generation]
            # The error comes first: what `end` sets off must find the generation over.
            generation.deliver(Failed(_stopping()))
            end()
        self._using.clear()
        self._rows.clear()

    async def _load(self, stored: InstalledModel) -> Loaded:
        began = monotonic_ns()
        while True:
            try:
                model = await self._runner.load(stored.id, stored.folder)
            except NoRoomYet:
                await self._room()
            else:
                return Loaded(stored, model, monotonic_ns() - began)

    def _room(self) -> Deferred[None]:
        """Fires when an answer has ended, so that there may be room for another model."""
        room: Deferred[None] = Deferred(self._waiting_for_room.remove)
        self._waiting_for_room.append(room)
        return room

    async def _admit(self, request: ChatRequest, generation: Generation, arrived: int) -> None:
        try:
            stored = await self._blocking(self._store.find, request.model)
            self._residency.begin(stored.id, request.keep_alive)
            self._using[generation] = stored.id
            loaded = await self._load(stored)
            prompt, max_tokens, boundaries = await self._blocking(loaded.model.prompt.encode, request)
        except CancelledError:
            return
        except ApiError as error:
            self._deliver(generation, Failed(error))
            return
        except Exception:  # noqa: BLE001 - the client must be told whatever it was
            log.failure("Admitting a request failed")
            self._deliver(generation, Failed(InternalError("The request could not be prepared; see the server's log.")))
            return
        row = Row(
            id=next(self._row_ids),
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=request.sampling,
            stop=request.stop,
            arrived=arrived,
            load=loaded.duration,
            top_logprobs=request.top_logprobs,
            boundaries=boundaries,
        )
        self._ending[generation] = lambda: self._runner.cancel(row.id)
        self._rows[generation] = row.id
        generation.deliver(Started(len(prompt)))
        if not generation.over:
            self._runner.submit(stored.id, stored.folder, row, lambda event: self._deliver(generation, event))

    def _deliver(self, generation: Generation, event: Event) -> None:
        if isinstance(event, (Finished, Failed)):
            self._ending.pop(generation, None)
            self._release(generation)
        generation.deliver(event)

    def _end(self, generation: Generation) -> None:
        end = self._ending.pop(generation, None)
        if end is not None:
            end()
        self._release(generation)

    def _park(self, generation: Generation, parked: bool) -> None:
        row_id = self._rows.get(generation)
        if row_id is not None:
            (self._runner.park if parked else self._runner.unpark)(row_id)

    def _release(self, generation: Generation) -> None:
        self._rows.pop(generation, None)
        name = self._using.pop(generation, None)
        if name is not None:
            self._residency.end(name)
            waiting, self._waiting_for_room = self._waiting_for_room, []
            for room in waiting:
                room.callback(None)


def _stopping() -> ServiceUnavailable:
    return ServiceUnavailable("The server is stopping", retry_after=5)
