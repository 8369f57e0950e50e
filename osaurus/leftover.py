"""What a server that was killed leaves of its Unix socket.

Twisted holds a lock beside the socket: a link to the number of the process. One whose process is gone it takes over.
But numbers are given out again, in a container the same each time, and the next server would take itself for the other.
Whether anybody listens is what the socket tells.
"""

import socket
from pathlib import Path

from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.interfaces import IStreamServerEndpoint


def remove(endpoint: IStreamServerEndpoint) -> None:
    """Remove a Unix socket and its lock, if it has one and nobody listens there. Raises OSError."""
    if not isinstance(endpoint, UNIXServerEndpoint) or not endpoint._wantPID:
        return
    path = Path(endpoint._address)
    lock = Path(f"{path}.lock")
    if lock.is_symlink() and _is_deserted(path):
        path.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)


def _is_deserted(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        # One whose queue is full would have it wait.
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return not path.exists() or path.is_socket()
        except OSError:
            pass
    return False
