"""The Hugging Face hub: what a repository holds, and fetching from it.

The hub is the operator's (`HF_ENDPOINT`), the token is found where huggingface_hub has it (`HF_TOKEN`, or the file that
`hf auth login` writes), and its HTTP client makes the requests; a name never leads to another host. What the hub
answers is read as strictly as any client's body: names of files become paths.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx2
from attrs import evolve, field, frozen
from huggingface_hub import constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from .. import __version__
from .download import TIMEOUT, Downloader, RemoteFile, Sleep, Tell, check_status
from .progress import AccessDenied, NoSuchRepository, PullError

MOST_LISTING_BYTES = 32 * 2**20
# Everything beside the weights; the largest vocabularies take some tens of MiB.
MOST_SMALL_BYTES = 256 * 2**20
MOST_FILES = 2000

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")

# Configuration, tokenizers of all kinds, chat templates, licenses. No code, no pickles, nothing for other programs.
SMALL = ("*.json", "*.jinja", "tokenizer.model", "tiktoken.model", "*.tiktoken", "merges.txt", "vocab.txt", "LICENSE*")


@frozen(kw_only=True)
class Listing:
    """What a repository holds at its present commit, at the top; `is_mlx` is what its tags say."""

    repository: str
    commit: str
    files: dict[str, RemoteFile]
    is_mlx: bool

    @property
    def small(self) -> list[RemoteFile]:
        """The files of a model beside its weights."""
        return [file for file in self.files.values() if any(fnmatchcase(file.name, pattern) for pattern in SMALL)]


@frozen
class Hub:
    """A hub, and who asks there. `sleep` waits for so many seconds."""

    endpoint: str = field(factory=lambda: constants.ENDPOINT)
    token: str | None = field(factory=get_token, repr=False)
    sleep: Sleep = time.sleep

    def listing(self, repository: str) -> Listing:
        """Return what a repository holds. Raises PullError."""
        url = f"{self.endpoint}/api/models/{repository}/revision/main"
        with (
            self._explained(repository),
            self._session().stream(
                "GET", url, params={"blobs": "true"}, headers=self._headers(), timeout=TIMEOUT
            ) as response,
        ):
            check_status(response)
            content = b""
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MOST_LISTING_BYTES:
                    raise PullError(f"What the hub tells of {repository} is longer than any listing")
        try:
            return self._read(repository, json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PullError(f"What {self.endpoint} tells of {repository} is no listing of a hub: {error!r}") from error

    def fetch(self, listing: Listing, file: RemoteFile, folder: Path, tell: Tell) -> Path:
        """Have a file of a repository in a folder; return its path. Raises PullError, OSError."""
        with self._explained(listing.repository):
            return Downloader(self._session(), tell, self._headers(), self.sleep).fetch(file, folder)

    def _session(self) -> httpx2.Client:
        try:
            return get_session()
        except (ImportError, ValueError, httpx2.InvalidURL) as error:
            # The error may spell out the proxy's password.
            raise PullError(
                "The proxy that is set cannot be used: see ALL_PROXY, HTTPS_PROXY and HTTP_PROXY. An address begins "
                "with http:// or https://, or with socks5:// if the Python package socksio is installed."
            ) from error

    def _headers(self) -> dict[str, str]:
        """Return what goes with every request. Raises PullError."""
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise PullError(
                "The token that was found has characters that no token has, perhaps typographic quotes: "
                "see HF_TOKEN, or what `hf auth login` was given"
            )
        # huggingface_hub's own would tell the hub of the programs that this one was started by.
        agent = {"User-Agent": f"osaurus/{__version__}"}
        return {**agent, "Authorization": f"Bearer {self.token}"} if self.token else agent

    def _read(self, repository: str, told: Any) -> Listing:
        commit = told["sha"]
        if not isinstance(commit, str) or COMMIT.fullmatch(commit) is None:
            raise ValueError("it names no commit")
        if len(told["siblings"]) > MOST_FILES:
            raise ValueError(f"it has more than {MOST_FILES} files")
        # The letters' case is the hub's, so that there is one folder whichever is asked for.
        proper = told.get("id")
        if not isinstance(proper, str) or proper.lower() != repository.lower():
            proper = repository
        files = [
            self._file(proper, commit, entry)
            for entry in told["siblings"]
            if FILE_NAME.fullmatch(str(entry["rfilename"]))
        ]
        tags = told.get("tags") or []
        is_mlx = told.get("library_name") == "mlx" or "mlx" in tags
        return Listing(repository=proper, commit=commit, files={file.name: file for file in files}, is_mlx=is_mlx)

    def _file(self, repository: str, commit: str, entry: dict[str, Any]) -> RemoteFile:
        name, lfs = str(entry["rfilename"]), entry.get("lfs")
        file = RemoteFile(
            name=name,
            url=hf_hub_url(repository, name, revision=commit, endpoint=self.endpoint),
            size=lfs["size"] if lfs else entry["size"],
        )
        if type(file.size) is not int or file.size < 0:
            raise ValueError(f"{name} has no size")
        if lfs and SHA256.fullmatch(lfs["sha256"]):
            return evolve(file, sha256=lfs["sha256"])
        if not lfs and COMMIT.fullmatch(entry["blobId"]):
            return evolve(file, git_sha1=entry["blobId"])
        raise ValueError(f"{name} has no digest")

    @contextmanager
    def _explained(self, repository: str) -> Iterator[None]:
        """Turn what goes wrong with a repository into one line. Raises PullError."""
        page = f"{self.endpoint}/{repository}"
        try:
            yield
        except GatedRepoError as error:
            how = (
                "the token that was found is of somebody who has not"
                if self.token
                else "then give your token as HF_TOKEN, or with `hf auth login`"
            )
            raise AccessDenied(f"{repository} is for those who have asked for access at {page}; {how}") from error
        except DisabledRepoError as error:
            raise AccessDenied(f"{repository} has been disabled on the hub") from error
        except RepositoryNotFoundError as error:
            private = "" if self.token else ", unless it is private: then give your token as HF_TOKEN"
            raise NoSuchRepository(f"There is no {repository} at {self.endpoint}{private}") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise AccessDenied(f"The hub refuses {repository} ({status}); see the token, and {page}") from error
            raise PullError(f"The hub answered {status} when asked for {repository}; try again later") from error
        except OfflineModeIsEnabled as error:
            raise PullError("HF_HUB_OFFLINE is set: nothing is fetched from the hub") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise PullError(
                f"{self.endpoint} cannot be reached: {str(error) or type(error).__name__}. "
                "Check the network, and HF_ENDPOINT if it is set."
            ) from error
