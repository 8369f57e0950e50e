"""JSON Schemas of the bodies that the dialects read, made from the classes that read them (`strict`)."""

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import attrs

from .strict import Between, Items, OneOf, Unserved

PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", dict[str, Any]: "object"}


@attrs.define
class Schemas:
    """Schemas of classes, by name; a class refers to others below `base`."""

    base: str
    named: dict[str, dict[str, Any]] = attrs.field(factory=dict)

    def reference(self, cls: type[Any]) -> dict[str, Any]:
        """Return a reference to the schema of an attrs class, which is among the named ones from here on."""
        name = f"{cls.__module__.rpartition('.')[2]}_{cls.__name__.strip('_')}"
        if name not in self.named:
            self.named[name] = {}
            self.named[name] = self._object(cls)
        return {"$ref": f"{self.base}{name}"}

    def _object(self, cls: type[Any]) -> dict[str, Any]:
        fields = attrs.fields(cls)
        required = [field.name for field in fields if field.default is attrs.NOTHING]
        return {
            "type": "object",
            "description": (cls.__doc__ or "").partition("\n")[0],
            "properties": {field.name: self._property(field, field.name in required) for field in fields},
            **({"required": required} if required else {}),
        }

    def _property(self, field: Any, required: bool) -> dict[str, Any]:
        schema = self.of(field.type)
        if required or not schema or None in schema.get("enum", []):
            return schema
        # null means absent.
        choices = schema.get("anyOf", [schema])
        return {"anyOf": [*choices, *([] if {"type": "null"} in choices else [{"type": "null"}])]}

    def of(self, kind: Any) -> dict[str, Any]:
        """Return the schema of a type as fields are annotated with."""
        if kind is Any:
            return {}
        if kind is type(None):
            return {"type": "null"}
        if kind in PLAIN:
            return {"type": PLAIN[kind]}
        if attrs.has(kind):
            return self.reference(kind)
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self._bounded(self.of(arguments[0]), arguments[1:])
        if origin is list:
            return {"type": "array", "items": self.of(arguments[0])}
        if origin in (Union, UnionType):
            return {"anyOf": [choice for argument in arguments for choice in self._choices(argument)]}
        raise TypeError(f"there is no schema of {kind}")

    def _choices(self, kind: Any) -> list[dict[str, Any]]:
        schema = self.of(kind)
        return list(schema["anyOf"]) if set(schema) == {"anyOf"} else [schema]

    def _bounded(self, schema: dict[str, Any], bounds: tuple[object, ...]) -> dict[str, Any]:
        for bound in bounds:
            match bound:
                case Between(least, most):
                    schema = {**schema, "minimum": least, "maximum": most}
                case OneOf(known):
                    schema = {**schema, "enum": list(known)}
                case Unserved(neutral):
                    schema = {"enum": [None, *neutral], "description": "Not served yet."}
                case Items(least, most):
                    unit = "Length" if schema["type"] == "string" else "Items"
                    schema = {**schema, f"min{unit}": least, f"max{unit}": most}
        return schema
