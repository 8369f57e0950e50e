"""A conversation with a model: what was said, what is set, and the request for the next answer."""

import json
import re
from collections.abc import Callable
from typing import Any

from attrs import define, field

QUOTES = '"""'
# Where three quotation marks begin a text that may have several lines.
BEGUN = re.compile(r'\s*(?:/set\s+system\s+)?"""')


class BadParameter(Exception):
    """There is no such parameter, or it cannot have this value; the message says what would do."""


# As Ollama's options have them, with what reads each.
PARAMETERS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "seed": int,
    "num_predict": int,
    "num_ctx": int,
    "repeat_penalty": float,
    "repeat_last_n": int,
    "presence_penalty": float,
    "frequency_penalty": float,
    "stop": str,
}


@define
class Conversation:
    """What was said so far with a model, and how it is to answer.

    `think` None leaves it to the model; a text is how much. `format` is "json" or a JSON Schema that answers must keep
    to. `options` are Ollama's.
    """

    model: str
    system: str = ""
    think: bool | str | None = None
    keep_alive: str | None = None
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] = field(factory=dict)
    turns: list[dict[str, str]] = field(factory=list)

    def set_parameter(self, name: str, texts: list[str]) -> None:
        """Set a parameter; `stop` takes several texts. Raises BadParameter."""
        if name not in PARAMETERS:
            raise BadParameter(f"There is no parameter {name!r}; there are {', '.join(PARAMETERS)}")
        if not texts or (len(texts) > 1 and name != "stop"):
            raise BadParameter(f"{name} needs a value")
        try:
            values = [PARAMETERS[name](text) for text in texts]
        except ValueError as error:
            kind = "a whole number" if PARAMETERS[name] is int else "a number"
            raise BadParameter(f"{name} must be {kind}, not {' '.join(texts)!r}") from error
        self.options[name] = values if name == "stop" else values[0]

    def set_format(self, text: str) -> None:
        """Have answers keep to a format: `json`, or a JSON Schema as text. Raises BadParameter."""
        if text == "json":
            self.format = text
            return
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadParameter(f"A format must be json or a JSON Schema; this is neither: {error}") from error
        if not isinstance(schema, dict):
            raise BadParameter("A format must be json or a JSON Schema, which is an object")
        self.format = schema

    def request(self, text: str, stream: bool = True) -> dict[str, Any]:
        """Return the body that asks for the answer to a text."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, *self.turns, {"role": "user", "content": text}],
            "stream": stream,
            "options": self.options,
        }
        chosen = {"think": self.think, "keep_alive": self.keep_alive, "format": self.format}
        return body | {name: value for name, value in chosen.items() if value is not None}

    def load_request(self) -> dict[str, Any]:
        """Return the body that has the model loaded."""
        body: dict[str, Any] = {"model": self.model, "messages": [], "stream": False}
        return body if self.keep_alive is None else body | {"keep_alive": self.keep_alive}

    def heard(self, text: str, answer: str) -> None:
        """Remember a text and its answer, as far as that came; without one the text was not said either."""
        if answer:
            self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def clear(self) -> None:
        """Forget what was said."""
        self.turns.clear()


def is_unfinished(text: str) -> bool:
    """Tell whether three quotation marks have begun a text that none have ended."""
    begun = BEGUN.match(text)
    return begun is not None and not text[begun.end() :].rstrip().endswith(QUOTES)


def unquoted(text: str) -> str:
    """Return a text without the quotation marks around it, if there are any."""
    stripped = text.strip()
    if len(stripped) >= 2 * len(QUOTES) and stripped.startswith(QUOTES) and stripped.endswith(QUOTES):
        return stripped[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text
