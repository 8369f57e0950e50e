"""An HTTP connection that says why it takes no more, where a request cannot be read.

Twisted closes a connection without a byte where a line of a request's head is too long, and with a bare status where
the head is too long altogether, or something in the request is no HTTP. Nobody learns from that what was wrong, a page
not even that there was an answer. Here it is an error like any other, with its line in the log; only that there is no
request to be routed or counted, and that nothing that still comes can be understood, so that it is the connection's
last. Requests before it on the connection have their answers by then: what comes behind a request is not looked at
until that is answered.

What is too long is found through hooks that are public, by limits of ours that lie just within Twisted's. All the rest
Twisted tells by one method that is not; there is no other way to hear of a bad chunk. Should it be gone some day, the
bare 400 is back, and a test fails.

The connection is closed behind the answer. Where a head is too long more of it is likely to come, and closing would
reset the connection, with the answer lost on its way; so it is closed when the client has read it and closes, or a
moment later.
"""

from typing import Any
from uuid import uuid4

from twisted.logger import Logger
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers

from ..chat import ApiError, HeadersTooLarge, InvalidRequest
from ..dialects import openai
from ..dialects.encoding import encode_json
from .answers import common_headers

log = Logger()

# Seconds.
LONGEST_GOODBYE = 2.0

REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


class ToldChannel(HTTPChannel):
    """A connection on which requests arrive; one that cannot be read is refused, and is the last."""

    # A QuietSite, which has made this.
    site: Any
    _head_size = 0
    _head_lines = 0
    _refused = False

    def dataReceived(self, data: bytes) -> None:
        """Take what comes, and throw it away behind a request that was refused."""
        if not self._refused:
            super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        """Take a line of a request's head."""
        self._head_size += len(line)
        self._head_lines += bool(line)
        # The first is the request's own.
        if self._head_size > self.totalHeadersSize or self._head_lines > self.maxHeaders + 1:
            self._refuse_size()
        else:
            super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002 - the hook's
        """Refuse a line that is longer than the whole head may be."""
        self._refuse_size()

    def allContentReceived(self) -> None:
        """Begin anew behind a request."""
        self._head_size = self._head_lines = 0
        super().allContentReceived()

    def _respondToBadRequestAndDisconnect(self) -> None:
        self._refuse(InvalidRequest("The request is no HTTP/1.1: a line, a length or a chunk of it is malformed"))
        self.loseConnection()

    def _refuse_size(self) -> None:
        most = f"{self.totalHeadersSize // 2**10} KiB or {self.maxHeaders} headers"
        self._refuse(HeadersTooLarge(f"The request's line and headers exceed {most}"))
        self.setTimeout(LONGEST_GOODBYE)

    def _refuse(self, error: ApiError) -> None:
        self._refused = True
        # What Twisted still has of the head, it would go on with.
        self.clearLineBuffer()
        request_id = f"req_{uuid4().hex}"
        body = encode_json(openai.error(error))
        # Of a request that was begun, what has come by now.
        sent = self.requests[-1].requestHeaders if self.requests else Headers()
        headers = Headers()
        for name, value in common_headers(request_id, sent, self.site.guard).items():
            headers.setRawHeaders(name, [value])
        headers.setRawHeaders("Connection", ["close"])
        headers.setRawHeaders("Content-Type", ["application/json"])
        headers.setRawHeaders("Content-Length", [str(len(body))])
        self.writeHeaders(b"HTTP/1.1", b"%d" % error.status, REASONS[error.status], headers)
        self.write(body)
        peer = self.getPeer()
        log.info(
            "A request could not be read: {status}",
            status=error.status,
            error=error.code,
            client=getattr(peer, "host", "unix"),
            request_id=request_id,
        )
