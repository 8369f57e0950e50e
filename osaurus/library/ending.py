"""An ordinary end for a process that a signal would end at once: what it began is removed, what it started ends too."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


@contextmanager
def ends_in_order() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise SystemExit meanwhile, with the status that a shell gives them. In the main thread.

    What is ignored, as SIGHUP is under `nohup`, stays so.
    """
    before: dict[signal.Signals, Any] = {}

    def end(number: int, _: object) -> NoReturn:
        # A terminal that is closed may send a second, which would cut the tidying up short.
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for each in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:
            before[each] = signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
