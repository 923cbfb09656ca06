"""The OpenAPI document, made from the doors as they are declared and the models they take and answer."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from api.body import BODY_LIMIT, DEPTH_LIMIT
from api.endpoints import Door
from api.errors import PROBLEM_MEDIA_TYPE, Problem

_SCHEMAS: Final = "#/components/schemas/{model}"
_EVERY_DOOR_REFUSES: Final[Mapping[int, str]] = {
    401: "No key, or one that does not count.",
    422: "Well-formed, but not valid.",
    500: "A fault of the bridge.",
    503: "What the answer needs is away for a while.",
}
_A_BODY_IS_REFUSED: Final[Mapping[int, str]] = {
    400: f"The body is no JSON, nests deeper than {DEPTH_LIMIT}, or something is missing from it.",
    408: "The body did not come in time.",
    413: f"The body is larger than {BODY_LIMIT} bytes.",
    415: "The body is of another type than application/json.",
}
_HEADERS: Final[Mapping[int, Mapping[str, str]]] = {
    401: {"WWW-Authenticate": "Bearer"},
    503: {"Retry-After": "Seconds until it is worth another try."},
}

_References = Mapping[Any, Mapping[str, Any]]


def served_at(document: Mapping[str, Any], root_path: str) -> Mapping[str, Any]:
    """The document where the application is mounted at a path of a host, or stands behind a proxy's."""
    return {**document, "servers": [{"url": root_path}]} if root_path else document


def openapi_document(doors: Sequence[Door[Any]], version: str) -> dict[str, Any]:
    """The whole surface behind the key."""
    models: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(Problem, "serialization"): None}
    for door in doors:
        models[door.takes, "validation"] = None
        for promise in door.answers.values():
            if promise.model:
                models[promise.model, "serialization"] = None
    references, definitions = models_json_schema(list(models), by_alias=True, ref_template=_SCHEMAS)
    schemas: dict[str, Any] = definitions["$defs"]
    # What is no body stands in the operations themselves.
    parameters = {
        model: schemas.pop(references[model, "validation"]["$ref"].rpartition("/")[2])
        for model in {door.takes for door in doors if door.method != "POST"}
    }
    paths: dict[str, dict[str, Any]] = {}
    for door in doors:
        operation: dict[str, Any] = {
            "operationId": _operation_id(door),
            "summary": door.summary,
            "tags": [door.tag],
        }
        if door.method == "POST":
            schema = references[door.takes, "validation"]
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
        elif listed := [*_parameters(door, parameters[door.takes]), *_headers(door)]:
            operation["parameters"] = listed
        operation["responses"] = _responses(door, references)
        paths.setdefault(door.path, {})[door.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "thingbridge",
            "version": version,
            "description": "The AWS IoT Core companion of a device platform. Every call carries a key, a "
            "tenant's or an operator's; a tenant's key fixes the tenant.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key as `thingbridge keys create` prints it.",
                }
            },
            "schemas": schemas,
        },
    }


def _operation_id(door: Door[Any]) -> str:
    words = re.findall(r"\w+", door.path.removeprefix("/api/iot"))
    return "_".join([door.method.lower(), *words])


def _parameters(door: Door[Any], schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    in_path = set(re.findall(r"{(\w+)}", door.path))
    required = set(schema.get("required", ()))
    listed = []
    for name, declared in schema.get("properties", {}).items():
        described = dict(declared)
        parameter = {
            "name": name,
            "in": "path" if name in in_path else "query",
            "required": name in required,
            "description": described.pop("description", None),
            "schema": _without_null(described),
        }
        listed.append({key: value for key, value in parameter.items() if value is not None})
    return listed


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """An optional parameter's schema: it is left out, where a field of a body would be null."""
    alternatives = [each for each in schema.pop("anyOf", ()) if each != {"type": "null"}]
    if schema.get("default", ...) is None:
        del schema["default"]
    (only,) = alternatives or [{}]
    return {**only, **schema}


def _headers(door: Door[Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "description": about, "schema": {"type": "string"}}
        for name, about in door.headers.items()
    ]


def _responses(door: Door[Any], references: _References) -> dict[str, Any]:
    refused = {**_EVERY_DOOR_REFUSES, **(_A_BODY_IS_REFUSED if door.method == "POST" else {}), **door.refuses}
    responses: dict[str, Any] = {}
    for status in sorted({*door.answers, *refused}):
        promise = door.answers.get(status)
        about = [promise.description] if promise else []
        content: dict[str, Any] = {}
        if promise and promise.model:
            content["application/json"] = {"schema": references[promise.model, "serialization"]}
        if status in refused:
            about.append(refused[status])
            content[PROBLEM_MEDIA_TYPE] = {"schema": references[Problem, "serialization"]}
        response: dict[str, Any] = {"description": " ".join(about) or HTTPStatus(status).phrase}
        if content:
            response["content"] = content
        if status in _HEADERS:
            response["headers"] = {
                name: {"description": what, "schema": {"type": "string"}}
                for name, what in _HEADERS[status].items()
            }
        responses[str(status)] = response
    return responses
