"""Schemas say what the classes that read bodies accept."""

from typing import Annotated, Any

import pytest
from attrs import field, frozen

from osaurus.dialects.schema import Schemas
from osaurus.dialects.strict import Between, Items


@frozen
class Inner:
    """Something within. It has a second sentence."""

    flag: bool = False


@frozen(kw_only=True)
class Body:
    """A body."""

    name: Annotated[str, Items(1, 8)]
    inner: Inner
    several: list[Inner] = field(factory=list)
    number: Annotated[float, Between(0, 2)] | None = None
    one_or_many: str | Annotated[list[str], Items(0, 4)] | None = None
    anything: Any = None


def test_a_class_is_an_object_and_null_means_absent() -> None:
    schemas = Schemas("#/")
    assert schemas.reference(Body) == {"$ref": "#/test_schema_Body"}
    null = {"type": "null"}
    assert schemas.named == {
        "test_schema_Inner": {
            "type": "object",
            "description": "Something within. It has a second sentence.",
            "properties": {"flag": {"anyOf": [{"type": "boolean"}, null]}},
        },
        "test_schema_Body": {
            "type": "object",
            "description": "A body.",
            "required": ["name", "inner"],
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 8},
                "inner": {"$ref": "#/test_schema_Inner"},
                "several": {"anyOf": [{"type": "array", "items": {"$ref": "#/test_schema_Inner"}}, null]},
                "number": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 2}, null]},
                "one_or_many": {
                    "anyOf": [
                        {"type": "string"},
                        {"type": "array", "items": {"type": "string"}, "minItems": 0, "maxItems": 4},
                        null,
                    ]
                },
                "anything": {},
            },
        },
    }


def test_a_type_that_no_body_has_is_a_mistake() -> None:
    with pytest.raises(TypeError):
        Schemas("#/").of(set[int])
