"""How a door is declared: what it takes, what it answers; its route and its OpenAPI entry come of that."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from temporalio.service import RPCError

from api.auth import Caller
from api.body import read_json
from api.errors import Refused, not_valid, refusal_of, unavailable
from domain.fault import Fault
from orchestration.client import TemporalUnreachableError

logger = logging.getLogger("thingbridge.api")


class Wire(BaseModel):
    """What goes over the wire: camelCase, each value of its own JSON type, nothing unknown."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


CALLER: Final = "thingbridge.caller"
"""Where a request's scope holds its caller: the application's own name, for a host has a state of its own."""

I = TypeVar("I", bound=BaseModel)  # noqa: E741
T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[I]):
    """One call of a door, by someone who is known, with a body or with parameters that are valid."""

    input: I
    caller: Caller
    headers: Headers


class Answer(NamedTuple):
    """What a door answers, in its own words; its problems are raised (see `api.errors`)."""

    content: BaseModel | None
    status: int = 200
    headers: Mapping[str, str] | None = None

    def response(self) -> Response:
        """The answer as it is sent."""
        if self.content is None:
            return Response(status_code=self.status, headers=self.headers)
        content = self.content.__pydantic_serializer__.to_json(self.content, by_alias=True)
        return Response(content, self.status, self.headers, "application/json")


class Promise(NamedTuple):
    """What an answer of some status means, and what it holds."""

    description: str
    model: type[BaseModel] | None = None


@dataclass(frozen=True, kw_only=True)
class Door(Generic[I]):
    """One call of the HTTP surface."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    tag: str
    takes: type[I]
    """POST: the body. Else the parameters: those of the path by their names, the others of the query."""
    answers: Mapping[int, Promise]
    refuses: Mapping[int, str] = field(default_factory=dict)
    """Problems beyond those of every door: see `api.openapi`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """The request's own headers that it heeds."""
    handle: Callable[[Call[I]], Awaitable[Answer]]

    async def input_of(self, request: Request) -> I:
        """What the request gives, as the door takes it.

        Raises:
            Refused: it is not that.
        """
        try:
            if self.method == "POST":
                body = await read_json(request)
                return self.takes.model_validate_json(body, by_alias=True, by_name=False)
            return self.takes.model_validate_strings(_parameters(request), by_alias=True, by_name=False)
        except ValidationError as error:
            # Neither input nor link: the value must not travel any further.
            raise refusal_of(error.errors(include_url=False, include_input=False)) from None


def _parameters(request: Request) -> dict[str, str]:
    given = request.query_params.multi_items()
    names = [name for name, _ in given]
    repeated = sorted({name for name in names if names.count(name) > 1 or name in request.path_params})
    if repeated:
        raise not_valid(Fault(field=name, reason="is given more than once") for name in repeated)
    if any("\0" in text for pair in given for text in pair):
        raise not_valid([Fault(field="query", reason="holds U+0000")])
    return {**dict(given), **request.path_params}


class Place:
    """One path, and the doors behind it by method."""

    def __init__(self, doors: Sequence[Door[Any]], timeout_seconds: float) -> None:
        self._doors = {door.method: door for door in doors}
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        door = self._doors.get(scope["method"])
        if door is None:
            allowed = ", ".join(sorted(self._doors))
            raise Refused(
                HTTPStatus.METHOD_NOT_ALLOWED, f"allowed here: {allowed}", headers={"Allow": allowed}
            )
        answer = await self._answer(door, Request(scope, receive))
        await answer.response()(scope, receive, send)

    async def _answer(self, door: Door[Any], request: Request) -> Answer:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                given = await door.input_of(request)
        except TimeoutError:
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time") from None
        call = Call(given, request.scope[CALLER], request.headers)
        return await in_time(door.handle(call), self._timeout_seconds)


async def in_time(work: Awaitable[T], seconds: float) -> T:
    """What some work gives, unless it takes too long or what it needs is away.

    Raises:
        Refused: 503.
    """
    try:
        async with asyncio.timeout(seconds):
            return await work
    except (TimeoutError, PoolTimeoutError):
        raise unavailable("no answer could be had in time") from None
    except (OperationalError, InterfaceError) as error:
        logger.warning("the database refuses or does not answer", exc_info=error)
        raise unavailable("the database is away") from None
    except (TemporalUnreachableError, RPCError) as error:
        logger.warning("Temporal refuses or does not answer: %s", error)
        raise unavailable("Temporal does not take it now") from None


def routes(doors: Sequence[Door[Any]], timeout_seconds: float) -> list[Route]:
    """A route for each path."""
    by_path: dict[str, list[Door[Any]]] = {}
    for door in doors:
        by_path.setdefault(door.path, []).append(door)
    return [Route(path, Place(behind, timeout_seconds)) for path, behind in by_path.items()]
