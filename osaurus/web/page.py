"""The page at /ui: what the server is doing, and a chat, for whoever opens it in a browser.

Its files are part of the package and read once, at the start; from then on they are known by their names, so that no
path from the network reaches the disk. They hold no secret and are open to everybody: the page asks for a key itself
when the server does.

What the page shows was in part written by models and by strangers. The policy has the browser run nothing but these
files, show nothing from elsewhere, speak with nobody but this server, and refuse text wherever it would become markup.
"""

from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from pathlib import PurePath

from attrs import frozen
from twisted.web.http import CACHED, Request

from ..chat import NotFound

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

INDEX = "index.html"


@frozen
class File:
    """What is sent under one name."""

    content: bytes
    type: str

    @property
    def tag(self) -> bytes:
        """An entity tag: other content has another."""
        return b'"%s"' % sha256(self.content).hexdigest()[:32].encode()


@frozen
class Page:
    """Answers with the page's files."""

    _files: Mapping[str, File]

    @classmethod
    def of_package(cls) -> "Page":
        """Return the page that is part of this package."""
        folder = files(__package__) / "ui"
        return cls(
            {
                file.name: File(file.read_bytes(), TYPES[PurePath(file.name).suffix])
                for file in folder.iterdir()
                if PurePath(file.name).suffix in TYPES
            }
        )

    def page(self, request: Request) -> bytes:
        """Show what the server is doing, and a chat, in a browser."""
        index = self._files[INDEX]
        if not request.path.endswith(b"/"):
            # A browser takes `./page.css` to be beside `/ui` and below `/ui/`.
            index = File(index.content.replace(b'="./', b'="./ui/'), index.type)
        return _answer(request, index)

    def file(self, request: Request, name: str) -> bytes:
        """Return one of the page's files. Raises NotFound."""
        if name not in self._files:
            raise NotFound(f"The page has no file {name[:100]!r}")
        return _answer(request, self._files[name])


def _answer(request: Request, file: File) -> bytes:
    request.setHeader("Content-Security-Policy", POLICY)
    request.setHeader("X-Content-Type-Options", "nosniff")
    request.setHeader("Referrer-Policy", "no-referrer")
    request.setHeader("Cross-Origin-Resource-Policy", "same-origin")
    # Kept by browsers, and asked for again each time whether it still is what it was.
    request.setHeader("Cache-Control", "no-cache")
    if request.setETag(file.tag) is CACHED:
        return b""
    request.setHeader("Content-Type", file.type)
    request.setHeader("Content-Length", str(len(file.content)))
    return file.content
