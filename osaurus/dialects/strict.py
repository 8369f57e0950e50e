"""From a request's body to attrs classes, strictly, with errors that name the field.

cattrs' defaults coerce (`"false"` to True, 3.7 to 3); here a value has the type that is asked for or is refused. null
means absent, unknown keys are ignored, and whatever Python's parser would let through that is not JSON, or that cannot
be encoded again (lone surrogates), is refused.
"""

import json
import math
import sys
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, NoReturn, TypeVar, Union, get_args, get_origin

import attrs
from cattrs import BaseValidationError, Converter, transform_error
from cattrs.errors import IterableValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn

from ..chat import InvalidRequest
from .json_size import check_size

# Characters of a client's value that an error repeats.
MOST_REPEATED = 64

T = TypeVar("T")


@attrs.frozen
class Between:
    """Bounds of a number, both included; for use in Annotated."""

    least: float
    most: float

    def check(self, value: float) -> None:
        """Raise ValueError unless the value is within the bounds."""
        if not self.least <= value <= self.most:
            raise ValueError(f"must be between {self.least} and {self.most}, not {cut(value)}")


@attrs.frozen
class Items:
    """Bounds of a list's or a string's length, both included; for use in Annotated."""

    least: int
    most: int

    def check(self, value: list[Any] | str) -> None:
        """Raise ValueError unless the length is within the bounds."""
        what = "characters" if isinstance(value, str) else "entries"
        if not self.least <= len(value) <= self.most:
            raise ValueError(f"must have between {self.least} and {self.most} {what}, not {len(value)}")


@attrs.frozen
class OneOf:
    """The strings that there may be; for use in Annotated."""

    known: tuple[str, ...]

    def check(self, value: str) -> None:
        """Raise ValueError unless the value is one of them."""
        if value not in self.known:
            raise ValueError(f"must be one of {', '.join(self.known)}, not {cut(repr(value))}")


@attrs.frozen(eq=False)  # annotations are hashed, and values may be lists
class Unserved:
    """Marks, in Annotated, a field that would change the answer and is not served; `neutral` values ask for nothing."""

    neutral: tuple[Any, ...] = ()

    def check(self, value: object) -> None:
        """Raise ValueError unless the value asks for nothing."""
        if value not in self.neutral:
            raise ValueError("is not supported by this server yet; leave it out")


def cut(value: object) -> str:
    """Return what an error says of a client's value, which may be of any length."""
    text = str(value)
    return text if len(text) <= MOST_REPEATED else f"{text[:MOST_REPEATED]}…"


def parse(cls: type[T], body: bytes) -> T:
    """Return the body as an instance of an attrs class. Raises InvalidRequest naming the first field at fault."""
    try:
        check_size(body)
    except ValueError as error:
        raise InvalidRequest(f"The body {error}") from error
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not JSON: {error}") from error
    except ValueError as error:
        # What Python says of it is for whoever runs it.
        most = sys.get_int_max_str_digits()
        raise InvalidRequest(f"The body holds a whole number of more than {most} digits") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {_json_type(value)}")
    try:
        return _converter.structure(value, cls)
    except BaseValidationError as error:
        message, _, path = transform_error(error, path="", format_exception=_say)[0].rpartition(" @ ")
        path = path.removeprefix(".")
        raise InvalidRequest(f"{path}: {message}" if path else message, param=path or None) from error


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"The body is not JSON: {name} is no number there")


def _say(error: BaseException, type_: type | None) -> str:
    if isinstance(error, KeyError):
        return "is required"
    # Ours are ValueErrors; whatever else cattrs may raise is about the type.
    return str(error) if isinstance(error, ValueError) else f"has the wrong type; expected {type_}"


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _wrong(expected: str, value: object) -> ValueError:
    return ValueError(f"must be {expected}, not {_json_type(value)}")


def _boolean(value: object, _: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong("a boolean", value)
    return value


def _integer(value: object, _: object) -> int:
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"must be a whole number, not {value}")
        # JSON has one kind of number, and some clients write every one with a point.
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong("a whole number", value)
    return value


def _number(value: object, _: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _wrong("a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("is too large a number")
    return number


def _string(value: object, _: object) -> str:
    if not isinstance(value, str):
        raise _wrong("a string", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("holds half a surrogate pair, which is no character") from error
    return value


def _object(value: object, _: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong("an object", value)
    return value


def _attrs_class(cls: type[Any]) -> Callable[[object, object], Any]:
    structure = make_dict_structure_fn(cls, _converter)

    def hook(value: object, type_: object) -> Any:
        present = {key: field for key, field in _object(value, type_).items() if field is not None}
        return structure(present, cls)

    return hook


def _list(cls: Any) -> Callable[[object, object], Any]:
    [member] = get_args(cls)

    def hook(value: object, _: object) -> Any:
        if not isinstance(value, list):
            raise _wrong("an array", value)
        return [_entry(index, entry, member) for index, entry in enumerate(value)]

    return hook


def _entry(index: int, entry: object, member: Any) -> Any:
    """Structure an entry of an array. cattrs would go on after the first bad one, and keep an exception for each."""
    try:
        return _converter.structure(entry, member)
    except Exception as error:  # noqa: BLE001 - cattrs' own kinds and ours alike become part of the path
        error.add_note(IterableValidationNote(f"entry {index}", index, member))
        raise IterableValidationError("a bad entry", [error], member) from None


def _is_list(cls: Any) -> bool:
    return get_origin(cls) is list


def _is_union(cls: Any) -> bool:
    return get_origin(cls) in (Union, UnionType)


def _union(cls: Any) -> Callable[[object, object], Any]:
    """Choose between a list and something else by the JSON type of the value."""
    members = [member for member in get_args(cls) if member is not type(None)]
    lists = [member for member in members if _is_list(get_args(member)[0] if _is_bounded(member) else member)]
    others = [member for member in members if member not in lists]
    if len(lists) > 1 or len(others) > 1:
        raise TypeError(f"{cls} cannot be told apart by JSON type")

    def hook(value: object, _: object) -> Any:
        as_list = bool(lists) and (isinstance(value, list) or not others)
        return _converter.structure(value, (lists if as_list else others)[0])

    return hook


BOUNDS = (Between, Items, OneOf, Unserved)


def _is_bounded(cls: Any) -> bool:
    return get_origin(cls) is Annotated and any(isinstance(bound, BOUNDS) for bound in get_args(cls)[1:])


def _bounded(cls: Any) -> Callable[[object, object], Any]:
    inner, *bounds = get_args(cls)

    def hook(value: object, _: object) -> Any:
        # Lengths come first: what is too long is not worth looking into.
        for bound in bounds:
            if isinstance(bound, Items) and isinstance(value, (list, str)):
                bound.check(value)
        result = _converter.structure(value, inner)
        for bound in bounds:
            if isinstance(bound, (Between, OneOf, Unserved)):
                bound.check(result)
        return result

    return hook


_converter = Converter()
_converter.register_structure_hook(bool, _boolean)
_converter.register_structure_hook(int, _integer)
_converter.register_structure_hook(float, _number)
_converter.register_structure_hook(str, _string)
_converter.register_structure_hook_func(lambda cls: cls == dict[str, Any], _object)
# The factory that was registered last is asked first.
_converter.register_structure_hook_factory(attrs.has, _attrs_class)
_converter.register_structure_hook_factory(_is_list, _list)
_converter.register_structure_hook_factory(_is_union, _union)
_converter.register_structure_hook_factory(_is_bounded, _bounded)
