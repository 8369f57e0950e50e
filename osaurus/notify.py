"""Telling systemd what a service of its `Type=notify` has come to (sd_notify): a datagram to the socket it names."""

import os
import socket
from collections.abc import Mapping

from twisted.logger import Logger

log = Logger()

READY = "READY=1"


def notify(state: str, environ: Mapping[str, str] = os.environ) -> None:
    """Tell systemd, if it is there to hear of it."""
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # An abstract one is written with @ in the place of its first byte, which is 0.
    path = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(state.encode(), path)
    except OSError as error:
        log.warn("systemd could not be told {state}: {error}", state=state, error=error)


def stopping(seconds: float) -> str:
    """Return what says that the service is stopping, and will take so long at most."""
    return f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round(seconds * 1e6)}"
