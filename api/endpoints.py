"""Declarations of endpoints with their request and response models, and the routes made from them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from api.auth import CALLER, Caller
from api.body import read_json
from api.errors import ApiError, not_valid, validation_problem
from api.timeouts import within
from domain.fault import Fault
from domain.model import CamelModel


class ApiModel(CamelModel):
    """A request or response model: camelCase JSON, strict types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", validate_by_alias=True, serialize_by_alias=True)


Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class ApiRequest(Generic[Model]):
    """An authenticated request, with its body or its parameters validated."""

    input: Model
    caller: Caller
    headers: Headers


class ApiResponse(NamedTuple):
    """The successful response of an endpoint. Problems are raised as `ApiError` instead."""

    content: BaseModel | None
    status: int = 200
    headers: Mapping[str, str] | None = None

    def encode(self) -> Response:
        """Return the response in its JSON form."""
        if self.content is None:
            return Response(status_code=self.status, headers=self.headers)
        content = self.content.__pydantic_serializer__.to_json(self.content, by_alias=True)
        return Response(content, self.status, self.headers, "application/json")


class ResponseSpec(NamedTuple):
    """The meaning of a response status, and the model of its content."""

    description: str
    model: type[BaseModel] | None = None


@dataclass(frozen=True, kw_only=True)
class Endpoint(Generic[Model]):
    """One method of one path of the HTTP API."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    tag: str
    request_model: type[Model]
    """The body of a POST; otherwise the parameters: of the path by their names, the others of the query."""
    responses: Mapping[int, ResponseSpec]
    problems: Mapping[int, str] = field(default_factory=dict)
    """The problem responses beyond those that every endpoint has: see `api.openapi`."""
    request_headers: Mapping[str, str] = field(default_factory=dict)
    """The request headers that the endpoint reads, with their descriptions."""
    handle: Callable[[ApiRequest[Model]], Awaitable[ApiResponse]]

    async def parse(self, request: Request) -> Model:
        """Return the body or the parameters of a request as the request model.

        Raises:
            ApiError: the body or a parameter is missing or not valid.
        """
        try:
            if self.method == "POST":
                # pydantic's strict mode accepts a UUID, a time or an enum as a string only when it parses
                # the JSON itself, so it gets the checked bytes and not the decoded value.
                body = await read_json(request)
                return self.request_model.model_validate_json(body, by_alias=True, by_name=False)
            return self.request_model.model_validate_strings(
                _parameters(request), by_alias=True, by_name=False
            )
        except ValidationError as error:
            # The input is left out: the rejected value must not leave this process.
            raise validation_problem(error.errors(include_url=False, include_input=False)) from None


def _parameters(request: Request) -> dict[str, str]:
    query = request.query_params.multi_items()
    names = [name for name, _ in query]
    repeated = sorted({name for name in names if names.count(name) > 1 or name in request.path_params})
    if repeated:
        raise not_valid(Fault(field=name, reason="is given more than once") for name in repeated)
    if any("\0" in text for pair in query for text in pair):
        raise not_valid([Fault(field="query", reason="contains U+0000")])
    return {**dict(query), **request.path_params}


class MethodDispatcher:
    """The ASGI application of one path, which calls the endpoint of the request's method."""

    def __init__(self, endpoints: Sequence[Endpoint[Any]], timeout_seconds: float) -> None:
        self._endpoints = {endpoint.method: endpoint for endpoint in endpoints}
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["method"])
        if endpoint is None:
            allowed = ", ".join(sorted(self._endpoints))
            raise ApiError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"this path supports the methods: {allowed}",
                headers={"Allow": allowed},
            )
        response = await self._call(endpoint, Request(scope, receive))
        await response.encode()(scope, receive, send)

    async def _call(self, endpoint: Endpoint[Any], request: Request) -> ApiResponse:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                parsed = await endpoint.parse(request)
        except TimeoutError:
            raise ApiError(HTTPStatus.REQUEST_TIMEOUT, "the body was not received in time") from None
        api_request = ApiRequest(parsed, request.scope[CALLER], request.headers)
        return await within(self._timeout_seconds, endpoint.handle(api_request))


def endpoint_routes(endpoints: Sequence[Endpoint[Any]], timeout_seconds: float) -> list[Route]:
    """Return one route for each path of the endpoints."""
    by_path: dict[str, list[Endpoint[Any]]] = {}
    for endpoint in endpoints:
        by_path.setdefault(endpoint.path, []).append(endpoint)
    return [Route(path, MethodDispatcher(methods, timeout_seconds)) for path, methods in by_path.items()]
