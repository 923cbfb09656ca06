"""Errors of the HTTP API as RFC 9457 problem responses, which never repeat a value of the request.

ApiError             raised by middleware and endpoints, answered as a problem
HTTPException        raised by Starlette's router, answered as a problem by `http_problem`
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

from pydantic import BaseModel, Field
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from domain.fault import Fault
from domain.fields import RULE
from domain.lifecycle_event import SERIAL_NUMBER_MISSING

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"


class Problem(BaseModel):
    """The body of an error response, as RFC 9457 defines it."""

    type: str = Field("about:blank", description="Always about:blank: the status is the type.")
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What is wrong, and what to do.")
    errors: list[Fault] | None = Field(None, description="The faults of the request, each with its field.")


class ApiError(Exception):
    """A request that is answered with a problem response.

    Args:
        status: the status of the response.
        detail: what is wrong and what to do, for the caller.
        faults: the fields at fault.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.faults = faults
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """Return the problem response."""
        problem = Problem(
            title=self.status.phrase,
            status=self.status,
            detail=self.detail,
            errors=list(self.faults) or None,
        )
        return Response(
            problem.model_dump_json(exclude_none=True),
            self.status,
            headers=self.headers,
            media_type=PROBLEM_MEDIA_TYPE,
        )


async def http_problem(_: Request, error: Exception) -> Response:
    """Return the problem response for an error of Starlette's router."""
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for this type only
    detail = {404: "there is nothing at this path", 405: "this path does not support this method"}
    status = HTTPStatus(error.status_code)
    return ApiError(status, detail.get(status, error.detail), headers=error.headers).response()


def unauthenticated(detail: str) -> ApiError:
    """Return a 401: the key is missing or not valid."""
    return ApiError(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": "Bearer"})


def not_found(kind: str) -> ApiError:
    """Return a 404. A resource of another tenant has the same response as one that does not exist."""
    return ApiError(HTTPStatus.NOT_FOUND, f"there is no such {kind}")


def unavailable(detail: str, retry_after_seconds: int = 5) -> ApiError:
    """Return a 503: a dependency is temporarily unavailable."""
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": str(retry_after_seconds)})


def not_valid(faults: Iterable[Fault]) -> ApiError:
    """Return a 422: the request is well-formed, but its values are not valid."""
    return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "the request is not valid: see errors", list(faults))


def validation_problem(errors: Sequence[ErrorDetails]) -> ApiError:
    """Return the error for pydantic's errors: 400 if a field is missing, otherwise 422."""
    faults = [Fault(field=_field(error), reason=_reason(error)) for error in errors]
    if any(error["type"] in _MISSING for error in errors):
        return ApiError(
            HTTPStatus.BAD_REQUEST, "a required field is missing from the request: see errors", faults
        )
    return not_valid(faults)


# The field that selects one of several models is missing; pydantic reports the object that lacks it.
_NO_DISCRIMINATOR: Final = "union_tag_not_found"
_MISSING: Final = frozenset({"missing", _NO_DISCRIMINATOR, SERIAL_NUMBER_MISSING})


def _field(error: ErrorDetails) -> str:
    if error["type"] == SERIAL_NUMBER_MISSING:
        return "serialNumber"
    path: list[int | str] = [*error["loc"]]
    if error["type"] == _NO_DISCRIMINATOR:
        path.append(error["ctx"]["discriminator"].strip("'"))
    return ".".join(map(str, path)) or "body"


# The messages of pydantic's other error types may quote the value.
_SAFE: Final = frozenset(
    {
        RULE, SERIAL_NUMBER_MISSING,
        "bool_type", "bool_parsing", "int_type", "int_parsing", "float_type", "string_type", "list_type",
        "dict_type", "enum", "literal_error", "greater_than", "greater_than_equal", "less_than",
        "less_than_equal", "string_too_short", "string_too_long", "string_pattern_mismatch", "too_long",
        "too_short", "timezone_aware",
    }
)  # fmt: skip
_SUBJECT: Final = re.compile(r"^\w+ should ")
_REASONS: Final[Mapping[str, str]] = {
    "missing": "is missing",
    _NO_DISCRIMINATOR: "is missing",
    "extra_forbidden": "is not a field of this request",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
}


def _reason(error: ErrorDetails) -> str:
    kind = error["type"]
    if kind in _REASONS:
        return _REASONS[kind]
    if kind in _SAFE:
        return _SUBJECT.sub("must ", error["msg"])
    if kind.startswith("uuid"):
        return "must be a UUID"
    if kind.startswith("datetime"):
        return "must be an RFC 3339 time with seconds and a UTC offset"
    return "is not valid"
