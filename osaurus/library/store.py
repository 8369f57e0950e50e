"""The models on this machine's disk: folders `organisation/repository`, and what the Hugging Face cache holds.

Everything here blocks on the disk: on the reactor it is run on the second thread pool. A folder that is no usable
model is passed over and logged once with the reason; nothing in it can harm the others.

Nobody has to be told of a new folder, or of one that has changed: whoever asks has the folders listed, and their files'
identities compared with what was seen before; only what differs is read. That costs about 0.1 ms a model. Rejected:
notifications by the operating system, which differ between systems, do not reach network disks, and say nothing of
what links lead to.
"""

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from attrs import define, evolve, field
from twisted.logger import Logger

from ..chat import Forbidden, InstalledModel, InvalidRequest, ModelNotFound
from .file_digests import FileDigests
from .folder import UnusableFolder, describe, model_files
from .hub_cache import HubCache, told_digest
from .names import FOUNDATION_NAMES, SHORT_NAMES, in_full, model_id, untagged

log = Logger()

# What folders are called that are to be gone, and that are to be a model.
DELETING = ".deleting-"
COPYING = ".copying-"
# In seconds: no file of a copy takes so long.
ABANDONED = 86400

# Of a copy, as the hub has them; neither part may begin with a dot.
DESTINATION = re.compile(r"(?:([A-Za-z0-9][A-Za-z0-9._-]{0,95})/)?([A-Za-z0-9][A-Za-z0-9._-]{0,95})")


@define
class ModelStore:
    """The models below one folder, which are ours, and those of a Hugging Face cache, which are not.

    `foundation` tells of the operating system's own model, where it has one.
    """

    folder: Path
    cache: HubCache | None = None
    foundation: Callable[[], InstalledModel | None] = lambda: None
    digests: FileDigests = field(factory=FileDigests)
    _described: dict[Path, tuple[object, InstalledModel | UnusableFolder]] = field(factory=dict, init=False)

    def models(self) -> list[InstalledModel]:
        """Return every usable model: the operating system's, ours, then those of the cache, each by name.

        The first of a name has it as its id, the others have their whole repository's. So a model that comes changes
        the id of another only if it stands before it. A repository that is here twice is told once, ours.
        """
        foundation = self.foundation()
        models: list[InstalledModel] = [] if foundation is None else [foundation]
        ids: set[str] = {model.id for model in models}
        repositories: set[str] = set()
        found = self._folders()
        gone = self._described.keys() - {folder for _, folder in found}
        for folder in gone:
            self._described.pop(folder, None)
        for repository, folder in found:
            if repository.lower() in repositories and not self._is_own(folder):
                continue
            model = self._describe(folder, repository)
            if model is not None:
                if model.id in ids:
                    model = evolve(model, id=repository.lower())
                ids.add(model.id)
                repositories.add(repository.lower())
                models.append(model)
        return models

    def find(self, name: str) -> InstalledModel:
        """Return the model of that name: its id, its repository, or a short name; in any case, `:latest` or not.

        Raises ModelNotFound.
        """
        plain, full = untagged(name).lower(), in_full(name).lower()
        models = self.models()
        if plain in FOUNDATION_NAMES and models and models[0].system:
            return models[0]
        # What somebody has called `mistral` goes before what that usually stands for.
        for wanted in (plain, full):
            for names in (_exact_names, _bare_names):
                for model in models:
                    if wanted in names(model):
                        return model
        hint = "" if models else f". No model is installed: `osaurus pull {next(iter(SHORT_NAMES))}` gets one."
        raise ModelNotFound(f"Model not found: {name}{self._why_not({plain, full}) or hint}", param="model")

    def _why_not(self, wanted: set[str]) -> str:
        """Return why a folder of such a name is no model, to be added to a sentence; empty if there is none."""
        for repository, folder in self._folders():
            if not wanted.isdisjoint((repository.lower(), model_id(repository))):
                _, reason = self._described.get(folder, (None, None))
                if isinstance(reason, UnusableFolder):
                    return f". {repository} is there, but cannot be used: {reason}"
        return ""

    def digest(self, model: InstalledModel) -> str:
        """Return the SHA-256 of a model: of its files' names and digests, sorted by name.

        The first call reads every file that `digests` does not know. Of the cache's large files none is read: hundreds
        of gigabytes may be there, under names that are their digests. What has no files has that of its name.
        """
        whole = hashlib.sha256()
        if model.system:
            whole.update(model.id.encode())
            return f"sha256:{whole.hexdigest()}"
        for path in model_files(model.folder):
            whole.update(os.fsencode(path.name) + f"\0{self._file_digest(path)}\n".encode())
        return f"sha256:{whole.hexdigest()}"

    def _file_digest(self, path: Path) -> str:
        if not self._is_own(path) and (told := told_digest(path)) is not None:
            return told
        return self.digests.of(path)

    def copy(self, model: InstalledModel, destination: str) -> None:
        """Have a model under another name as well, `organisation/repository` or a bare name, which becomes `local/…`.

        The copy shares the files' content where the disk can. Raises InvalidRequest, Forbidden, OSError.
        """
        _check_folder(model)
        match = DESTINATION.fullmatch(destination.removesuffix(":latest"))
        if match is None:
            raise InvalidRequest(
                "destination: must be a name such as my-model or organisation/my-model, of letters, digits, - _ and .",
                param="destination",
            )
        if match[2].lower() in FOUNDATION_NAMES:
            raise InvalidRequest(
                f"destination: {match[2]} is a name of Apple's on-device model, wherever that is", param="destination"
            )
        target = self.folder / (match[1] or "local") / match[2]
        # A bare name is for one model only.
        for name in (match[2], f"{target.parent.name}/{target.name}"):
            with suppress(ModelNotFound):
                known = self.find(name)
                raise InvalidRequest(f"destination: {known.repository} has this name already", param="destination")
        self._check_own(target.parent)
        if os.path.lexists(target):
            raise InvalidRequest(
                f"destination: {target.parent.name}/{target.name} exists but is no usable model; move it away",
                param="destination",
            )
        target.parent.mkdir(exist_ok=True)
        unfinished = target.with_name(f"{COPYING}{secrets.token_hex(8)}")
        unfinished.mkdir()
        try:
            for path in model_files(model.folder):
                try:
                    (unfinished / path.name).hardlink_to(path.resolve())
                except OSError:
                    shutil.copy2(path, unfinished / path.name)
            unfinished.rename(target)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def take_away(self, model: InstalledModel) -> Path:
        """Have nobody find a model any more; return where its files are, to be removed.

        Raises Forbidden if its folder is not one of ours, OSError.
        """
        _check_folder(model)
        self._check_own(model.folder.parent)
        self._check_own(model.folder)
        doomed = model.folder.with_name(f"{DELETING}{secrets.token_hex(8)}")
        model.folder.rename(doomed)
        return doomed

    def remove(self, doomed: Path) -> None:
        """Remove what was taken away, and what an earlier attempt left of others. Raises OSError."""
        _sweep(doomed.parent)
        # Once more for the reason, should something of it be left.
        with suppress(FileNotFoundError):
            shutil.rmtree(doomed)

    def sweep(self) -> None:
        """Remove what deletions and copies that were cut short have left."""
        for organisation in _entries(self.folder):
            if not organisation.is_symlink():
                _sweep(organisation)

    def _is_own(self, folder: Path) -> bool:
        return folder.is_relative_to(self.folder)

    def _check_own(self, folder: Path) -> None:
        if not self._is_own(folder):
            raise Forbidden("The model is in the Hugging Face cache, which is not ours alone; it is left there")
        if folder.is_symlink():
            raise Forbidden(f"{folder.relative_to(self.folder)} is a link out of the models folder; it is left alone")

    def stop(self) -> None:
        """End what takes long; from any thread."""
        self.digests.stop()

    def _folders(self) -> list[tuple[str, Path]]:
        """Return what may be models, with their repositories' names."""
        # Names that begin with a dot are downloads under way.
        own = [
            (f"{organisation.name}/{folder.name}", folder)
            for organisation in _entries(self.folder)
            for folder in _entries(organisation)
            if not organisation.name.startswith(".") and not folder.name.startswith(".")
        ]
        shared = [] if self.cache is None else self.cache.snapshots()
        return [
            (repository, folder)
            for found in (own, shared)
            for repository, folder in sorted(found, key=_by_name)
            if folder.is_dir() and _exists(folder / "config.json")
        ]

    def _describe(self, folder: Path, repository: str) -> InstalledModel | None:
        try:
            identity = [_identity(path) for path in model_files(folder)]
        except OSError as error:
            identity = [(str(error),)]
        known = self._described.get(folder)
        if known is None or known[0] != identity:
            try:
                description: InstalledModel | UnusableFolder = describe(folder, repository)
            except (UnusableFolder, OSError) as error:
                description = UnusableFolder(str(error))
                # The cache holds models of all kinds, which nobody put there for us.
                (log.warn if self._is_own(folder) else log.info)(
                    "{folder} is no usable model: {error}", folder=str(folder), error=error
                )
            known = self._described[folder] = (identity, description)
        return None if isinstance(known[1], UnusableFolder) else known[1]


def _check_folder(model: InstalledModel) -> None:
    if model.system:
        raise Forbidden(f"{model.id} is part of the operating system: it can be neither copied nor deleted")


def _by_name(found: tuple[str, Path]) -> tuple[str, str, Path]:
    repository, folder = found
    organisation, _, name = repository.lower().rpartition("/")
    return (name, organisation, folder)


def _exact_names(model: InstalledModel) -> tuple[str, ...]:
    return (model.id, model.repository.lower())


def _bare_names(model: InstalledModel) -> tuple[str, ...]:
    return (model.repository.lower().rpartition("/")[2],)


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing if it is none, or gone, as one may be at any moment."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _sweep(organisation: Path) -> None:
    """Remove what deletions left, and copies that nobody makes any more; the folder too if that was all."""
    for path in _entries(organisation):
        with suppress(OSError):
            begun = path.name.startswith(COPYING) and time.time() - path.stat().st_mtime > ABANDONED
            if begun or path.name.startswith(DELETING):
                shutil.rmtree(path, ignore_errors=True)
                organisation.rmdir()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # Somebody's folder that we may not read: looking into it says so, once.
        return True


def _identity(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return (path.name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
