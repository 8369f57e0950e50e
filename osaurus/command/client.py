"""Speaking with a running server, over treq.

It may be any version of Osaurus, or something else that got its port: what it says is bounded and checked, and whatever
goes wrong becomes one line that says what to do.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define
from OpenSSL.SSL import Error as SSLError
from service_identity import VerificationError
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionLost, DNSLookupError
from twisted.internet.error import TimeoutError as TwistedTimeout
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, RequestTransmissionFailed, ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from .. import __version__
from .errors import NoServer, Refused

__all__ = ["Client", "HTTPClient", "http_client"]

CONNECT_SECONDS = 5.0
MOST_LINE = 2**22


def http_client(reactor: Any) -> HTTPClient:
    """Return a client whose connections end with the answer."""
    return HTTPClient(Agent(reactor, connectTimeout=CONNECT_SECONDS))


@define
class Client:
    """Speaks with the server at `url`, with an API key if there is one."""

    _http: HTTPClient
    url: str
    _key: str = ""

    async def get(self, path: str, seconds: float | None = None) -> Any:
        """Return the JSON of a path, waiting so long for the answer. Raises NoServer, Refused."""
        return await self._json(await self._request("GET", path, None, seconds))

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send a body and return the answer's JSON. Raises NoServer, Refused."""
        return await self._json(await self._request("POST", path, body))

    async def delete(self, path: str, body: Mapping[str, Any]) -> Any:
        """The same with DELETE. Raises NoServer, Refused."""
        return await self._json(await self._request("DELETE", path, body))

    async def health(self, seconds: float) -> dict[str, Any]:
        """Return what the server says of its health, `version` among it. Raises NoServer."""
        try:
            response = await self._request("GET", "/health", None, seconds, statuses=(200, 503))
        except Refused as error:
            raise self._somebody_else() from error
        answer = await self._json(response)
        name, _, version = (response.headers.getRawHeaders("Server") or [""])[0].partition("/")
        if not isinstance(answer, dict) or "status" not in answer:
            raise self._somebody_else()
        return {**answer, "version": version if name == "osaurus" else None}

    async def stream(self, path: str, body: Mapping[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        """Send a body and `tell` each JSON object of the answer as it comes. Cancelling hangs up.

        Raises NoServer, Refused.
        """

        def checked(value: Any) -> None:
            if not isinstance(value, dict):
                raise NotOurs("not an object")
            if "error" in value:
                raise _refusal(value, 200)
            tell(value)

        await self._lines(await self._request("POST", path, body), checked)

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        seconds: float | None = None,
        statuses: tuple[int, ...] = (200,),
    ) -> IResponse:
        """Return an answer whose body is still to come; one with another status is raised."""
        headers = Headers({"User-Agent": [f"osaurus-command/{__version__}"]})
        if self._key:
            headers.setRawHeaders("Authorization", [f"Bearer {self._key}"])
        given: dict[str, Any] = {} if body is None else {"json": dict(body)}
        try:
            response: IResponse = await self._http.request(
                method,
                f"{self.url}{path}",
                headers=headers,
                timeout=seconds,
                unbuffered=True,
                allow_redirects=False,
                **given,
            )
        except (ConnectError, DNSLookupError, TwistedTimeout) as error:
            raise self._nobody() from error
        except (CancelledError, ResponseFailed, ResponseNeverReceived, RequestTransmissionFailed) as error:
            if not _is_cancelled(error):
                raise self._distrusted(error) or self._somebody_else() from error
            if seconds is None:
                raise CancelledError from error
            # The time is over.
            raise self._nobody() from error
        if response.code not in statuses:
            try:
                said = await self._json(response)
            except NoServer:
                said = None
            raise _refusal(said, response.code)
        return response

    async def _json(self, response: IResponse) -> Any:
        """Return what a body holds; ours is JSON in one line."""
        found: list[Any] = []
        await self._lines(response, found.append)
        if len(found) != 1:
            raise self._somebody_else()
        return found[0]

    async def _lines(self, response: IResponse, tell: Callable[[Any], None]) -> None:
        lines = _Lines(tell)
        response.deliverBody(lines)
        try:
            await lines.finished
        except NotOurs as error:
            raise self._somebody_else() from error
        except (ConnectionLost, ResponseFailed) as error:
            raise NoServer(f"The server at {self.url} broke off in the middle of its answer.") from error

    def _nobody(self) -> NoServer:
        return NoServer(
            f"No server answers at {self.url}. Start one with `osaurus serve`, "
            "or say where it is with --host, OSU_HOST or OSU_PORT."
        )

    def _distrusted(self, error: BaseException) -> NoServer | None:
        """Return what to say if it was the certificate that ended the connection."""
        for reason in getattr(error, "reasons", []):
            if reason.check(VerificationError):
                return NoServer(f"The certificate of what answers at {self.url} is for another name.")
            if reason.check(SSLError) and "certificate verify failed" in str(reason.value):
                return NoServer(
                    f"The certificate of what answers at {self.url} was not made by anybody whom this machine trusts; "
                    "SSL_CERT_FILE can name a file of certificates to trust."
                )
        return None

    def _somebody_else(self) -> NoServer:
        return NoServer(f"What answers at {self.url} is no Osaurus. Does another program use the port?")


class NotOurs(Exception):
    """What came is nothing that Osaurus says."""


class _Lines(Protocol):
    """Tells each line of a body as JSON; the last need not have an end. `finished` fires at the end or at an error."""

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell
        self._pending = b""
        self.finished: Deferred[None] = Deferred(lambda _: self._hang_up())

    def dataReceived(self, data: bytes) -> None:
        """Take what came."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._pending) > MOST_LINE:
            self._fail(NotOurs("a line is too long"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Take the last line, and tell that it was."""
        whole = reason.check(ResponseDone, PotentialDataLoss)
        if whole:
            self._take(self._pending)
        if not self.finished.called:
            self.finished.callback(None) if whole else self.finished.errback(reason)

    def _take(self, line: bytes) -> None:
        if line.strip() and not self.finished.called:
            try:
                self._tell(_read(line))
            except Exception as error:  # noqa: BLE001 - it is for whoever waits
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self.finished.called:
            self._hang_up()
            self.finished.errback(error)

    def _hang_up(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


def _read(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise NotOurs(str(error)) from error


def _is_cancelled(error: BaseException) -> bool:
    reasons = getattr(error, "reasons", [])
    return isinstance(error, CancelledError) or any(reason.check(CancelledError) for reason in reasons)


def _refusal(said: Any, status: int) -> Refused:
    """Return the error that a body tells of, in either of the shapes that the server has."""
    error = said.get("error") if isinstance(said, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    if not isinstance(message, str):
        message = f"The server answered with status {status} and no reason"
    if status == 401:
        message += " (OSU_API_KEY gives one)"
    return Refused(message, status)
