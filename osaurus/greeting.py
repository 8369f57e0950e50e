"""What the log says first: that the server runs, and how to ask a model of those that are there."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from attrs import define
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from .chat import InstalledModel
from .library.names import SHORT_NAMES

log = Logger()


@define
class Greeting:
    """Greets; `models` lists those that are installed. `url` is where a browser finds the server, if that is known."""

    _folder: Path
    _url: str | None
    _models: Callable[[], Awaitable[Sequence[InstalledModel]]]

    def give(self) -> None:
        """Say at once that the server runs, and how to begin when the disk has told what there is."""
        browser = f" In a browser: {self._url}/ui" if self._url else ""
        log.info("Osaurus is running. Models: {folder}.{browser}", folder=str(self._folder), browser=browser)
        Deferred.fromCoroutine(self._how_to_begin()).addErrback(
            lambda failure: log.failure("The models cannot be listed", failure)
        )

    async def _how_to_begin(self) -> None:
        models = await self._models()
        if not models:
            log.info("No model is installed: `osaurus pull {name}` gets a small one", name=next(iter(SHORT_NAMES)))
        elif self._url:
            log.info(
                "To try it: curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
                url=self._url,
                body=f'{{"model":"{models[0].id}","messages":'
                '[{"role":"user","content":"Tell me the capital of France."}]}',
            )
