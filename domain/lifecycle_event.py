"""The platform's lifecycle events, validated field by field. A rejected value is never repeated."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Self
from uuid import UUID

from pydantic import ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from domain.fault import Fault
from domain.fields import RULE, SerialNumber, TenantId, Timestamp
from domain.model import CamelModel

EVENT_SIZE_LIMIT: Final = 16_384
"""Bytes; a lifecycle event has about 300."""

SERIAL_NUMBER_MISSING: Final = "serial_number_missing"
"""The pydantic error type of a `DeviceProvisionedEvent` without a serial number."""


class LifecycleEventType(StrEnum):
    """The types of lifecycle events that the platform publishes."""

    PROVISIONED = "DeviceProvisionedEvent"
    ACTIVATED = "DeviceActivatedEvent"
    SUSPENDED = "DeviceSuspendedEvent"
    REACTIVATED = "DeviceReactivatedEvent"
    DECOMMISSIONED = "DeviceDecommissionedEvent"


class InvalidEventError(ValueError):
    """A payload is not a valid lifecycle event."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class LifecycleEvent(CamelModel):
    """One lifecycle event of a device, in the JSON form of the public contract.

    Unknown fields are ignored, so that the platform may add some.
    """

    model_config = ConfigDict(
        strict=True,
        validate_by_alias=True,
        json_schema_extra={
            "if": {"properties": {"type": {"const": LifecycleEventType.PROVISIONED.value}}},
            "then": {"properties": {"serialNumber": {"type": "string"}}, "required": ["serialNumber"]},
        },
    )

    event_id: UUID
    type: LifecycleEventType
    device_id: UUID
    tenant_id: TenantId | None
    serial_number: SerialNumber | None = None
    occurred_at: Timestamp

    @model_validator(mode="after")
    def _require_serial_number(self) -> Self:
        if self.type is LifecycleEventType.PROVISIONED and self.serial_number is None:
            raise PydanticCustomError(
                SERIAL_NUMBER_MISSING, f"is needed on a {LifecycleEventType.PROVISIONED}"
            )
        return self

    @property
    def is_decommission(self) -> bool:
        """Return whether this event ends the device's life."""
        return self.type is LifecycleEventType.DECOMMISSIONED

    @classmethod
    def from_json(cls, document: bytes | str) -> Self:
        """Parse and validate one event.

        Raises:
            InvalidEventError: the document is not a valid lifecycle event; `fault` is the first one.
        """
        size = len(document if isinstance(document, bytes) else document.encode())
        if size > EVENT_SIZE_LIMIT:
            raise InvalidEventError(
                Fault(field="event", reason=f"has {size} bytes, at most {EVENT_SIZE_LIMIT} are allowed")
            )
        try:
            return cls.model_validate_json(document)
        except ValidationError as error:
            # The input is left out: the rejected value must not leave this process.
            first = error.errors(include_url=False, include_input=False)[0]
            raise InvalidEventError(_fault_of(first)) from None


def _fault_of(error: ErrorDetails) -> Fault:
    """Return the fault for a pydantic error, without pydantic's own message, which may quote the value."""
    if error["type"] == SERIAL_NUMBER_MISSING:
        return Fault(field="serialNumber", reason=error["msg"])
    field = str(error["loc"][0]) if error["loc"] else "event"
    if error["type"] == RULE:
        return Fault(field=field, reason=error["msg"])
    return Fault(field=field, reason=_REASONS.get(error["type"], _expectation(field)))


_REASONS: Final[Mapping[str, str]] = {
    "missing": "is missing",
    "json_invalid": "is not JSON",
    "model_type": "must be a JSON object",
    "timezone_aware": "must have a UTC offset",
}


def _expectation(field: str) -> str:
    expected: dict[str, str] = {
        "eventId": "a UUID",
        "deviceId": "a UUID",
        "tenantId": "a UUID or null",
        "serialNumber": "a string",
        "occurredAt": "an RFC 3339 time with seconds and a UTC offset",
        "type": "one of " + ", ".join(LifecycleEventType),
    }
    return f"must be {expected.get(field, 'a lifecycle event')}"
