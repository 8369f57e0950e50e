"""Where settings come from: the file, the variables, the options; and what of it is not understood.

A setting has four spellings, of rising precedence: its default, its key in a TOML file (`max_body`), a variable of the
environment (`OSU_MAX_BODY`), an option of the command line (`--max-body`). The file is the one that is named
(`--config`, `OSU_CONFIG`), else ~/.osaurus/config.toml, if there is one: a server that is started at boot has nobody to
name it.

A path that is relative is so to where it is said: in the file to the file's folder, in a variable or an option to the
folder in which the server was started. Where the process is by now says nothing: twistd goes elsewhere (`--rundir`),
and the settings are read again.

A key of the file or an option that is unknown is refused. A variable is only told of: the environment is shared with
programs that may have an `OSU_` of their own.
"""

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from .kinds import expanded, folder_or_none
from .settings import LISTS, SECRETS, Setting, Settings, table

# Variables of the `osaurus` command and of the tests.
OTHER_VARIABLES = ("OSU_CONFIG", "OSU_HOST", "OSU_API_KEY")
OTHER_PREFIX = "OSU_TEST_"

Text = str | list[str]


class BadSetting(Exception):
    """A setting is unknown or has a value that it cannot have; the message says which, where, and what would do."""


@frozen
class Given:
    """What somebody set: in a `file`, by a `variable` or by an `option`, and how that is spelt there.

    Relative paths are so to `folder`.
    """

    setting: Setting
    source: str
    spelling: str
    text: Text
    folder: Path

    def read(self) -> Any:
        """Return the value. Raises BadSetting."""
        name, text = self.setting.name, self.text
        if isinstance(text, list) and (name == "listen" or not text):
            return tuple(text)
        kind, whole = self.setting.kind, ",".join(text) if isinstance(text, list) else str(text)
        try:
            return kind.read(kind.at(whole, self.folder))
        except ValueError as error:
            raise _bad(self.setting, self.spelling, error, text) from error


@frozen
class Found:
    """The settings in force, what those that are not at their default were given by, and the file that was read."""

    settings: Settings
    given: Mapping[str, Given]
    file: Path | None


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except OSError:
        # It has been removed. That is told of where a path is relative to it.
        return Path()


@frozen
class Sources:
    """What settings are gathered from, which can be done again: the file may have changed meanwhile.

    `options` holds what was given on the command line, by name, and perhaps `config`, a TOML file; `folder` is where it
    was given.
    """

    options: Mapping[str, Text]
    environ: Mapping[str, str]
    folder: Path = field(factory=_current_folder)

    def find(self) -> Found:
        """Gather the settings, such that a server can begin with them; reads files. Raises BadSetting."""
        found = self.gather()
        refuse_without_effect(found)
        refuse_open_doors(found.settings)
        return found

    def gather(self) -> Found:
        """Gather the settings, whatever they come to; reads files. Raises BadSetting."""
        file = self._file()
        given: dict[str, Given] = {}
        values: dict[str, Any] = {}
        for each in [*(_in_file(file) if file else ()), *self._variables(), *self._options()]:
            values[each.setting.name] = each.read()
            given[each.setting.name] = each
        return Found(Settings(**values), given, file)

    def unknown_variables(self) -> list[str]:
        """Return what there is to say of each variable that looks like a setting and is none."""
        known = [setting.variable for setting in table()]
        unknown = (
            name
            for name in sorted(self.environ)
            if name.startswith("OSU_") and not name.startswith(OTHER_PREFIX) and name not in (*known, *OTHER_VARIABLES)
        )
        return [f"{name} is no setting and has no effect{did_you_mean(name, known, 'OSU_')}" for name in unknown]

    def _file(self) -> Path | None:
        named = self.options.get("config") or self.environ.get("OSU_CONFIG")
        if named:
            try:
                return (self.folder / expanded(str(named))).absolute()
            except ValueError as error:
                raise BadSetting(f"The configuration file {named} cannot be read: {error}") from error
        usual = default_file()
        try:
            return usual if usual.exists() else None
        except OSError as error:
            raise BadSetting(f"The configuration file {usual} cannot be looked for: {error}") from error

    def _variables(self) -> Iterator[Given]:
        for setting in table():
            if text := self.environ.get(setting.variable):
                yield Given(setting, "variable", setting.variable, text, self.folder)

    def _options(self) -> Iterator[Given]:
        for setting in table():
            if setting.name in self.options:
                yield Given(setting, "option", setting.option, self.options[setting.name], self.folder)


def default_file() -> Path:
    """Return the file that is read if none is named."""
    return Path.home() / ".osaurus" / "config.toml"


def refuse_without_effect(found: Found) -> None:
    """Raise BadSetting if endpoints set the port aside that an option gives, and are none of an option themselves.

    A variable may be there for the commands that ask a server.
    """
    listen = found.given.get("listen")
    if listen is None or not found.settings.listen:
        return
    for name in ("port", "expose"):
        given = found.given.get(name)
        if given is not None and given.source == "option" != listen.source:
            raise BadSetting(
                f"{given.spelling} would have no effect beside {listen.spelling}, which says all of where to listen: "
                "leave one of them out"
            )


def refuse_open_doors(settings: Settings) -> None:
    """Raise BadSetting if other machines could use the server, and nobody has said that they may."""
    if settings.exposed and not settings.api_keys and not settings.no_auth:
        raise BadSetting(
            f"Other machines could reach {settings.exposed[0]} and use this one: set keys (OSU_API_KEYS), "
            "or say that nobody needs one (--no-auth)"
        )


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the end of a sentence about an unknown name: the nearest of those that are known, if one is near."""
    bare = {each.removeprefix(prefix): each for each in known}
    near = difflib.get_close_matches(name.removeprefix(prefix), bare, 1)
    return f"; did you mean {bare[near[0]]}?" if near else ""


def _in_file(path: Path) -> list[Given]:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadSetting(f"The configuration file {path} cannot be read: {error}") from error
    known = {setting.name: setting for setting in table()}
    for name in content:
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
            raise BadSetting(f"{path} sets {name}, which is no setting{hint}")
    return [_given(known[name], value, path) for name, value in content.items()]


def _given(setting: Setting, value: Any, path: Path) -> Given:
    """Return what a key of the file sets, as if it had been written as text."""
    spelling = f"{setting.name} in {path}"
    text: Text = str(value)
    if isinstance(value, list) and setting.name in LISTS:
        if not all(isinstance(entry, str) for entry in value):
            raise _bad(setting, spelling, "must be a list of texts in quotes", value)
        text = value
    elif setting.kind is folder_or_none and value is False:
        text = "off"
    elif setting.kind.free and not isinstance(value, str):
        raise _bad(setting, spelling, "must be text in quotes", value)
    return Given(setting, "file", spelling, text, path.parent)


def _bad(setting: Setting, spelling: str, reason: object, value: object) -> BadSetting:
    said = "what was given" if setting.name in SECRETS else repr(value)
    return BadSetting(f"{spelling} {reason}, not {said}")
