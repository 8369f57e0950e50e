"""The route that installs models: what a client is told while it waits."""

from contextlib import suppress

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as NothingNew
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.web.http import Request
from zope.interface import implementer

from ..chat import ApiError, ModelNotFound
from ..dialects import ollama, ollama_models
from ..serving.blocking import Blocking
from ..serving.catalogue import Catalogue
from ..serving.pulls import MANIFEST, SUCCESS, Progress, Pulls, Watch
from ..serving.stream import LONGEST_PAUSE, LONGEST_QUIET
from .answers import begin_stream, body, json_answer
from .routes import LINES


@implementer(IPushProducer)
@define(eq=False)
class Gate:
    """Holds up who writes to a client that does not read; one that takes nothing for long is dropped."""

    _request: Request
    _clock: IReactorTime
    _patience: IDelayedCall | None = field(default=None, init=False)
    _waiting: list[Deferred[None]] = field(factory=list, init=False)

    async def passed(self) -> None:
        """Wait until the client takes more."""
        if self._patience is not None:
            waiting: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(waiting)
            await waiting

    def pauseProducing(self) -> None:
        """Hold up who writes."""
        if self._patience is None:
            transport = self._request.transport
            self._patience = self._clock.callLater(LONGEST_PAUSE, transport.abortConnection)  # type: ignore[union-attr]

    def resumeProducing(self) -> None:
        """Let whoever waits go on."""
        self.close()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    def stopProducing(self) -> None:
        """The client is gone; whoever writes learns of it from the request."""
        self.close()

    def close(self) -> None:
        """Wait for the client no longer."""
        if self._patience is not None and self._patience.active():
            self._patience.cancel()
        self._patience = None


@define(eq=False)
class Pulling:
    """Answers over the pulls."""

    _pulls: Pulls
    _catalogue: Catalogue
    _blocking: Blocking
    _clock: IReactorTime

    async def pull(self, request: Request) -> bytes | None:
        """Install a model, telling how far that is."""
        asked = await self._blocking(ollama_models.pull_call, body(request))
        if asked.quantize is None and await self._is_installed(asked.name):
            if not asked.stream:
                return json_answer(request, {"status": SUCCESS})
            request.setHeader("Content-Type", LINES)
            return b"".join(ollama_models.progress_line(Progress(status)) for status in (MANIFEST, SUCCESS))
        watch = await self._pulls.watch(asked.name, asked.quantize)
        try:
            if asked.stream:
                await self._stream(watch, request)
                return None
            while (await watch.next()).status != SUCCESS:
                pass
            return json_answer(request, {"status": SUCCESS})
        finally:
            watch.leave()

    async def _is_installed(self, name: str) -> bool:
        try:
            await self._catalogue.find(name)
        except ModelNotFound:
            return False
        return True

    async def _stream(self, watch: Watch, request: Request) -> None:
        # Until it is known that there is such a model nothing is said: an error has its real status.
        while (progress := await watch.next()).status == MANIFEST:
            pass
        begin_stream(request, LINES)
        gate = Gate(request, self._clock)
        request.registerProducer(gate, True)
        try:
            request.write(ollama_models.progress_line(Progress(MANIFEST)))
            request.write(ollama_models.progress_line(progress))
            while progress.status != SUCCESS:
                # Where nothing is new for long the same is said again, so that nobody takes the connection for dead.
                with suppress(NothingNew):
                    progress = await watch.next().addTimeout(LONGEST_QUIET, self._clock)
                await gate.passed()
                request.write(ollama_models.progress_line(progress))
        except ApiError as error:
            request.write(ollama.line(ollama.error(error)))
        finally:
            gate.close()
            # Where the client has left, there is nothing to be unregistered from.
            if request.channel is not None:
                request.unregisterProducer()
