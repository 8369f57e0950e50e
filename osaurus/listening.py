"""Whether an endpoint string can be one, and in words what is wrong with one that cannot.

Twisted has the parsers, and what they raise is Python's: that a function got an unexpected keyword argument. What is
known of that is said as whoever wrote the string would; all else as it comes, since plugins have kinds of their own.
"""

import re
from typing import Any

from twisted.internet.endpoints import serverFromString

from .sources import did_you_mean

KINDS = ("tcp", "tcp6", "ssl", "tls", "unix", "systemd", "haproxy")
PARTS = (
    *("port", "interface", "backlog", "address", "mode", "lockfile", "domain", "index", "name"),
    *("privateKey", "certKey", "extraCertChain", "sslmethod", "dhParameters"),
)

UNKNOWN_KIND = re.compile(r"Unknown endpoint type: '(.*)'")
UNKNOWN_PART = re.compile(r"unexpected keyword argument '(.*)'")
MISSING = re.compile(r"missing \d+ required positional arguments?: (.*)")
TOO_MANY = re.compile(r"takes .* positional arguments? but|got multiple values for argument")
NO_NUMBER = re.compile(r"invalid literal for int\(\) with base (\d+): (.*)")


class BadEndpoint(Exception):
    """An endpoint string cannot be one; the message says why."""


def check(reactor: Any, endpoint: str) -> None:
    """Raise BadEndpoint if nothing can listen on an endpoint."""
    try:
        serverFromString(reactor, endpoint)
    except Exception as error:  # parsers of endpoint plugins raise what they like
        raise BadEndpoint(_reason(endpoint, error)) from error


def _reason(endpoint: str, error: Exception) -> str:
    said = str(error)
    if isinstance(error, ImportError):
        return f"{said}. `pip install 'Twisted[tls]'` brings what TLS needs"
    if isinstance(error, LookupError) and endpoint.startswith("systemd:"):
        return "systemd has handed over no such socket"
    if found := UNKNOWN_KIND.search(said):
        known = did_you_mean(found[1], KINDS) or f"; there are {', '.join(KINDS)}"
        return f"it begins with {found[1]!r}, which is no kind of endpoint{known}"
    if found := UNKNOWN_PART.search(said):
        return f"{found[1]!r} is no part of such an endpoint{did_you_mean(found[1], PARTS)}"
    if found := MISSING.search(said):
        return f"{found[1]} is missing"
    if TOO_MANY.search(said):
        return r"it has too many parts; a colon within one is written \:"
    if found := NO_NUMBER.search(said):
        return f"{found[2]} is no {'octal ' if found[1] == '8' else ''}number"
    return said
