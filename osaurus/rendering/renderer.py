"""Renders chat templates in a process of its own, which is bounded by the system in time and, but for macOS, in memory.

A template is a program of a stranger's. Jinja's sandbox keeps it from everything but the machine itself: one that loops
for ever would keep the thread that renders it, and one that doubles a string forty times take all memory. Both end a
process here, which costs that conversation an answer; there is another for the next. To start one takes a tenth of a
second, to ask one less than a thousandth, so that it stays while it may be asked: as long as the renderer does.
"""

import marshal
import os
import signal
import socket
import subprocess
import sys
import weakref
from threading import Lock
from time import monotonic
from typing import Any

from attrs import define, field, frozen

from ..chat import ApiError, ServiceUnavailable, TemplateStopped
from .framing import EXCESS, NO_MEMORY, REFUSAL, TooLong, decoded, receive, send

# In bytes, and in seconds on the processor for each rendering. What Python and Jinja take is a small part of both.
MOST_MEMORY = 2**30
MOST_SECONDS = 2

# By the clock, for each rendering: where memory is not bounded, one may wait for the disk instead of computing. And for
# the process to be there: what it imports may have to come from a slow disk.
PATIENCE = 10.0
START_PATIENCE = 60.0

# What of our environment is no business of a template's: keys, and tokens of hubs.
PRIVATE = ("OSU_", "HF_", "HUGGING_FACE_")

# What a character takes at most, in bytes, and what else may be in an answer.
CHARACTER, AROUND = 4, 2**14


class TemplateRefused(Exception):
    """A template refuses what it is given, or fails; the message is its own."""


@frozen(eq=False)
class _Process:
    """A process that renders, and our end of the socket that it is asked over."""

    popen: "subprocess.Popen[bytes]"
    channel: socket.socket

    @classmethod
    def started(cls, *bounds: int) -> "_Process":
        """Start one. Raises OSError."""
        # -P: what lies in the current folder is not imported.
        command: list[str] = [sys.executable, "-P", "-m", "osaurus.rendering", *map(str, bounds)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                popen = subprocess.Popen(  # noqa: S603 - ourselves
                    command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment
                )
            except BaseException:
                ours.close()
                raise
        process = cls(popen, ours)
        try:
            # It says that it listens: until then it does not render.
            receive(ours, 0, monotonic() + START_PATIENCE)
        except BaseException as error:
            status = process.end()
            if isinstance(error, EOFError):
                raise OSError(f"it ended with {status}") from error
            raise
        return process

    def end(self) -> int:
        """Have it ended; return its status."""
        self.channel.close()
        self.popen.kill()
        return self.popen.wait()


@define(eq=False)
class Renderer:
    """Renders the templates of one model; safe on any thread, one conversation at a time.

    What a template writes has so many `characters` at most. The process is there from the first rendering on, and ends
    with this object, or when a bound was exceeded: then the next rendering has another.
    """

    _characters: int
    _memory: int = MOST_MEMORY
    _seconds: int = MOST_SECONDS
    _patience: float = PATIENCE
    _lock: Lock = field(factory=Lock, init=False)
    _process: _Process | None = field(default=None, init=False)
    _end: Any = field(default=None, init=False)

    def render(self, template: str, variables: dict[str, Any]) -> str:
        """Render a template with variables of JSON's types.

        Raises TemplateRefused, TemplateStopped if a bound was exceeded, ServiceUnavailable if no process can be had.
        """
        asked = marshal.dumps((template, variables))
        with self._lock:
            told = self._told(asked)
        kind, text = bytes(told[:1]), told[1:]
        if kind == EXCESS:
            raise self._writes_too_much()
        if kind == REFUSAL:
            raise TemplateRefused(decoded(text))
        return decoded(text)

    def _told(self, asked: bytes) -> memoryview:
        channel = self._running().channel
        until = monotonic() + self._patience
        try:
            send(channel, asked, until)
            return receive(channel, CHARACTER * self._characters + AROUND, until)
        except TimeoutError as error:
            self._end()
            raise _stopped(f"takes too long: more than {self._patience:g} s") from error
        except TooLong as error:
            self._end()
            raise self._writes_too_much() from error
        except (EOFError, ConnectionError) as error:
            raise self._why(self._end()) from error
        except BaseException:
            # Somewhere within an answer, that nobody else may take for theirs.
            self._end()
            raise

    def _running(self) -> _Process:
        """Return the process, a new one where there is none or it has ended. Raises ServiceUnavailable."""
        if self._process is not None and self._end.alive and self._process.popen.poll() is None:
            return self._process
        if self._end is not None:
            self._end()
        try:
            self._process = _Process.started(self._memory, self._seconds, self._characters)
        except OSError as error:
            raise _no_process(error) from error
        self._end = weakref.finalize(self, self._process.end)
        return self._process

    def _writes_too_much(self) -> TemplateStopped:
        return _stopped(f"writes too much: more than {self._characters} characters")

    def _why(self, status: int) -> ApiError:
        """Return what is wrong where a process has ended with this status."""
        if status == -signal.SIGXCPU:
            return _stopped(f"takes too long: more than {self._seconds} s on the processor")
        if status == NO_MEMORY:
            return _stopped(f"takes too much memory; {self._memory / 2**30:g} GiB are the most")
        if status == -signal.SIGKILL:
            # Nobody here kills it unheard.
            return _stopped("was killed, perhaps by the system for want of memory")
        if status < 0:
            return _stopped(f"ends the process that renders it ({signal.Signals(-status).name})")
        return _no_process(f"it ended with {status}")


def _stopped(reason: str) -> TemplateStopped:
    return TemplateStopped(
        f"The model's chat template was stopped in rendering this conversation: it {reason}", param="messages"
    )


def _no_process(reason: object) -> ServiceUnavailable:
    return ServiceUnavailable(f"The process that renders conversations cannot be had: {reason}", retry_after=5)
