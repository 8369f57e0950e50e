"""The API's own description, in OpenAPI 3.1, made from the routes and from the classes that read their bodies."""

from collections.abc import Iterable
from typing import Any

from .. import __version__
from ..dialects.schema import Schemas
from .routes import PARAMETER, Route

# Statuses that an endpoint may answer with beside its own; which is when is in docs/openai.md.
ERRORS = ("400", "401", "403", "404", "405", "413", "429", "431", "500", "503")

ERROR = {
    "description": "What went wrong. Ollama's own SDKs, told by their User-Agent, get `error` as a string.",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "required": ["message", "type", "param", "code"],
                    "properties": {
                        "message": {"type": "string"},
                        "type": {"type": "string"},
                        "param": {"type": ["string", "null"]},
                        "code": {"type": "string"},
                    },
                },
            ]
        },
    },
}


def document(routes: Iterable[Route], path: str) -> dict[str, Any]:
    """Return the description as it is to be had at a path.

    Where the server is, it says relative to itself: only clients know the name, the port and the path of a proxy.
    """
    schemas = Schemas("#/components/schemas/", {"error": ERROR})
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Osaurus",
            "version": __version__,
            "description": "Every path answers under /v1, /api, /v1/api and without a prefix; here each has its usual.",
        },
        "servers": [{"url": "/".join([".."] * (path.count("/") - 1)) or "."}],
        "paths": paths,
        "components": {
            "schemas": schemas.named,
            "responses": {
                "error": {
                    "description": "An error",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/error"}}},
                }
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
        "security": [{}, {"bearer": []}, {"header": []}],
    }


def _operation(route: Route, schemas: Schemas) -> dict[str, Any]:
    name = route.answer.__name__
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": (route.answer.__doc__ or "").partition("\n")[0],
        "responses": {
            "200": {"description": "As asked for", "content": {kind: {"schema": {}} for kind in route.answers}},
            **{status: {"$ref": "#/components/responses/error"} for status in ERRORS},
            **{status: {"description": what} for status, what in route.also.items()},
        },
    }
    if route.body is not None:
        content = {"application/json": {"schema": schemas.reference(route.body)}}
        operation["requestBody"] = {"required": True, "content": content}
    parameters = [
        {"name": found, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for found in PARAMETER.findall(route.path)
    ]
    if parameters:
        operation["parameters"] = parameters
    return operation
