"""Field types of request models that only the HTTP API uses, with their schemas for OpenAPI."""

import re
from typing import Annotated, Final
from uuid import UUID

from pydantic import BeforeValidator, Field, WithJsonSchema

from domain.fields import TenantId, rule_error

_HYPHENATED: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_DIGITS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_UUID: Final = {"type": "string", "format": "uuid"}


def _require_hyphens(value: object) -> object:
    # Without this check pydantic would also accept braces, a URN, or no hyphens.
    if isinstance(value, str) and not _HYPHENATED.fullmatch(value):
        raise rule_error("must be a UUID")
    return value


def _require_digits(value: object) -> object:
    # Without this check pydantic would also accept 1.0, 1_000 and blanks.
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise rule_error("must be a whole number")
    return value


# PostgreSQL's text holds any character except U+0000.
Text = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]
HyphenatedUuid = Annotated[UUID, BeforeValidator(_require_hyphens), WithJsonSchema(_UUID)]
HyphenatedTenantId = Annotated[TenantId, BeforeValidator(_require_hyphens), WithJsonSchema(_UUID)]
WholeNumber = Annotated[int, Field(strict=False), BeforeValidator(_require_digits)]
