"""What a route is: a path, its method, who answers, and what there is to tell about it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

PLAIN = "text/plain"
JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"

PARAMETER = re.compile(r"<path:(\w+)>")


@frozen
class Route:
    """A path in Klein's spelling, with a slash at its end.

    `prefix` is the one under which clients usually ask for it. `body` is the class that reads the body, `answers` the
    types of content that come back, `also` statuses with another meaning than an error of the API's.
    """

    method: str
    path: str
    answer: Callable[..., Any]
    prefix: str = ""
    body: type[Any] | None = None
    answers: tuple[str, ...] = (JSON,)
    also: Mapping[str, str] = field(factory=dict)

    @property
    def template(self) -> str:
        """The path as OpenAPI spells it."""
        return (self.prefix + PARAMETER.sub(r"{\1}", self.path)).rstrip("/") or "/"
