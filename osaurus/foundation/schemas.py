"""From JSON Schema to what Apple's SDK takes: guides for an answer, generated classes for a tool's arguments.

The SDK reads an answer's schema as JSON, but in a dialect of its own: every object has a title, says that it has no
other properties, and in which order they come. The arguments of a tool it takes from a Python class only. So a class is
made of the schema, as far as classes of the SDK go; what goes further is refused, by name, before anything is asked of
the model. Rejected: describing tools in the instructions, and looking for calls in the text, which the model was not
trained for.
"""

import json
from keyword import iskeyword
from typing import Any, NoReturn, Optional

from ..chat import InvalidRequest, JsonFormat, Tool

MOST_DEPTH = 16
MOST_PROPERTIES = 256

PLAIN = {"string": str, "integer": int, "number": float, "boolean": bool}
# What only describes; anything else restricts, and is refused unless it is known here.
DESCRIBING = {"description", "title", "default", "examples", "$schema", "additionalProperties", "x-order"}


def answer_schema(wanted: JsonFormat) -> dict[str, Any]:
    """Return the schema of an answer in the SDK's dialect. Raises InvalidRequest unless it is an object's."""
    schema = json.loads(wanted.schema)
    if not isinstance(schema, dict) or schema.get("type") != "object" or not schema.get("properties"):
        _refuse(wanted.asked_by, "Apple's on-device model needs a JSON Schema of an object with properties")
    told: dict[str, Any] = _in_dialect(schema, "Answer", wanted.asked_by, MOST_DEPTH)
    return told


def _in_dialect(schema: Any, title: str, asked_by: str, depth: int) -> Any:
    if depth == 0:
        _refuse(asked_by, f"is nested deeper than {MOST_DEPTH} levels")
    if isinstance(schema, list):
        return [_in_dialect(one, f"{title}{place}", asked_by, depth - 1) for place, one in enumerate(schema)]
    if not isinstance(schema, dict):
        return schema
    told = {
        key: (
            {name: _in_dialect(one, f"{title}_{name}", asked_by, depth - 1) for name, one in value.items()}
            if key in ("properties", "$defs") and isinstance(value, dict)
            else _in_dialect(value, f"{title}_{key}", asked_by, depth - 1)
            if key in ("items", "anyOf")
            else value
        )
        for key, value in schema.items()
    }
    if told.get("type") == "object":
        usual = {"title": title, "additionalProperties": False, "x-order": list(told.get("properties", {}))}
        told = usual | told
    return told


def arguments_schema(sdk: Any, tool: Tool) -> Any:
    """Return the GenerationSchema of a tool's arguments. Raises InvalidRequest."""
    schema = json.loads(tool.parameters)
    if not isinstance(schema, dict):
        _refuse(tool.asked_by, "must be an object")
    name = f"{tool.name}_arguments"
    try:
        made = _object(sdk, schema, name, tool.asked_by, MOST_DEPTH)
        if made is None:
            return sdk.GenerationSchema(type_class=type(name, (), {}), properties=[])
        return made.generation_schema()
    except (TypeError, ValueError, sdk.FoundationModelsError) as error:
        _refuse(tool.asked_by, f"Apple's SDK does not take it: {error}")


def _object(sdk: Any, schema: dict[str, Any], name: str, asked_by: str, depth: int) -> Any:
    """Return a class of the SDK that has a schema's properties, None if there are none."""
    _only(schema, {"type", "properties", "required"}, asked_by)
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if schema.get("type", "object") != "object" or not isinstance(properties, dict) or not isinstance(required, list):
        _refuse(asked_by, "must be of the type object")
    if len(properties) > MOST_PROPERTIES:
        _refuse(asked_by, f"has more than {MOST_PROPERTIES} properties")
    if not properties:
        return None
    hints: dict[str, Any] = {}
    guides: dict[str, Any] = {}
    for key, value in properties.items():
        if not key.isidentifier() or iskeyword(key) or key.startswith("_"):
            _refuse(asked_by, f"Apple's SDK takes no property of the name {key!r}, it must be a Python identifier")
        if not isinstance(value, dict):
            _refuse(asked_by, f"{key} must be an object that describes it")
        hint, guide = _property(sdk, value, f"{name}_{key}", asked_by, depth)
        # In this spelling: the SDK looks for the word.
        hints[key] = hint if key in required else Optional[hint]  # noqa: UP045
        description = value.get("description")
        guides[key] = sdk.guide(description if isinstance(description, str) else None, **guide)
    return sdk.generable(_description(schema))(type(name, (), {"__annotations__": hints, **guides}))


def _property(sdk: Any, schema: dict[str, Any], name: str, asked_by: str, depth: int) -> tuple[Any, dict[str, Any]]:
    """Return a property's type, and what else the SDK can hold it to."""
    if depth == 0:
        _refuse(asked_by, f"is nested deeper than {MOST_DEPTH} levels")
    kind = schema.get("type")
    if kind == "object":
        made = _object(sdk, schema, name, asked_by, depth - 1)
        if made is None:
            _refuse(asked_by, "Apple's SDK takes no object without properties")
        return made, {}
    if kind == "array":
        _only(schema, {"type", "items", "minItems", "maxItems"}, asked_by)
        items = schema.get("items")
        if not isinstance(items, dict):
            _refuse(asked_by, "an array must say what its items are")
        hint, guide = _property(sdk, items, f"{name}_item", asked_by, depth - 1)
        if guide:
            _refuse(asked_by, "Apple's SDK takes no restrictions of an array's items")
        bounds = {"min_items": schema.get("minItems"), "max_items": schema.get("maxItems")}
        many = list[hint]  # type: ignore[valid-type]  # a class that was made, or a plain one
        return many, {key: bound for key, bound in bounds.items() if bound is not None}
    if not isinstance(kind, str) or kind not in PLAIN:
        _refuse(asked_by, f"Apple's SDK takes the types object, array, {', '.join(PLAIN)}, not {json.dumps(kind)}")
    if kind == "string":
        _only(schema, {"type", "enum"}, asked_by)
        choices = schema.get("enum")
        if choices is None:
            return str, {}
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            _refuse(asked_by, "an enum must be a list of strings")
        return str, {"anyOf": choices}
    _only(schema, {"type", "minimum", "maximum"} if kind in ("integer", "number") else {"type"}, asked_by)
    return PLAIN[kind], {key: schema[key] for key in ("minimum", "maximum") if schema.get(key) is not None}


def _only(schema: dict[str, Any], known: set[str], asked_by: str) -> None:
    unknown = sorted(schema.keys() - known - DESCRIBING)
    if unknown:
        _refuse(asked_by, f"Apple's on-device model cannot be held to {unknown[0]!r}")


def _description(schema: dict[str, Any]) -> str | None:
    description = schema.get("description")
    return description if isinstance(description, str) else None


def _refuse(asked_by: str, why: str) -> NoReturn:
    raise InvalidRequest(f"{asked_by}: {why}", param=asked_by)
