"""The Hugging Face cache: what other programs have fetched from the hub, read in place.

Its layout: `models--organisation--repository/snapshots/COMMIT/` holds links into `blobs/`, and `refs/main` names the
commit that the repository was at. Nothing in it is ever written or deleted from here: it is shared. huggingface_hub
can list it too, but looks at every file of every repository for that.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

# `models--repository` too: the hub's oldest have no organisation.
ENTRY = re.compile(r"models--(?:([A-Za-z0-9][A-Za-z0-9._-]*?)--)?([A-Za-z0-9][A-Za-z0-9._-]*)")
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@frozen
class HubCache:
    """One such cache, which need not exist."""

    folder: Path

    def snapshots(self) -> Iterator[tuple[str, Path]]:
        """Yield each repository's name, and the folder of the commit that is used: `main`, else the newest."""
        try:
            entries = sorted(self.folder.iterdir())
        except OSError:
            return
        for entry in entries:
            match = ENTRY.fullmatch(entry.name)
            if match is None:
                continue
            snapshot = _main(entry) or _newest(entry)
            if snapshot is not None:
                yield "/".join(filter(None, match.groups())), snapshot


def told_digest(path: Path) -> str | None:
    """Return the SHA-256 of a snapshot's file if the cache tells it: large files' blobs are called by theirs."""
    blob = path.resolve()
    return blob.name if path.is_symlink() and blob.parent.name == "blobs" and SHA256.fullmatch(blob.name) else None


def _main(entry: Path) -> Path | None:
    try:
        commit = (entry / "refs" / "main").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = entry / "snapshots" / commit
    return snapshot if COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def _newest(entry: Path) -> Path | None:
    try:
        found = [
            (snapshot.stat().st_mtime_ns, snapshot)
            for snapshot in (entry / "snapshots").iterdir()
            if COMMIT.fullmatch(snapshot.name) and snapshot.is_dir()
        ]
    except OSError:
        return None
    return max(found, default=(0, None))[1]
