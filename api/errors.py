"""Errors as RFC 9457 writes them: one form for all, which never repeats what was sent."""

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

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"


class Problem(BaseModel):
    """An error, as RFC 9457 writes it."""

    type: str = Field("about:blank", description="No more is to be known of it than its status says.")
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What was wrong, and what to do.")
    errors: list[Fault] | None = Field(None, description="Each fault by its field.")


class Refused(Exception):  # noqa: N818  # an answer, not an accident
    """A request that is answered with a problem."""

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
        """The problem as it is answered."""
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
    """What the router itself refuses, as a problem."""
    assert isinstance(error, HTTPException)  # noqa: S101  # it is registered for these alone
    detail = {404: "there is nothing at this path", 405: "this path does not take this method"}
    status = HTTPStatus(error.status_code)
    return Refused(status, detail.get(status, error.detail), headers=error.headers).response()


def unauthenticated(detail: str) -> Refused:
    """401: no key, or none that counts."""
    return Refused(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": "Bearer"})


def not_found(what: str) -> Refused:
    """404: it is not there, or not for this caller, who is not told which."""
    return Refused(HTTPStatus.NOT_FOUND, f"there is no such {what}")


def unavailable(detail: str, retry_after_seconds: int = 5) -> Refused:
    """503: what the answer needs is away for a while."""
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": str(retry_after_seconds)})


def not_valid(faults: Iterable[Fault]) -> Refused:
    """422: well-formed, but not what it should be."""
    return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "the request is not valid: see errors", list(faults))


def refusal_of(errors: Sequence[ErrorDetails]) -> Refused:
    """pydantic's findings as an answer: 400 where something is missing, else 422."""
    faults = [Fault(field=_field(error), reason=_reason(error)) for error in errors]
    if any(error["type"] in _MISSING for error in errors):
        return Refused(HTTPStatus.BAD_REQUEST, "something is missing from the request: see errors", faults)
    return not_valid(faults)


# A rule of ours over a whole model names its field by the error's type; see `domain.lifecycle_event`.
_FIELD_OF: Final[Mapping[str, str]] = {"serial_needed": "serialNumber"}
# Of several objects it may be any, for the field that tells which is not there.
_NO_TAG: Final = "union_tag_not_found"
_MISSING: Final = frozenset({"missing", _NO_TAG, *_FIELD_OF})


def _field(error: ErrorDetails) -> str:
    tag = [error["ctx"]["discriminator"].strip("'")] if error["type"] == _NO_TAG else []
    return _FIELD_OF.get(error["type"]) or ".".join(map(str, [*error["loc"], *tag])) or "body"


RULE: Final = "rule"
"""The type of a `PydanticCustomError` of ours, whose words are answered as they are."""

# What pydantic says of other types of error may quote the value.
_SAFE: Final = frozenset(
    {
        RULE, "serial_number", "zero_tenant", "timestamp", "timestamp_range", "serial_needed",
        "bool_type", "bool_parsing", "int_type", "int_parsing", "float_type", "string_type", "list_type",
        "dict_type", "enum", "literal_error", "greater_than", "greater_than_equal", "less_than",
        "less_than_equal", "string_too_short", "string_too_long", "string_pattern_mismatch", "too_long",
        "too_short", "timezone_aware",
    }
)  # fmt: skip
_SUBJECT: Final = re.compile(r"^\w+ should ")
_REASONS: Final[Mapping[str, str]] = {
    "missing": "is missing",
    _NO_TAG: "is missing",
    "extra_forbidden": "is no field of this request",
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
