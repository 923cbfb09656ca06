"""Fields that several doors take, checked as the domain does and told to OpenAPI."""

import re
from typing import Annotated, Final
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from api.errors import RULE
from domain.names import NO_TENANT, SERIAL_NUMBER_LIMIT, SERIAL_NUMBER_PATTERN, serial_number_fault


def _serial(value: str) -> str:
    if fault := serial_number_fault(value):
        raise PydanticCustomError(RULE, "{fault}", {"fault": fault})
    return value


def _tenant(value: UUID) -> UUID:
    if value == NO_TENANT:
        raise PydanticCustomError(RULE, "must not be the zero UUID, the null tenant is null")
    return value


def _hyphenated(value: object) -> object:
    # Else pydantic would take braces, a URN, or no hyphens for the same UUID.
    if isinstance(value, str) and not _HYPHENATED.fullmatch(value):
        raise PydanticCustomError(RULE, "must be a UUID")
    return value


def _whole(value: object) -> object:
    # Else pydantic would take 1.0, 1_000 and blanks for the same number.
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise PydanticCustomError(RULE, "must be a whole number")
    return value


_HYPHENATED: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_DIGITS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_UUID: Final = {"type": "string", "format": "uuid"}

# PostgreSQL's text holds any character but U+0000.
Text = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]
HyphenatedUuid = Annotated[UUID, BeforeValidator(_hyphenated), WithJsonSchema(_UUID)]
WholeNumber = Annotated[int, Field(strict=False), BeforeValidator(_whole)]

SerialNumber = Annotated[
    str,
    AfterValidator(_serial),
    WithJsonSchema(
        {"type": "string", "pattern": f"^{SERIAL_NUMBER_PATTERN}$", "maxLength": SERIAL_NUMBER_LIMIT}
    ),
]
TenantId = Annotated[UUID, BeforeValidator(_hyphenated), AfterValidator(_tenant), WithJsonSchema(_UUID)]
