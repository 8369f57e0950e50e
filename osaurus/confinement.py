"""What a process of ours that takes apart somebody else's file may take of the machine, set by itself as it begins."""

import resource
from contextlib import suppress


def confine(*, memory: int, seconds: int) -> None:
    """Bound this process to so many bytes that it writes to, where the system can, and seconds on the processor."""
    # No core: it would be a file of somebody's data that nobody reads.
    for which, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        _bound(which, most)
    # On Linux files that are only read do not count. macOS refuses less than what is mapped, which on Apple silicon
    # is hundreds of GiB in any process; Python makes a ValueError of that.
    with suppress(ValueError, OSError):
        _bound(resource.RLIMIT_DATA, memory)


def _bound(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard == resource.RLIM_INFINITY or hard > most:
        resource.setrlimit(which, (most, hard))
