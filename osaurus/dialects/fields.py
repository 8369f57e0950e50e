"""What the chat bodies of both dialects have in common: types of fields, and what is refused and how."""

from collections.abc import Iterable
from typing import Annotated, Any, NoReturn

from attrs import frozen

from ..chat import InvalidRequest, Message, Role
from .strict import Between, Items

ModelName = Annotated[str, Items(1, 512)]
Temperature = Annotated[float, Between(0, 2)]
Fraction = Annotated[float, Between(0, 1)]
Seed = Annotated[int, Between(-(2**63), 2**63 - 1)]
StopString = Annotated[str, Items(0, 256)]
StopList = Annotated[list[StopString], Items(0, 16)]

DEFAULT_MAX_TOKENS = 2048

ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@frozen(kw_only=True)
class Part:
    """One part of a message's content."""

    type: str
    text: str | None = None


Content = str | Annotated[list[Part], Items(0, 1000)]
MOST_MESSAGES = 10_000


def message(index: int, role: str, content: str | list[Part] | None) -> Message:
    """Return a message of the conversation. Raises InvalidRequest for roles and parts that are not served."""
    at = f"messages[{index}]"
    if role not in ROLES:
        refuse(f"{at}.role", f"must be one of {', '.join(ROLES)}, not {role!r}")
    if isinstance(content, list):
        for number, part in enumerate(content):
            if part.type != "text":
                refuse(f"{at}.content[{number}].type", f"only text is served, not {part.type!r}")
            if part.text is None:
                refuse(f"{at}.content[{number}].text", "is required")
        content = "".join(part.text or "" for part in content)
    if content is None and role != "assistant":
        refuse(f"{at}.content", "is required")
    return Message(ROLES[role], content or "")


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """Return the stop strings of a field that holds one or several; an empty one stops nothing."""
    return tuple(filter(None, [stop] if isinstance(stop, str) else stop or []))


def refuse(param: str, reason: str) -> NoReturn:
    """Raise InvalidRequest for a field."""
    raise InvalidRequest(f"{param}: {reason}", param=param)


def refuse_unserved(given: dict[str, Any], neutral: dict[str, Iterable[object]]) -> None:
    """Raise InvalidRequest for a field that changes the answer and is not served yet.

    `given` are the request's fields, `neutral` those that are not served with the values that ask for nothing.
    """
    for field, values in neutral.items():
        value = given.get(field)
        if value is not None and value not in values:
            refuse(field, "is not supported by this server yet; leave it out")
