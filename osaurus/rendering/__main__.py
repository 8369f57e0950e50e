"""The process that renders chat templates, within limits; see `renderer.py`.

It is asked over the socket that is its standard input, and ends when that is closed: with the server as well, however
that ends.
"""

import marshal
import math
import os
import signal
import socket
import sys
from argparse import ArgumentParser
from time import process_time
from typing import Any

from ..confinement import confine
from .environment import WritesTooMuch, render
from .framing import EXCESS, LENGTH, NO_MEMORY, REFUSAL, TEXT, encoded, receive, send

# Of what a template says in refusing, in characters.
MOST_SAID = 2000


def main(arguments: list[str]) -> None:
    """Answer whoever has the other end of the socket."""
    parser = ArgumentParser(prog="python -m osaurus.rendering")
    parser.add_argument("memory", type=int)
    parser.add_argument("seconds", type=int)
    parser.add_argument("characters", type=int)
    given = parser.parse_args(arguments)
    # What ends the server may be said to all of its processes; it completes what it has begun.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=0) as channel:
        send(channel, b"")
        while True:
            # What was used is given again, for each rendering.
            confine(memory=given.memory, seconds=math.ceil(process_time()) + given.seconds)
            try:
                asked = receive(channel, 2 ** (8 * LENGTH.size))
                template, variables = marshal.loads(asked)  # noqa: S302 - from whoever has started this
                send(channel, _answer(template, variables, given.characters))
            except (EOFError, ConnectionError):
                return
            except MemoryError:
                # At once: everything else takes memory, and what a template has left of it is not for the next.
                os._exit(NO_MEMORY)


def _answer(template: str, variables: dict[str, Any], characters: int) -> bytes:
    try:
        return TEXT + encoded(render(template, variables, characters))
    except WritesTooMuch:
        return EXCESS
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, a template may raise it
        return REFUSAL + encoded(str(error)[:MOST_SAID])


if __name__ == "__main__":
    main(sys.argv[1:])
