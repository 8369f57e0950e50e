"""Events of twisted.logger as lines: for people, or JSON for programs.

Much of what is logged comes from the network: paths, names, what a model was asked. None of it may make a line of its
own, or steer the terminal it is read on. So in both forms whatever is not printable is escaped, wherever it comes from,
and an event is one line; but for a traceback for people, whose lines begin with a tab, so that none passes for another
event.

What an event knows beside its text stands behind it for people, as `name=value`, and is a member of the object in JSON.
Nobody else's events are asked for more than their text: those of Twisted carry live objects.

An event's text is its own affair, but for one thing: where it is made of words that a client chose, one of them could
pass for several, and for a field. `log_words` names those values; for people they are spelt like any field's.
"""

import json
import re
from datetime import UTC, datetime
from typing import Any

from twisted.logger import LogEvent, formatEvent, formatTime

OURS = "osaurus"
# Of what was logged by `twisted.python.log`.
LEGACY = "log_legacy"
# A value that stands in a line for people as it is.
PLAIN_WORD = re.compile(r"[^\s\"=]+")


def human_line(event: LogEvent) -> str:
    """Return an event as people read it: a line, and its traceback if it has one; empty if it says nothing."""
    text, traceback = _text(event), _traceback(event)
    if not text and not traceback:
        return ""
    named = _named(event)
    behind = [f"{name}={_spelled(value)}" for name, value in _own(event).items() if name not in named]
    words = {name: _spelled(_plain(event[name])) for name in event.get("log_words", ())}
    text = _text({**event, **words}) if words else text
    head = f"{formatTime(event.get('log_time'))} [{event.get('log_namespace', '-')}#{_level(event)}]"
    lines = [" ".join([head, _printable(text), *behind])]
    lines += ["\t" + _printable(line) for line in traceback.splitlines()]
    return "\n".join(lines) + "\n"


def json_line(event: LogEvent) -> str:
    """Return an event as a JSON object on one line, in ASCII; empty if it says nothing."""
    text, traceback = _text(event), _traceback(event)
    if not text and not traceback:
        return ""
    time = datetime.fromtimestamp(event.get("log_time", 0.0), UTC)
    content: dict[str, Any] = {
        "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": _level(event),
        "namespace": event.get("log_namespace", "-"),
        "message": text,
    }
    content |= {name: value for name, value in _own(event).items() if name not in content}
    if traceback:
        content["traceback"] = traceback
    return json.dumps(content) + "\n"


def _level(event: LogEvent) -> str:
    level = event.get("log_level")
    return "-" if level is None else str(level.name)


def _is_legacy_failure(event: LogEvent) -> bool:
    return event.get("log_namespace") == LEGACY and "failure" in event


def _text(event: LogEvent) -> str:
    if _is_legacy_failure(event):
        # Its text is its traceback, which is told apart.
        return str(event.get("why") or "Unhandled error")
    return formatEvent(event)


def _traceback(event: LogEvent) -> str:
    failure = event.get("failure") if _is_legacy_failure(event) else event.get("log_failure")
    if failure is None:
        return ""
    try:
        return str(failure.getTraceback()).rstrip()
    except Exception as error:  # noqa: BLE001 - an exception's own text may raise what it likes
        return f"There is no traceback: {type(error).__name__}"


def _own(event: LogEvent) -> dict[str, Any]:
    """Return what one of our events knows, as plain values."""
    if not str(event.get("log_namespace", "")).startswith(OURS):
        return {}
    return {name: _plain(value) for name, value in event.items() if value is not None and not name.startswith("log_")}


def _named(event: LogEvent) -> set[str]:
    """Return what of that is in its text anyway."""
    return {name for name in _own(event) if re.search(rf"{{{name}\b", event.get("log_format") or "")}


def _plain(value: object) -> Any:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value)


def _spelled(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if not isinstance(value, str) or PLAIN_WORD.fullmatch(text):
        return _printable(text)
    return _printable(json.dumps(text, ensure_ascii=False))


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
