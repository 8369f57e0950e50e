"""Reading the settings again while the server runs: the same file, variables and options as at the start.

All or nothing: where one of them is bad, or what they come to would leave the server open to others, everything stays
as it was. What is judged is what would be in force, not what was read: a file that closes the doors, which takes a
restart, and takes away the keys, which does not, would otherwise leave them open until then.
"""

from collections.abc import Callable

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from .serving.blocking import Blocking
from .settings import Settings, table
from .sources import BadSetting, Found, refuse_open_doors

log = Logger()


@define(eq=False)
class Reload:
    """`find` gathers the settings and is run off the reactor; `apply` takes those that are to be in force."""

    settings: Settings
    """Those in force."""
    _find: Callable[[], Found]
    _apply: Callable[[Settings], object]
    _blocking: Blocking
    _reading: bool = field(default=False, init=False)
    _again: bool = field(default=False, init=False)
    _ended: bool = field(default=False, init=False)

    def begin(self) -> None:
        """Read the settings again, and after that once more if this is called meanwhile."""
        self._again = True
        if not self._reading and not self._ended:
            self._reading = True
            Deferred.fromCoroutine(self._read())

    def end(self) -> None:
        """Leave the settings as they are from now on: the server ends by them."""
        self._ended = True

    async def _read(self) -> None:
        while self._again and not self._ended:
            self._again = False
            try:
                found = await self._blocking(self._find)
                if not self._ended:
                    self._take(found.settings)
            except BadSetting as error:
                log.error("The settings were read again and stay as they were: {error}", error=error)
            except Exception:  # noqa: BLE001 - whatever it was, the server goes on
                log.failure("The settings cannot be read again and stay as they were")
        self._reading = False

    def _take(self, read: Settings) -> None:
        changed = [
            setting for setting in table() if getattr(read, setting.name) != getattr(self.settings, setting.name)
        ]
        live = {setting.name: getattr(read, setting.name) for setting in changed if setting.live}
        settings = evolve(self.settings, **live)
        refuse_open_doors(settings)
        self._apply(settings)
        self.settings = settings
        log.info("The settings were read again; {count} of them changed", count=len(live) or "none")
        for setting in changed:
            shown = setting.shown(getattr(read, setting.name))
            if setting.live:
                log.info("{name} is now {value}", name=setting.name, value=shown)
            else:
                log.warn("{name} would be {value}, but that takes a restart", name=setting.name, value=shown)
