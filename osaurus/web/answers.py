"""What every HTTP answer has in common: its headers, JSON bodies, and errors in the shape that the client takes."""

import re
from typing import Any

from twisted.web.http import Request, datetimeToString
from twisted.web.http_headers import Headers

from .. import __version__
from ..chat import ApiError, InvalidRequest, MethodNotAllowed, Unauthorized
from ..dialects import ollama, openai
from ..dialects.encoding import encode_json
from ..dialects.strict import cut
from .exchange import exchange_of
from .guard import Guard

OLLAMA_SDKS = ("ollama-python/", "ollama-js/", "ollama/")

# What a page may read beside the few that browsers let it: SDKs tell the id, and wait for as long as they are told.
EXPOSED_HEADERS = ("X-Request-Id", "Retry-After", "X-Should-Retry")
ALLOWED_HEADERS = ("Content-Type", "Authorization")
HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
MOST_REFLECTED_HEADERS = 64


def header(request: Request, name: bytes) -> str:
    """Return a header that the client sent, empty if it did not; its bytes may be any."""
    return (request.getHeader(name) or b"").decode("latin-1")


def body(request: Request) -> bytes:
    """Return what the client sent. Raises InvalidRequest if it is encoded."""
    encoding = header(request, b"Content-Encoding").strip()
    if encoding.lower() not in ("", "identity"):
        raise InvalidRequest(f"Bodies are read as they are; send this one without Content-Encoding: {cut(encoding)}")
    assert request.content is not None, "a request that is routed is complete"
    return bytes(request.content.read())


def common_headers(request_id: str, sent: Headers, guard: Guard) -> dict[str, str]:
    """Return the headers that every answer has, where these were sent; be the request complete or not to be read."""
    return {
        "Date": datetimeToString().decode("ascii"),
        "Server": f"osaurus/{__version__}",
        "X-Request-Id": request_id,
        "Access-Control-Expose-Headers": ", ".join(EXPOSED_HEADERS),
        "Access-Control-Allow-Headers": ", ".join(_allowed_headers(_last(sent, "Access-Control-Request-Headers"))),
        **guard.origin_headers(_last(sent, "Origin")),
    }


def _last(sent: Headers, name: str) -> str:
    return sent.getRawHeaders(name.encode("ascii"), [b""])[-1].decode("latin-1")


def _allowed_headers(wanted: str) -> list[str]:
    """Return the request headers that a page may send: ours, and those it wants to that are plain names.

    The OpenAI SDK sends a set of its own from browsers, which grows with its versions.
    """
    asked = wanted.split(",")[:MOST_REFLECTED_HEADERS]
    names = [name for name in map(str.strip, asked) if HEADER_NAME.fullmatch(name)]
    ours = {name.lower() for name in ALLOWED_HEADERS}
    return [*ALLOWED_HEADERS, *(name for name in names if name.lower() not in ours)]


def json_answer(request: Request, value: dict[str, Any]) -> bytes:
    """Return a JSON body, having set its headers."""
    encoded = encode_json(value)
    request.setHeader("Content-Type", "application/json")
    request.setHeader("Content-Length", str(len(encoded)))
    return encoded


def begin_stream(request: Request, content_type: str) -> None:
    """Set the headers of an answer that is written bit by bit, which no proxy is to gather before it passes it on."""
    request.setHeader("Content-Type", content_type)
    request.setHeader("Cache-Control", "no-cache")
    request.setHeader("X-Accel-Buffering", "no")


def error_answer(request: Request, error: ApiError) -> bytes:
    """Return the body of an error answer, having set its status and headers."""
    exchange_of(request).error = error.code
    request.setResponseCode(error.status)
    if error.retry_after is not None:
        request.setHeader("Retry-After", str(error.retry_after))
    if error.status >= 500 and not error.mendable:
        # OpenAI's SDKs would ask twice more.
        request.setHeader("X-Should-Retry", "false")
    if isinstance(error, Unauthorized):
        request.setHeader("WWW-Authenticate", "Bearer")
    if isinstance(error, MethodNotAllowed):
        request.setHeader("Allow", ", ".join(error.allow))
    request.responseHeaders.addRawHeader("Vary", "User-Agent")
    return json_answer(
        request, (ollama if header(request, b"User-Agent").startswith(OLLAMA_SDKS) else openai).error(error)
    )
