"""What a route is: a path, its method, who answers, and what there is to tell about it."""

from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"


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
