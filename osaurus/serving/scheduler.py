"""From a request to a row: finds the model, has it loaded, has the prompt read as tokens, and submits the row.

A model that was loaded may have made room for another by the time its row comes. Such a row waits like one whose model
has no room yet, and is submitted again.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from time import monotonic_ns

from attrs import define, evolve, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from ..chat import (
    ApiError,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    InstalledModel,
    InternalError,
    NoRoomYet,
    Piece,
    ResidentModel,
    ServiceUnavailable,
    Started,
)
from ..engine.panics import panics_as_errors
from ..engine.prompt import EncodedPrompt
from ..engine.runner import Encoder, LoadedModel, Row
from ..library.store import ModelStore
from .account import Account
from .blocking import Blocking, Turns
from .generation import Generation
from .limits import Limits
from .residency import Residency
from .runners import Runner

log = Logger()


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
    _runner: Runner
    _residency: Residency
    _limits: Limits
    _blocking: Blocking
    _row_ids: Iterator[int] = field(factory=lambda: count(1), init=False)
    _turns: Turns = field(init=False)
    _ending: dict[Generation, Callable[[], None]] = field(factory=dict, init=False)
    _short_of_room: set[object] = field(factory=set, init=False)
    _waiting_for_room: list[Deferred[None]] = field(factory=list, init=False)
    _waiting_behind: list[Deferred[None]] = field(factory=list, init=False)
    _ended: int = field(default=0, init=False)
    _rows: dict[Generation, list[int]] = field(factory=dict, init=False)
    _submitted: dict[int, Generation] = field(factory=dict, init=False)
    """Which rows the engine has, and whose they are."""
    _submitting_again: dict[int, Deferred[None]] = field(factory=dict, init=False)
    _using: dict[Generation, str] = field(factory=dict, init=False)
    _stopping: bool = field(default=False, init=False)

    @_turns.default
    def _turns_default(self) -> Turns:
        return Turns(self._blocking)

    @property
    def problem(self) -> str | None:
        """Why no answer can be generated; None while one can."""
        return "The server is stopping" if self._stopping else self._runner.problem

    @property
    def waiting(self) -> int:
        """How many requests have no rows yet: they wait for their model, or for memory for it."""
        return sum(1 for generation in self._ending if generation not in self._rows)

    def submit(self, *requests: GenerationRequest, account: Account | None = None, prompts: int = 1) -> Generation:
        """Begin to answer; whatever goes wrong is told through the Generation, and to the account.

        Several, all of one model, are the choices of one answer, to so many prompts.
        """
        generation = Generation(self._end, self._park, len(requests), account or Account(requests))
        if self._stopping:
            generation.deliver(Failed(_stopping()))
            return generation
        admission = Deferred.fromCoroutine(self._admit(requests, prompts, generation, monotonic_ns()))
        if not generation.over and generation not in self._ending:
            self._ending[generation] = admission.cancel
        return generation

    async def load(self, name: str, keep_alive: float | None = None) -> Loaded:
        """Have a model in memory, for that many seconds. Raises ModelNotFound, ModelLoadFailed, ServiceUnavailable."""
        if self._stopping:
            raise _stopping()
        stored = await self._blocking(self._store.find, name)
        asked = object()
        self._limits.enter(stored.repository, asked)
        self._residency.begin(stored.repository, keep_alive)
        try:
            return await self._load(stored)
        finally:
            self._residency.end(stored.repository)
            self._limits.leave(stored.repository, asked)

    async def preload(self, name: str) -> None:
        """Have a model in memory to stay; if that cannot be, the log says why."""
        try:
            stored = await self._blocking(self._store.find, name)
            self._residency.keep(stored.repository)
            await self.load(stored.repository)
        except ApiError as error:
            log.error("{name} is not loaded at the start: {error}", name=name, error=error)

    async def unload(self, name: str) -> None:
        """Give back a model's memory once its answers are complete. Raises ModelNotFound."""
        stored = await self._blocking(self._store.find, name)
        await self._runner.unload(stored.repository)

    async def resident(self) -> list[tuple[ResidentModel, float]]:
        """Return the models in memory, each with how many more seconds it stays if nobody uses it."""
        resident = await self._runner.resident()
        return [(model, self._residency.remaining(model.id)) for model in resident]

    async def let_go(self, model: InstalledModel) -> None:
        """Give back the memory of a model that is no more; if there is no engine, nothing is in memory."""
        try:
            await self._runner.unload(model.repository)
        except ServiceUnavailable as error:
            log.info("{model} needs not be unloaded: {error}", model=model.repository, error=error)

    def refuse(self) -> None:
        """Refuse what comes from now on; what is being answered goes on."""
        self._stopping = True

    def stop(self) -> None:
        """Refuse what comes from now on and end what is being answered with an error."""
        self.refuse()
        self._store.stop()
        self._residency.stop()
        for generation, end in list(self._ending.items()):
            # One that hears of its end may end another.
            if self._ending.pop(generation, None) is None:
                continue
            # The error comes first: what `end` sets off must find the generation over.
            generation.deliver(Failed(_stopping()))
            end()
        self._using.clear()
        self._rows.clear()
        for line in (self._waiting_for_room, self._waiting_behind):
            while line:
                line.pop(0).errback(_stopping())

    async def _load(self, stored: InstalledModel) -> Loaded:
        """Have a model in memory. Where there is no room for one, those that come later wait behind it.

        Else those that ask for a model in memory would keep it there, and the other out, for as long as they come.
        """
        while self._short_of_room:
            await self._wait(self._waiting_behind)
        asked = object()
        try:
            while True:
                began, ended = monotonic_ns(), self._ended
                try:
                    model = await self._runner.load(stored.repository, stored.folder)
                except NoRoomYet:
                    self._short_of_room.add(asked)
                    # What ended while the engine was being asked may have made room already.
                    if ended == self._ended:
                        await self._wait(self._waiting_for_room)
                else:
                    return Loaded(stored, model, monotonic_ns() - began)
        finally:
            self._short_of_room.discard(asked)
            if not self._short_of_room:
                _fire(self._waiting_behind)

    def _wait(self, line: list[Deferred[None]]) -> Deferred[None]:
        """Wait in a line until it is told to go on."""
        # One that is told to go on just now is in no line any more.
        turn: Deferred[None] = Deferred(lambda turn: line.remove(turn) if turn in line else None)
        line.append(turn)
        return turn

    async def _admit(
        self, requests: Sequence[GenerationRequest], prompts: int, generation: Generation, arrived: int
    ) -> None:
        first = requests[0]
        try:
            stored = await self._blocking(self._store.find, first.model)
            generation.account.model = stored.repository
            self._limits.enter(stored.repository, generation, len(requests), prompts)
            self._residency.begin(stored.repository, first.keep_alive)
            self._using[generation] = stored.repository
            loaded = await self._load(stored)
            encoded = await self._turns.run(stored.repository, _encode, loaded.model.prompt, requests)
        except CancelledError:
            return
        except ApiError as error:
            self._deliver(generation, 0, Failed(error))
            return
        except Exception:  # noqa: BLE001 - the client must be told whatever it was
            log.failure("Admitting a request failed", request_id=first.request_id)
            problem = InternalError("The request could not be prepared; see the server's log.")
            self._deliver(generation, 0, Failed(problem))
            return
        rows = [
            Row(
                id=next(self._row_ids),
                prompt=prompt.tokens,
                max_tokens=prompt.max_tokens,
                sampling=request.sampling,
                stop=request.stop,
                arrived=arrived,
                load=loaded.duration,
                top_logprobs=request.top_logprobs,
                tell_tokens=request.tell_tokens,
                owner=request.owner,
                boundaries=prompt.boundaries,
                thinking=prompt.thinking,
                shape=prompt.shape,
                continues=request.raw is not None,
                echo=echo if request.top_logprobs is not None else "",
                request=request,
            )
            for request, (prompt, echo) in zip(requests, encoded, strict=True)
        ]
        self._rows[generation] = [row.id for row in rows]
        self._ending[generation] = partial(self._cancel, self._rows[generation])
        generation.deliver(Started(len(rows[0].prompt)))
        for choice, (row, (_, echo)) in enumerate(zip(rows, encoded, strict=True)):
            if generation.over:
                break
            if echo and not row.echo:
                generation.deliver(Piece(echo, choice=choice))
            self._submit(stored, row, generation, choice)

    def _submit(self, stored: InstalledModel, row: Row, generation: Generation, choice: int) -> None:
        ended, silent = self._ended, True
        self._submitted[row.id] = generation

        def deliver(event: Event) -> None:
            nonlocal silent
            if isinstance(event, (Finished, Failed)):
                self._submitted.pop(row.id, None)
            no_room = isinstance(event, Failed) and isinstance(event.error, NoRoomYet)
            # There will be room when another answer has ended; what has begun to speak cannot begin again.
            others = ended != self._ended or any(other is not generation for other in self._submitted.values())
            if no_room and silent and others:
                again = Deferred.fromCoroutine(self._submit_again(stored, row, generation, choice, ended))
                if not again.called:
                    self._submitting_again[row.id] = again
                return
            silent = silent and not isinstance(event, Piece)
            self._deliver(generation, choice, event)
            if isinstance(event, Finished) and not generation.over:
                # Others of its rows go on, and it is not released yet.
                self._made_room()

        self._runner.submit(stored.repository, stored.folder, row, deliver)

    async def _submit_again(
        self, stored: InstalledModel, row: Row, generation: Generation, choice: int, ended: int
    ) -> None:
        """Submit a row once more, when something has ended since this many had."""
        try:
            if ended == self._ended:
                await self._wait(self._waiting_for_room)
            await self._load(stored)
        except CancelledError:
            return
        except ApiError as error:
            self._submitting_again.pop(row.id, None)
            self._deliver(generation, choice, Failed(error))
        else:
            self._submitting_again.pop(row.id, None)
            self._submit(stored, row, generation, choice)

    def _deliver(self, generation: Generation, choice: int, event: Event) -> None:
        if choice and isinstance(event, (Piece, Finished)):
            event = evolve(event, choice=choice)
        try:
            generation.deliver(event)
        finally:
            if generation.over:
                self._ending.pop(generation, None)
                # Where one choice failed the others are of no use.
                self._cancel(self._rows.get(generation, []))
                self._release(generation)

    def _cancel(self, rows: list[int]) -> None:
        for row_id in rows:
            again = self._submitting_again.pop(row_id, None)
            if again is not None:
                again.cancel()
            self._submitted.pop(row_id, None)
            self._runner.cancel(row_id)

    def _end(self, generation: Generation) -> None:
        end = self._ending.pop(generation, None)
        if end is not None:
            end()
        self._release(generation)

    def _park(self, generation: Generation, parked: bool) -> None:
        for row_id in self._rows.get(generation, []):
            (self._runner.park if parked else self._runner.unpark)(row_id)

    def _release(self, generation: Generation) -> None:
        self._rows.pop(generation, None)
        name = self._using.pop(generation, None)
        if name is not None:
            self._limits.leave(name, generation)
            self._residency.end(name)
            self._made_room()

    def _made_room(self) -> None:
        """Have those go on who wait for room: there may be some for another model, or another row."""
        self._ended += 1
        _fire(self._waiting_for_room)


def _fire(line: list[Deferred[None]]) -> None:
    """Let all of a line go on. Those that line up meanwhile wait for the next time."""
    going, line[:] = line[:], []
    for turn in going:
        turn.callback(None)


@panics_as_errors()
def _encode(encoder: Encoder, requests: Sequence[GenerationRequest]) -> list[tuple[EncodedPrompt, str]]:
    """Return each request's prompt, as tokens, and what is echoed; those that follow one like it share its prompt."""
    encoded: list[tuple[EncodedPrompt, str]] = []
    for before, request in zip([None, *requests], requests, strict=False):
        if before is not None and request.has_prompt_of(before):
            encoded.append(encoded[-1])
        else:
            prompt = encoder.encode(request)
            encoded.append((prompt, encoder.spell(request.raw) if request.echo else ""))
    return encoded


def _stopping() -> ServiceUnavailable:
    return ServiceUnavailable("The server is stopping", retry_after=5)
