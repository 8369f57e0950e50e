"""The settings that may change while the server runs, and who has to know.

A setting that is marked as live in osaurus/settings.py is passed on here, and nowhere else.
"""

import math
from typing import Any

from attrs import frozen

from .inherited import is_inherited
from .logs.output import LogOutput
from .serving.idleness import Idleness
from .serving.limits import Limits
from .serving.residency import Residency
from .settings import Settings
from .web.connections import Connections
from .web.generating import Generating
from .web.guard import Guard

# How long a server waits that is started anew for the next who comes, in seconds.
PATIENCE_BEHIND_A_SOCKET = 1800.0


@frozen
class Live:
    """Those parts of a running server that have such a setting."""

    _guard: Guard
    _limits: Limits
    _residency: Residency
    _connections: Connections
    _idleness: Idleness
    _generating: Generating
    _log_output: LogOutput | None

    def apply(self, settings: Settings) -> None:
        """Have these in force. `drain` and `no_auth` are looked at when they matter."""
        self._guard.apply(**rules(settings))
        self._limits.apply(settings.max_concurrent, settings.requests_per_minute)
        self._residency.apply(settings.keep_alive)
        self._connections.apply(settings.max_connections, settings.max_body)
        self._idleness.apply(patience(settings))
        self._generating.apply(settings.log_content)
        if self._log_output is not None:
            self._log_output.apply(settings.log_level)


def rules(settings: Settings) -> dict[str, Any]:
    """Return what the Guard goes by."""
    # Who is reached from other machines answers to whatever name they know, if keys protect it.
    anywhere = settings.exposed and settings.api_keys and not settings.hosts
    return {
        "api_keys": settings.api_keys,
        "hosts": ("*",) if anywhere else settings.hosts,
        "origins": settings.origins,
        "read_only": settings.read_only,
    }


def patience(settings: Settings) -> float:
    """Return after how many seconds without a request the server ends."""
    if settings.exit_when_idle is not None:
        return settings.exit_when_idle
    return PATIENCE_BEHIND_A_SOCKET if any(map(is_inherited, settings.endpoints)) else math.inf
