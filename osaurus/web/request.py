"""An HTTP request whose body is bounded while it arrives.

Twisted itself takes bodies of any size and writes large ones to a file. Here a body is kept in memory up to a limit;
what comes beyond it is thrown away, so that the client can read the answer (413) when it is through with sending. One
that goes on for many times the limit is cut off.
"""

from io import BytesIO
from typing import Any

from twisted.web.server import Request

from ..chat import RequestTooLarge
from .answers import error_answer, stamp

PATIENCE = 16


class BoundedRequest(Request):
    """A request with a body of at most `max_body` bytes."""

    def __init__(self, channel: Any, *args: Any, max_body: int) -> None:
        super().__init__(channel, *args)
        self._max_body = max_body
        self._received = 0
        self._body = BytesIO()

    def gotLength(self, length: int | None) -> None:  # noqa: ARG002
        """Make room for the body; its length is told by what arrives, in both framings."""
        self.content = self._body

    def handleContentChunk(self, data: bytes) -> None:
        """Take a part of the body."""
        self._received += len(data)
        if self._received <= self._max_body:
            self._body.write(data)
        elif self._received > self._max_body * PATIENCE:
            self.channel.loseConnection()
        else:
            self._body.truncate(0)

    def process(self) -> None:
        """Answer the request, now that its body is complete."""
        if self._received <= self._max_body:
            super().process()
            return
        stamp(self)
        limit = f"{self._max_body / 2**20:g} MiB"
        body = error_answer(self, RequestTooLarge(f"The body has {self._received} bytes; the limit is {limit}"))
        self.write(body)
        self.finish()
