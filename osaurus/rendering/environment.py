"""The Jinja environment of chat templates: a sandbox with what Transformers has in it, for which they are written."""

import json
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class WritesTooMuch(Exception):
    """What a template writes exceeds the bound that was given."""


def render(template: str, variables: dict[str, Any], most: int) -> str:
    """Render a chat template, to so many characters at most.

    Raises WritesTooMuch as soon as it is one more, TemplateError, and whatever templates raise by mistake.
    """
    pieces: list[str] = []
    length = 0
    for piece in _compiled(template).generate(variables):
        length += len(piece)
        if length > most:
            raise WritesTooMuch
        pieces.append(piece)
    return "".join(pieces)


class _Generation(Extension):
    """`{% generation %}`, with which templates mark what is trained on. What is set within is not seen outside."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Dictionary:
    """Makes what the type `dict` does, and has none of the type's other attributes."""

    def __call__(self, /, *given: Any, **members: Any) -> dict[Any, Any]:
        return dict(*given, **members)

    def fromkeys(self, *given: Any) -> dict[Any, Any]:
        return dict.fromkeys(*given)


class _Namespace(Namespace):
    """Jinja's, without names that begin with an underscore: with those a way out of the sandbox begins."""

    def __init__(self, /, *given: Any, **members: Any) -> None:
        made = dict(*given, **members)
        for name in made:
            _refuse_private(name)
        super().__init__(made)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no {name!r}, which begins with an underscore")


def _refuse(reason: object) -> NoReturn:
    raise TemplateError(str(reason))


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter writes < and > as escapes, for web pages.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
)
_ENVIRONMENT.filters["tojson"] = _to_json
_ENVIRONMENT.globals.update(raise_exception=_refuse, strftime_now=_now, dict=_Dictionary(), namespace=_Namespace)


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    return _ENVIRONMENT.from_string(template)
