"""What the platform tells of a device, as it comes in: checked field by field, never echoed."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, PydanticCustomError

from domain.fault import Fault
from domain.names import NO_TENANT, serial_number_fault

EVENT_SIZE_LIMIT: Final = 16_384
"""Bytes; a lifecycle event has about 300."""

_RFC_3339: Final = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE
)


class LifecycleEventType(StrEnum):
    """The events of a device's life that the platform tells of."""

    PROVISIONED = "DeviceProvisionedEvent"
    ACTIVATED = "DeviceActivatedEvent"
    SUSPENDED = "DeviceSuspendedEvent"
    REACTIVATED = "DeviceReactivatedEvent"
    DECOMMISSIONED = "DeviceDecommissionedEvent"


class InvalidEventError(ValueError):
    """What was sent is no lifecycle event."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


def _serial(value: str) -> str:
    if fault := serial_number_fault(value):
        raise PydanticCustomError("serial_number", "{fault}", {"fault": fault})
    return value


def _tenant(value: UUID) -> UUID:
    if value == NO_TENANT:
        raise PydanticCustomError("zero_tenant", "must not be the zero UUID, the null tenant is null")
    return value


def _timestamp(value: object) -> object:
    # Else pydantic would take a number, or a string of digits, for a Unix time.
    if not isinstance(value, datetime) and not (isinstance(value, str) and _RFC_3339.fullmatch(value)):
        raise PydanticCustomError("timestamp", "must be an RFC 3339 time with seconds and a UTC offset")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("timestamp_range", "lies outside the years 1 to 9999 in UTC") from None


Timestamp = Annotated[
    AwareDatetime, Field(strict=False), BeforeValidator(_timestamp), AfterValidator(_in_utc)
]
"""An RFC 3339 time with its offset, in UTC."""


class LifecycleEvent(BaseModel):
    """One event of a device's life, as the contract writes it in JSON.

    Fields it does not know are ignored, so that the platform may add some.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )

    event_id: UUID
    type: LifecycleEventType
    device_id: UUID
    tenant_id: Annotated[UUID, AfterValidator(_tenant)] | None
    serial_number: Annotated[str, AfterValidator(_serial)] | None = None
    occurred_at: Timestamp

    @model_validator(mode="after")
    def _provisioning_names_the_serial(self) -> Self:
        if self.type is LifecycleEventType.PROVISIONED and self.serial_number is None:
            raise PydanticCustomError("serial_needed", f"is needed on a {LifecycleEventType.PROVISIONED}")
        return self

    @property
    def is_decommission(self) -> bool:
        """Whether this ends the device's life."""
        return self.type is LifecycleEventType.DECOMMISSIONED

    @classmethod
    def from_json(cls, document: bytes | str) -> Self:
        """Read one event.

        Raises:
            InvalidEventError: it is no valid lifecycle event; names the first field at fault.
        """
        size = len(document if isinstance(document, bytes) else document.encode())
        if size > EVENT_SIZE_LIMIT:
            raise InvalidEventError(
                Fault(field="event", reason=f"has {size} bytes, at most {EVENT_SIZE_LIMIT} are allowed")
            )
        try:
            return cls.model_validate_json(document)
        except ValidationError as error:
            # Input and context are left out: the value must not travel any further.
            fault = error.errors(include_url=False, include_input=False)[0]
            raise InvalidEventError(_rejection(fault)) from None


def _rejection(fault: ErrorDetails) -> Fault:
    """pydantic's own messages quote parts of the value; these do not."""
    if fault["type"] == "serial_needed":
        return Fault(field="serialNumber", reason=fault["msg"])
    field = str(fault["loc"][0]) if fault["loc"] else "event"
    if fault["type"] in _OWN_WORDS:
        return Fault(field=field, reason=fault["msg"])
    return Fault(field=field, reason=_REASONS.get(fault["type"], _expectation(field)))


_OWN_WORDS: Final = frozenset({"serial_number", "zero_tenant", "timestamp", "timestamp_range"})
_REASONS: Final[Mapping[str, str]] = {
    "missing": "is missing",
    "json_invalid": "is not JSON",
    "model_type": "must be a JSON object",
    "timezone_aware": "must carry a UTC offset",
}


def _expectation(field: str) -> str:
    expected: dict[str, Any] = {
        "eventId": "a UUID",
        "deviceId": "a UUID",
        "tenantId": "a UUID or null",
        "serialNumber": "a string",
        "occurredAt": "an RFC 3339 time with seconds and a UTC offset",
        "type": "one of " + ", ".join(LifecycleEventType),
    }
    return f"must be {expected.get(field, 'a lifecycle event')}"
