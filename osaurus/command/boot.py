"""Which of what starts servers at boot is meant, and which has started one."""

import os
from pathlib import Path

from ..boot.launchd import Launchd
from ..boot.manager import Manager, ManagerFailed
from ..boot.systemd import Systemd
from ..discovery import Instance
from .surroundings import Surroundings


def manager_of(surroundings: Surroundings, kind: str | None, system: bool) -> Manager:
    """Return what starts servers: that of this platform, unless a kind is named."""
    run, root = surroundings.run_program, surroundings.root
    if (kind or ("launchd" if surroundings.platform == "darwin" else "systemd")) == "launchd":
        return Launchd(system=system, uid=os.getuid(), home=Path.home(), run=run, root=root)
    return Systemd(system=system, home=Path.home(), run=run, root=root)


def managing(surroundings: Surroundings, instance: Instance) -> Manager | None:
    """Return what has started a server, and may start it again; None if nothing has."""
    for system in (False, True):
        manager = manager_of(surroundings, None, system)
        try:
            if manager.status().pid == instance.pid:
                return manager
        except ManagerFailed:
            # One that does not answer has started nothing that could be told.
            continue
    return None
