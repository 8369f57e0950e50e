"""Sockets that systemd opened for this process (`LISTEN_FDS`): where they are bound.

What such an endpoint string says (`systemd:domain=INET:index=0`) does not tell who can reach it; the socket does. It is
looked at once, since its descriptor is given to the reactor when the server begins to listen.
"""

import os
import socket
from functools import cache
from ipaddress import ip_address

PREFIX = "systemd:"


@cache
def is_local(endpoint: str) -> bool:
    """Tell whether an endpoint string is that of an inherited socket which only this machine can reach."""
    if not endpoint.startswith(PREFIX):
        return False
    # The command asks as well, for settings that name no socket.
    from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString

    try:
        adopted = serverFromString(None, endpoint)
        assert isinstance(adopted, AdoptedStreamServerEndpoint), "what systemd: stands for"
        with socket.socket(fileno=os.dup(adopted.fileno)) as inherited:
            return inherited.family == socket.AF_UNIX or ip_address(inherited.getsockname()[0]).is_loopback
    except (LookupError, OSError, TypeError, ValueError):
        # There is no such socket. Whoever listens is told so.
        return False


def is_inherited(endpoint: str) -> bool:
    """Tell whether an endpoint string is that of a socket of systemd's."""
    return endpoint.startswith(PREFIX)
