"""A hub on loopback that speaks the Hugging Face hub's protocol, and misbehaves as told.

It runs on threads of its own: pulls block. Files of weights are kept apart, as on the hub: they are had by a redirect
to another origin (`localhost` in place of 127.0.0.1), which no token is for.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import define, field

COMMIT = "c0ffee" + "0" * 34


@define
class Repository:
    """What the hub has under a name; `corrupt` are files whose content is not what their digest says."""

    files: dict[str, bytes]
    tags: list[str] = field(factory=lambda: ["mlx"])
    commit: str = COMMIT
    gated: bool = False
    private: bool = False
    corrupt: set[str] = field(factory=set)


@define(eq=False)
class FakeHub:
    """The hub. `cuts` says for a file after how many bytes of an answer the connection is cut, once each.

    `statuses` are answered in place of a file's, one after the other, and `listing_status` in place of any listing,
    each with `refusal` for its body; with `ranges` off whole files are sent whatever is asked for. A file in `held` is
    stopped in the middle until the event is set.
    """

    endpoint: str = ""
    token: str = "hf_right"
    repositories: dict[str, Repository] = field(factory=dict)
    cuts: dict[str, list[int]] = field(factory=dict)
    statuses: dict[str, list[int]] = field(factory=dict)
    held: dict[str, threading.Event] = field(factory=dict)
    ranges: bool = True
    listing: bytes | None = None
    listing_status: int = 200
    refusal: bytes = b""
    requests: list[tuple[str, dict[str, str]]] = field(factory=list)

    def add(self, name: str, folder: Path, **particulars: Any) -> Repository:
        """Have a repository with the files of a folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.repositories[name] = Repository(files, **particulars)
        return self.repositories[name]

    def asked(self, file: str) -> list[dict[str, str]]:
        """The headers of the requests for a file's content."""
        return [headers for path, headers in self.requests if path.endswith(f"/{file}") and "/content/" in path]

    def told(self, name: str) -> dict[str, Any]:
        """What the hub tells of a repository."""
        repository = self.repositories[name]
        siblings = [
            {
                "rfilename": file,
                "size": len(content),
                "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
                **(
                    {"lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}
                    if is_large(file)
                    else {}
                ),
            }
            for file, content in repository.files.items()
        ]
        return {"id": name, "sha": repository.commit, "tags": repository.tags, "siblings": siblings}


def is_large(file: str) -> bool:
    return file.endswith((".safetensors", ".bin", ".gguf"))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class has it so
        """Say nothing."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((path, {name.lower(): value for name, value in self.headers.items()}))
        if match := re.fullmatch(r"/api/models/(.+)/revision/main", path):
            self.listing(match[1])
        elif match := re.fullmatch(r"/(?:content/)?([^/]+/[^/]+)/resolve/(\w+)/([^/]+)", path):
            self.file(path.startswith("/content/"), *match.groups())
        else:
            self.refuse(404, "EntryNotFound")

    def listing(self, name: str) -> None:
        if self.hub.listing_status != 200:
            self.refuse(self.hub.listing_status, "")
            return
        known = {repository.lower(): repository for repository in self.hub.repositories}
        proper = known.get(name.lower())
        if proper is None or (self.hub.repositories[proper].private and not self.authorised()):
            self.refuse(401, "RepoNotFound")
        else:
            self.answer(200, self.hub.listing or json.dumps(self.hub.told(proper)).encode())

    def file(self, content: bool, name: str, commit: str, file: str) -> None:
        repository = self.hub.repositories[name]
        if self.hub.statuses.get(file):
            self.refuse(self.hub.statuses[file].pop(0), "")
        elif repository.gated and not content and not self.authorised():
            self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        elif commit != repository.commit or file not in repository.files:
            self.refuse(404, "EntryNotFound")
        elif is_large(file) and not content:
            where = self.hub.endpoint.replace("127.0.0.1", "localhost")
            self.answer(302, b"", Location=f"{where}/content/{name}/resolve/{commit}/{file}")
        else:
            data = repository.files[file]
            if file in repository.corrupt:
                data = data[:-1] + bytes([data[-1] ^ 1])
            self.content(file, data)

    def content(self, file: str, data: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        headers = {}
        start = 0
        if asked and self.hub.ranges:
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        rest = data[start:]
        self.send_response(206 if headers else 200)
        for header, value in {**headers, "Content-Length": str(len(rest)), "X-Repo-Commit": COMMIT}.items():
            self.send_header(header, value)
        self.end_headers()
        if file in self.hub.held:
            self.wfile.write(rest[: len(rest) // 2])
            self.hub.held[file].wait(60)
            rest = rest[len(rest) // 2 :]
        if self.hub.cuts.get(file):
            self.wfile.write(rest[: self.hub.cuts[file].pop(0)])
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(rest)

    def authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, self.hub.refusal, **{"X-Error-Code": code})

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)


class Listener(ThreadingHTTPServer):
    """Many connections; one that is cut is no error of ours."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """Run a hub for a while."""
    hub = FakeHub()
    listener = Listener(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        for event in hub.held.values():
            event.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
