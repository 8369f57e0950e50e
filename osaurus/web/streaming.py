"""An answer that is written bit by bit, from the wait for its beginning on.

Model and prompt are resolved before the first header goes out, so that a stream that cannot begin has its real status.
Where that takes long, since the model is being loaded or waits for memory, the stream begins before, so that nobody
takes the connection for dead; what goes wrong then is told in it.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from attrs import define
from twisted.internet.interfaces import IReactorTime
from twisted.web.http import Request

from ..chat import ApiError, Event, Failed
from ..serving.generation import Generation
from ..serving.stream import TokenStream, patiently
from .answers import begin_stream
from .exchange import exchange_of

T = TypeVar("T")


@define(eq=False)
class Stream:
    """A stream that answers a request; `encode` makes bytes of events, and `filler` some that say nothing."""

    _request: Request
    _content_type: str
    _encode: Callable[[Event], bytes]
    _filler: Callable[[], bytes]
    _clock: IReactorTime

    def begin(self) -> None:
        """Have the headers go out with what is written first, unless they are gone."""
        if not self._request.startedWriting:
            begin_stream(self._request, self._content_type)

    async def send(self, generation: Generation, opening: bytes) -> None:
        """Write an answer, `opening` before it. Raises ApiError if it fails before anything is written."""
        if await self.resolved(generation.started()) is None:
            return
        # Whoever had to wait hears at once that this is over.
        beginning = opening or (self._filler() if self._request.startedWriting else b"")
        self.begin()
        if beginning:
            self._request.write(beginning)
        drop = self._request.transport.abortConnection  # type: ignore[union-attr]  # every stream transport has it
        await TokenStream(generation, self._encode, self._request, self._clock, drop, self._filler).run()

    async def resolved(self, awaited: Awaitable[T]) -> T | None:
        """Return what there is before an answer; where something was written by then an error is, too, for None.

        Raises ApiError otherwise.
        """
        try:
            return await patiently(awaited, self._fill, self._clock)
        except ApiError as error:
            if not self._request.startedWriting:
                raise
            exchange_of(self._request).failed(error)
            self._request.write(self._encode(Failed(error)))
            return None

    def _fill(self) -> None:
        self.begin()
        self._request.write(self._filler())
