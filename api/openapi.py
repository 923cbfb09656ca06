"""The OpenAPI document, made from the declared endpoints and their models."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from api.body import BODY_LIMIT, DEPTH_LIMIT
from api.endpoints import Endpoint
from api.errors import PROBLEM_MEDIA_TYPE, Problem

_SCHEMAS: Final = "#/components/schemas/{model}"
_PROBLEMS_OF_EVERY_ENDPOINT: Final[Mapping[int, str]] = {
    401: "The key is missing or not valid.",
    422: "The request is well-formed, but not valid.",
    500: "An internal error of the bridge.",
    503: "A dependency is temporarily unavailable.",
}
_PROBLEMS_OF_A_BODY: Final[Mapping[int, str]] = {
    400: f"The body is not JSON, nests deeper than {DEPTH_LIMIT}, or lacks a required field.",
    408: "The body was not received in time.",
    413: f"The body is larger than {BODY_LIMIT} bytes.",
    415: "The body has another type than application/json.",
}
_HEADERS: Final[Mapping[int, Mapping[str, str]]] = {
    401: {"WWW-Authenticate": "Bearer"},
    503: {"Retry-After": "Seconds to wait before a retry."},
}

_References = Mapping[Any, Mapping[str, Any]]


def with_server(document: Mapping[str, Any], root_path: str) -> Mapping[str, Any]:
    """Return the document with the path under which a host or a proxy has mounted the application."""
    return {**document, "servers": [{"url": root_path}]} if root_path else document


def openapi_document(endpoints: Sequence[Endpoint[Any]], version: str) -> dict[str, Any]:
    """Return the document that describes the endpoints."""
    models: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(Problem, "serialization"): None}
    for endpoint in endpoints:
        models[endpoint.request_model, "validation"] = None
        for spec in endpoint.responses.values():
            if spec.model:
                models[spec.model, "serialization"] = None
    references, definitions = models_json_schema(list(models), by_alias=True, ref_template=_SCHEMAS)
    schemas: dict[str, Any] = definitions["$defs"]
    # Parameters are described in their operations, not as schemas.
    parameters = {
        model: schemas.pop(references[model, "validation"]["$ref"].rpartition("/")[2])
        for model in {endpoint.request_model for endpoint in endpoints if endpoint.method != "POST"}
    }
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        operation: dict[str, Any] = {
            "operationId": _operation_id(endpoint),
            "summary": endpoint.summary,
            "tags": [endpoint.tag],
        }
        if endpoint.method == "POST":
            schema = references[endpoint.request_model, "validation"]
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
        elif listed := [*_parameters(endpoint, parameters[endpoint.request_model]), *_headers(endpoint)]:
            operation["parameters"] = listed
        operation["responses"] = _responses(endpoint, references)
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "thingbridge",
            "version": version,
            "description": "The AWS IoT Core companion of a device platform. Every call requires an "
            "API key, a tenant's or an operator's; a tenant's key determines the tenant.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key that `thingbridge keys create` has printed.",
                }
            },
            "schemas": schemas,
        },
    }


def _operation_id(endpoint: Endpoint[Any]) -> str:
    words = re.findall(r"\w+", endpoint.path.removeprefix("/api/iot"))
    return "_".join([endpoint.method.lower(), *words])


def _parameters(endpoint: Endpoint[Any], schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    in_path = set(re.findall(r"{(\w+)}", endpoint.path))
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
    """Return the schema of an optional parameter without null: a parameter without a value is left out."""
    alternatives = [each for each in schema.pop("anyOf", ()) if each != {"type": "null"}]
    if schema.get("default", ...) is None:
        del schema["default"]
    (only,) = alternatives or [{}]
    return {**only, **schema}


def _headers(endpoint: Endpoint[Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}
        for name, description in endpoint.request_headers.items()
    ]


def _responses(endpoint: Endpoint[Any], references: _References) -> dict[str, Any]:
    problems = {
        **_PROBLEMS_OF_EVERY_ENDPOINT,
        **(_PROBLEMS_OF_A_BODY if endpoint.method == "POST" else {}),
        **endpoint.problems,
    }
    responses: dict[str, Any] = {}
    for status in sorted({*endpoint.responses, *problems}):
        spec = endpoint.responses.get(status)
        descriptions = [spec.description] if spec else []
        content: dict[str, Any] = {}
        if spec and spec.model:
            content["application/json"] = {"schema": references[spec.model, "serialization"]}
        if status in problems:
            descriptions.append(problems[status])
            content[PROBLEM_MEDIA_TYPE] = {"schema": references[Problem, "serialization"]}
        response: dict[str, Any] = {"description": " ".join(descriptions) or HTTPStatus(status).phrase}
        if content:
            response["content"] = content
        if status in _HEADERS:
            response["headers"] = {
                name: {"description": description, "schema": {"type": "string"}}
                for name, description in _HEADERS[status].items()
            }
        responses[str(status)] = response
    return responses
