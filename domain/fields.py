"""Field types that lifecycle events and the HTTP API share, each with its one validator."""

import re
from datetime import UTC, datetime
from typing import Annotated, Final
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from domain.names import NO_TENANT, SERIAL_NUMBER_LIMIT, SERIAL_NUMBER_PATTERN, serial_number_fault

RULE: Final = "rule"
"""The pydantic error type of our validators. Their messages never quote the value."""

_RFC_3339: Final = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE
)


def rule_error(reason: str) -> PydanticCustomError:
    """Return the error a validator raises for a value that breaks a rule.

    Args:
        reason: the rule, in words that do not quote the value.
    """
    # The reason is an argument of the template: braces in it would otherwise be read as placeholders.
    return PydanticCustomError(RULE, "{reason}", {"reason": reason})


def _require_serial_number(value: str) -> str:
    if fault := serial_number_fault(value):
        raise rule_error(fault)
    return value


def _require_tenant(value: UUID) -> UUID:
    if value == NO_TENANT:
        raise rule_error("must not be the zero UUID, the null tenant is null")
    return value


def _require_rfc_3339(value: object) -> object:
    # Without this check pydantic would read a number, or a string of digits, as a Unix time.
    if not isinstance(value, datetime) and not (isinstance(value, str) and _RFC_3339.fullmatch(value)):
        raise rule_error("must be an RFC 3339 time with seconds and a UTC offset")
    return value


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise rule_error("lies outside the years 1 to 9999 in UTC") from None


SerialNumber = Annotated[
    str,
    AfterValidator(_require_serial_number),
    WithJsonSchema(
        {"type": "string", "pattern": f"^{SERIAL_NUMBER_PATTERN}$", "maxLength": SERIAL_NUMBER_LIMIT}
    ),
]
"""A serial number that can be part of a Thing name."""

TenantId = Annotated[UUID, AfterValidator(_require_tenant)]
"""A tenant's id. The zero UUID is refused, because it represents the null tenant in names."""

Timestamp = Annotated[
    AwareDatetime, Field(strict=False), BeforeValidator(_require_rfc_3339), AfterValidator(_to_utc)
]
"""An RFC 3339 time with its offset, converted to UTC."""
