"""Who may ask: by API key, by the host name that was asked for, and by the web page that asks.

A browser on this machine reaches a server on loopback for any page that it shows. CORS lets every page use the models,
as the contract says. What changes the disk is for pages of the server's own origin only, checked here, since a page
can send a POST without asking first. And a page whose own host name is made to point to 127.0.0.1 (DNS rebinding)
would pass for the server's own: so a server on loopback answers only to names that nobody else can own.
"""

import hmac
import re
import socket
from hashlib import sha256
from ipaddress import ip_address
from urllib.parse import urlsplit

from attrs import define, field
from twisted.web.http import Request

from ..chat import Forbidden, Unauthorized

LOCAL_NAMES = re.compile(r"localhost|.+\.(localhost|local|internal)")
# `host`, `host:port`, `[::1]:port`.
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)\.?(?::[0-9]{1,5})?", re.IGNORECASE)
# Paths that are open to whoever has no key, and first parts of more of them.
OPEN = ("", "health")
OPEN_BELOW = ("ui",)
# First parts of paths that are closed to pages of other origins.
OWN_PAGES_ONLY = ("blobs", "copy", "create", "delete", "metrics", "pull", "push")


@define
class Guard:
    """Lets requests in. Without `api_keys` anybody has one; `origins` without `*` are those that CORS allows.

    `hosts` are names that the server answers to beside those that are its own beyond doubt; `*` among them is any.
    `read_only` keeps everybody from changing what is installed.
    """

    _api_keys: tuple[str, ...] = ()
    _hosts: tuple[str, ...] = ()
    _origins: tuple[str, ...] = ("*",)
    _read_only: bool = False
    _own_name: str = field(factory=lambda: socket.gethostname().lower())

    def apply(
        self, api_keys: tuple[str, ...], hosts: tuple[str, ...], origins: tuple[str, ...], read_only: bool
    ) -> None:
        """Let in by other rules from the next request on; whoever is being answered is not asked again."""
        self._api_keys, self._hosts, self._origins, self._read_only = api_keys, hosts, origins, read_only

    def check(self, request: Request, path: str) -> None:
        """Raise Forbidden or Unauthorized unless the request may go on; `path` is without its prefix."""
        self._check_host(request)
        # However many slashes come first, the route is the same.
        first = path.lstrip("/").partition("/")[0]
        if self._api_keys and path.strip("/") not in OPEN and first not in OPEN_BELOW:
            self._check_key(request)
        if first in OWN_PAGES_ONLY:
            self._check_origin(request)
            if self._read_only and request.method not in (b"GET", b"HEAD"):
                raise Forbidden("This server lets clients use models, not change what is installed (`read_only`)")

    def owner(self, request: Request) -> str:
        """Return a name for who asks: one for each key, one for all where there are none."""
        if not self._api_keys:
            return ""
        # Since it was let in, its key may have been taken away.
        key = self._fitting(request) or "\0".join(_given(request))
        return sha256(key.encode()).hexdigest()

    def origin_headers(self, origin: str) -> dict[str, str]:
        """Return the headers that say which pages may read an answer, and ask for what, to one of this origin."""
        methods = {"Access-Control-Allow-Methods": "GET, POST, OPTIONS"}
        if "*" in self._origins:
            return {**methods, "Access-Control-Allow-Origin": "*"}
        if origin not in self._origins:
            return {**methods, "Vary": "Origin"}
        return {
            "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
            "Access-Control-Allow-Origin": origin,
            "Vary": "Origin",
        }

    def _check_origin(self, request: Request) -> None:
        origin = _header(request, b"Origin")
        if not origin or origin in self._origins:
            return
        try:
            scheme, host = urlsplit(origin)[:2]
        except ValueError:
            scheme, host = "", ""
        if scheme not in ("http", "https") or host.lower() != _header(request, b"Host").lower():
            raise Forbidden(
                f"Pages of {origin[:100]} may use the models here, but not change them; `origins` can allow it"
            )

    def _check_host(self, request: Request) -> None:
        given = _header(request, b"Host")
        if not given or "*" in self._hosts:
            # Browsers always send one.
            return
        match = HOST.fullmatch(given)
        name = match[1].lower().rstrip(".") if match else ""
        if name in (self._own_name, *self._hosts) or LOCAL_NAMES.fullmatch(name) or _is_private(name):
            return
        raise Forbidden(f"This server does not answer to {given[:100]!r}; `hosts` can have it do so")

    def _check_key(self, request: Request) -> None:
        if not self._fitting(request):
            raise Unauthorized(
                "This server asks for an API key, as `Authorization: Bearer KEY`; "
                + ("the one that was sent is not one of them" if any(_given(request)) else "none was sent")
            )

    def _fitting(self, request: Request) -> str:
        """Return the key that fits; empty if none does. All are compared, whichever fits: the time tells nothing."""
        pairs = [(given.encode(), key.encode()) for given in _given(request) for key in self._api_keys]
        fitting = [key for given, key in pairs if hmac.compare_digest(given, key)]
        return fitting[0].decode() if fitting else ""


def _is_private(name: str) -> bool:
    try:
        address = ip_address(name.strip("[]"))
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified


def _given(request: Request) -> tuple[str, str]:
    """Return what may be the key; behind a proxy `Authorization` may be the proxy's own."""
    scheme, _, bearer = _header(request, b"Authorization").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" else "", _header(request, b"X-Api-Key")


def _header(request: Request, name: bytes) -> str:
    return (request.getHeader(name) or b"").decode("latin-1")
