"""Which serial numbers may enrol: the hook a user supplies, and the ready-made one by patterns."""

from collections.abc import Mapping
from typing import Final, Protocol
from uuid import UUID

from pydantic_core import CoreSchema, SchemaError, SchemaValidator, ValidationError, core_schema

from domain.names import tenant_key

SERIAL_POLICY_GROUP: Final = "thingbridge.serial_policies"
"""The group of entry points by whose names a policy may be set."""

OTHER_TENANTS: Final = "*"
"""Whose pattern counts for the tenants that have none of their own."""


class SerialPolicy(Protocol):
    """Says whether a serial number may enrol. Whatever is not True, an exception too, refuses it."""

    def __call__(self, tenant_id: UUID | None, serial_number: str) -> bool:
        """Whether this tenant's device of this serial number may enrol."""


class InvalidPatternError(ValueError):
    """A pattern of serial numbers cannot be used."""


class SerialPatterns:
    """A policy: each tenant's serial numbers match its regular expression from end to end.

    A tenant that is not named, where there is no `*` either, has no serial numbers: whoever sets patterns
    wants all else refused.

    Args:
        patterns: the expression of each tenant, by its UUID, the null tenant's by the zero UUID.

    Raises:
        InvalidPatternError: names the tenant at fault.
    """

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self._validators = {_tenant(name): _validator(name, pattern) for name, pattern in patterns.items()}

    def __call__(self, tenant_id: UUID | None, serial_number: str) -> bool:
        """Whether the tenant's pattern matches."""
        validator = self._validators.get(tenant_key(tenant_id)) or self._validators.get(OTHER_TENANTS)
        return validator is not None and validator.isinstance_python(serial_number)


def _tenant(name: str) -> str:
    if name == OTHER_TENANTS:
        return name
    try:
        return str(UUID(name))
    except ValueError:
        raise InvalidPatternError(f"{name!r} is neither a tenant's UUID nor {OTHER_TENANTS}") from None


def _validator(tenant: str, pattern: str) -> SchemaValidator:
    try:
        # By itself first, since what is no expression may be one between the anchors: `a)|(b`.
        SchemaValidator(_schema(pattern))
        return SchemaValidator(_schema(rf"\A(?:{pattern})\z"))
    except (SchemaError, ValidationError):
        raise InvalidPatternError(
            f"the pattern of {tenant} is no regular expression; look-around and back-references are none here"
        ) from None


def _schema(pattern: str) -> CoreSchema:
    # An engine that takes linear time, whatever the pattern: what a device sends must not be able to hold up
    # the process, as it could with Python's own.
    return core_schema.str_schema(pattern=pattern, regex_engine="rust-regex", strict=True)
