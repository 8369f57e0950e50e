"""Stand-ins at the border between reactor and engine thread, and what drives them.

`MemoryWorker` is the engine thread's place without a thread: tests turn it by hand. `ScriptedEngine` is an engine whose
answers are written down beforehand; it keeps the protocol that MLXEngine keeps.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from osaurus.chat import (
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Piece,
    ResidentModel,
    Text,
    Timings,
    Tokens,
    Tool,
    Usage,
)
from osaurus.engine.prompt import EncodedPrompt
from osaurus.engine.runner import EngineThread, MLXRunner, Row
from osaurus.figures import Figures
from osaurus.serving.residency import Residency

T = TypeVar("T")


def finished(tokens: int = 2, reason: Any = "stop") -> Finished:
    """The end of an answer."""
    return Finished(
        reason=reason,
        usage=Usage(prompt_tokens=3, completion_tokens=tokens),
        timings=Timings(total=40, load=10, prompt=20, generation=10),
    )


def tool(name: str, parameters: dict[str, Any]) -> Tool:
    """A function that a model may call, with the schema of its arguments."""
    definition = {"type": "function", "function": {"name": name, "parameters": parameters}}
    return Tool(
        name=name,
        definition=json.dumps(definition),
        parameters=json.dumps(parameters),
        strict=False,
        asked_by="tools[0]",
    )


def inline(function: Callable[..., T], *args: Any) -> Deferred[T]:
    """What is run on the second thread pool, run at once."""
    return maybeDeferred(function, *args)


@define
class CountingPrompt:
    """Reads a prompt as one token a character."""

    def encode(self, request: GenerationRequest) -> EncodedPrompt:
        """Return the tokens and the most tokens of the answer."""
        text = self.spell(request.raw) or "".join(message.content for message in request.messages)
        return EncodedPrompt([ord(character) for character in text], request.max_tokens or 100)

    def spell(self, raw: Text | Tokens | None) -> str:
        """Return the text of a prompt that is to be continued."""
        match raw:
            case Text():
                return raw.text
            case Tokens():
                return "".join(map(chr, raw.tokens))
            case None:
                return ""


@define
class ScriptedModel:
    """A loaded model."""

    prompt: Any = field(factory=CountingPrompt)


@define
class ScriptedEngine:
    """Answers every row with `script`, one event of each row a step."""

    script: list[Event] = field(factory=lambda: [Piece("Hel"), Piece("lo"), finished()])
    model: ScriptedModel = field(factory=ScriptedModel)
    failure: BaseException | None = None
    loads: list[str] = field(factory=list)
    unloads: list[str] = field(factory=list)
    rows: dict[int, tuple[Row, list[Event]]] = field(factory=dict)
    removed: list[int] = field(factory=list)
    parked: set[int] = field(factory=set)
    steps: int = 0
    closed: bool = False

    def load(self, name: str, folder: Path) -> ScriptedModel:
        """Load at once, or fail as told."""
        if self.failure is not None:
            raise self.failure
        self.loads.append(name)
        return self.model

    def unload(self, name: str) -> None:
        """Remember."""
        self.unloads.append(name)

    def add(self, name: str, folder: Path, row: Row) -> None:
        """Take a row in."""
        self.rows[row.id] = (row, list(self.script))

    def remove(self, row_id: int) -> None:
        """Free a row."""
        if self.rows.pop(row_id, None):
            self.removed.append(row_id)

    def park(self, row_id: int) -> None:
        """Have a row say nothing."""
        self.parked.add(row_id)

    def unpark(self, row_id: int) -> None:
        """Have it speak again."""
        self.parked.discard(row_id)

    def resident(self) -> list[ResidentModel]:
        """Return what was loaded and not unloaded since."""
        return [
            ResidentModel(id=name, nbytes=1000, on_gpu=False, context_length=512)
            for name in dict.fromkeys(self.loads)
            if self.loads.count(name) > self.unloads.count(name)
        ]

    @property
    def busy(self) -> bool:
        """Whether there are rows that may speak."""
        return not self.parked.issuperset(self.rows)

    def step(self) -> Iterator[list[tuple[int, Event]]]:
        """Say the next thing of every row."""
        if self.failure is not None:
            raise self.failure
        self.steps += 1
        events = []
        for row_id, (_, rest) in list(self.rows.items()):
            if row_id in self.parked:
                continue
            event = rest.pop(0)
            events.append((row_id, event))
            if isinstance(event, (Finished, Failed)):
                del self.rows[row_id]
        yield events

    def figures(self) -> Figures:
        """Return how many rows there are, and what is in memory."""
        parked = len(self.parked.intersection(self.rows))
        resident = {model.id: model.nbytes for model in self.resident()}
        return Figures(writing=len(self.rows) - parked, parked=parked, models_nbytes=resident)

    def close(self) -> None:
        """Remember."""
        self.closed = True


@define
class MemoryWorker:
    """A runner on a scripted engine whose turns are made by the test."""

    engine: ScriptedEngine = field(factory=ScriptedEngine)
    clock: Clock = field(factory=Clock)
    wakeups: int = 0
    started: list[Callable[[], object]] = field(factory=list)
    runner: MLXRunner = field(init=False)
    residency: Residency = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.runner = MLXRunner(self.started.append, self._call, lambda: self.engine, self.clock)
        self.residency = Residency(self.clock, self.runner.unload, 300)
        self.runner.start()

    def _call(self, function: Callable[[], object]) -> None:
        self.wakeups += 1
        function()

    @property
    def thread(self) -> EngineThread:
        """The thread that runs the engine now: the one that was started last."""
        thread = getattr(self.started[-1], "__self__")  # noqa: B009 - mypy knows of no bound method here
        assert isinstance(thread, EngineThread)
        return thread

    def turn(self, times: int = 1) -> None:
        """Let the thread's loop go round."""
        for _ in range(times):
            self.thread.turn(wait=False)

    def settle(self) -> None:
        """Let the loop go round until nothing is left to do."""
        self.turn()
        while self.engine.busy:
            self.turn()


@define(eq=False)
class MemoryProcess:
    """A process that was started, without one: the test says what it tells and when it ends."""

    protocol: ProcessProtocol
    arguments: list[str]
    signals: list[str] = field(factory=list)
    over: bool = False

    def tell(self, **told: Any) -> None:
        """Have it write a line."""
        self.write(json.dumps(told).encode() + b"\n")

    def write(self, data: bytes) -> None:
        """Have it write."""
        self.protocol.outReceived(data)

    def end(self, status: int = 0) -> None:
        """Have it end."""
        self.over = True
        self.protocol.processEnded(Failure(ProcessTerminated(status) if status else ProcessDone(0)))

    def signalProcess(self, name: str) -> None:
        """Take note of a signal."""
        if self.over:
            raise ProcessExitedAlready
        self.signals.append(name)

    def closeStdin(self) -> None:
        """Hear nothing."""


@define
class MemorySpawn:
    """Starts processes in memory."""

    processes: list[MemoryProcess] = field(factory=list)

    def __call__(self, protocol: ProcessProtocol, arguments: list[str]) -> Any:
        """Start one."""
        process = MemoryProcess(protocol, arguments)
        self.processes.append(process)
        protocol.makeConnection(process)
        return process
