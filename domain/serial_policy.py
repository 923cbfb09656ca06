"""Serial policies decide which serial numbers may enrol: an operator's own code, or patterns per tenant."""

from collections.abc import Mapping
from typing import Final, Protocol
from uuid import UUID

from pydantic_core import CoreSchema, SchemaError, SchemaValidator, ValidationError, core_schema

from domain.names import tenant_key

SERIAL_POLICY_GROUP: Final = "thingbridge.serial_policies"
"""The group of entry points in which a package registers a serial policy."""

OTHER_TENANTS: Final = "*"
"""The key of the pattern for tenants without a pattern of their own."""


class SerialPolicy(Protocol):
    """A decision on serial numbers. Only True admits one; any other result, or an exception, denies it."""

    def __call__(self, tenant_id: UUID | None, serial_number: str) -> bool:
        """Return whether this tenant's device with this serial number may enrol."""


class InvalidPatternError(ValueError):
    """A pattern for serial numbers cannot be used."""


class SerialPatterns:
    """A policy that compares serial numbers with one regular expression per tenant, as a whole match.

    A tenant without a pattern is denied unless there is a `*` pattern: patterns list all that may enrol.

    Args:
        patterns: the expression of each tenant, by its UUID; the zero UUID is the null tenant.

    Raises:
        InvalidPatternError: a key is not a tenant's UUID or `*`, or a pattern is not a regular expression.
    """

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self._validators = {_tenant(name): _validator(name, pattern) for name, pattern in patterns.items()}

    def __call__(self, tenant_id: UUID | None, serial_number: str) -> bool:
        """Return whether the serial number matches the tenant's pattern."""
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
        # The pattern is first compiled alone: `a)|(b` is invalid, but would be valid between the anchors.
        SchemaValidator(_schema(pattern))
        return SchemaValidator(_schema(rf"\A(?:{pattern})\z"))
    except (SchemaError, ValidationError):
        raise InvalidPatternError(
            f"the pattern of {tenant} is not a regular expression; look-around and back-references are not "
            "supported"
        ) from None


def _schema(pattern: str) -> CoreSchema:
    # This engine runs in linear time for every pattern. Python's own could be blocked by a serial number that
    # a device chooses.
    return core_schema.str_schema(pattern=pattern, regex_engine="rust-regex", strict=True)
