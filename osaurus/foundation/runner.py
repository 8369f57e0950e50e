"""Apple's on-device model as a second kind of runner: what MLXRunner is for models of ours.

macOS keeps the model in memory, or does not, as it likes. So there is nothing to load, to unload or to count.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, fail, succeed

from ..chat import Event, Failed, Finished, InstalledModel, InternalError, ModelLoadFailed, ResidentModel
from ..engine.runner import LoadedModel, Row, Thunk
from .answering import Answering
from .asking import RequestReader

NAME = "foundation"

# Each has a thread; the others wait. The model itself is one for the whole machine.
MOST_AT_ONCE = 4


@frozen
class FoundationModel:
    """What is asked of Apple's model before it answers."""

    prompt: RequestReader


@define(eq=False)
class FoundationRunner:
    """Runs answers of Apple's model. All of it on the reactor, but `model`.

    `start_thread` runs a function on a thread of its own.
    """

    _start_thread: Callable[[Thunk], object]
    _call_from_thread: Callable[..., object]
    _sdk: Any
    _model: Any = field(init=False)
    _answers: dict[int, tuple[Answering, Callable[[Event], None]]] = field(factory=dict, init=False)
    _waiting: deque[Answering] = field(factory=deque, init=False)
    _running: int = field(default=0, init=False)
    problem: str | None = field(default=None, init=False)
    """Why no answer can be generated; what is in the way of one is told when the model is loaded."""

    @_model.default
    def _make_model(self) -> Any:
        return self._sdk.SystemLanguageModel()

    def model(self) -> InstalledModel | None:
        """Return the model where macOS has it ready, else None; on any thread."""
        available, _ = self._model.is_available()
        if not available:
            return None
        return InstalledModel(
            id=NAME,
            repository=NAME,
            folder=Path(),
            size=0,
            modified=0.0,
            family=NAME,
            parameters=0,
            quantization="",
            context_length=self._model.context_size,
            system=True,
        )

    def load(self, name: str, folder: Path) -> Deferred[LoadedModel]:  # noqa: ARG002 - as any runner
        """Fires with the model, or fails with ModelLoadFailed if macOS does not have it ready."""
        available, reason = self._model.is_available()
        if not available:
            why = getattr(reason, "name", "UNKNOWN").lower().replace("_", " ")
            return fail(ModelLoadFailed(f"Apple's on-device model is not available: {why}"))
        return succeed(FoundationModel(RequestReader(self._sdk, self._model.context_size)))

    def unload(self, name: str) -> Deferred[None]:  # noqa: ARG002
        """Do nothing."""
        return succeed(None)

    def resident(self) -> Deferred[list[ResidentModel]]:
        """Fires with nothing."""
        return succeed([])

    def submit(self, name: str, folder: Path, row: Row, deliver: Callable[[Event], None]) -> None:  # noqa: ARG002
        """Answer; the events go to `deliver`, Finished or Failed being the last."""
        if row.request is None:
            deliver(Failed(InternalError("Apple's on-device model was not told what to answer")))
            return

        def say(event: Event) -> None:
            self._call_from_thread(self._deliver, row.id, event)

        answer = Answering(row, row.request, self._sdk, self._model, say)
        self._answers[row.id] = answer, deliver
        self._waiting.append(answer)
        self._begin()

    def cancel(self, row_id: int) -> None:
        """End an answer; nothing more is delivered from it."""
        answer, _ = self._answers.pop(row_id, (None, None))
        if answer is not None:
            answer.cancel()

    def park(self, row_id: int) -> None:
        """Let an answer stand still; what was said by then is still delivered."""
        if row_id in self._answers:
            self._answers[row_id][0].park()

    def unpark(self, row_id: int) -> None:
        """Let an answer go on."""
        if row_id in self._answers:
            self._answers[row_id][0].unpark()

    def _begin(self) -> None:
        while self._waiting and self._running < MOST_AT_ONCE:
            answer = self._waiting.popleft()
            if not answer.cancelled:
                self._running += 1
                self._start_thread(partial(self._run, answer))

    def _run(self, answer: Answering) -> None:
        """Run an answer, on its thread."""
        try:
            answer.run()
        finally:
            self._call_from_thread(self._ended)

    def _ended(self) -> None:
        self._running -= 1
        self._begin()

    def _deliver(self, row_id: int, event: Event) -> None:
        _, deliver = self._answers.get(row_id, (None, None))
        if isinstance(event, (Finished, Failed)):
            self._answers.pop(row_id, None)
        if deliver is not None:
            deliver(event)
