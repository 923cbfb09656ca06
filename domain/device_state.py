"""The state that results from a device's events. It does not depend on the order of their arrival."""

from datetime import datetime
from enum import StrEnum
from typing import Final, Self
from uuid import UUID

from domain.fault import Fault
from domain.lifecycle_event import LifecycleEvent, LifecycleEventType
from domain.model import Message


class DesiredStatus(StrEnum):
    """The status that the platform wants the device to have."""

    ACTIVE = "Active"
    SUSPENDED = "Suspended"
    DECOMMISSIONED = "Decommissioned"


_DESIRED_STATUS: Final = {
    LifecycleEventType.ACTIVATED: DesiredStatus.ACTIVE,
    LifecycleEventType.REACTIVATED: DesiredStatus.ACTIVE,
    LifecycleEventType.SUSPENDED: DesiredStatus.SUSPENDED,
    LifecycleEventType.DECOMMISSIONED: DesiredStatus.DECOMMISSIONED,
}


class StatusChange(Message):
    """A desired status, and the event that set it."""

    status: DesiredStatus
    occurred_at: datetime
    event_id: UUID

    def supersedes(self, other: "StatusChange | None") -> bool:
        """Return whether this change wins over the other: a decommission always does, else the newer one."""
        return other is None or self._rank > other._rank

    @property
    def _rank(self) -> tuple[bool, datetime, UUID, str]:
        # The status is compared last, for events that wrongly have the same id: no two changes may be equal.
        return self.status is DesiredStatus.DECOMMISSIONED, self.occurred_at, self.event_id, self.status


class DeviceState(Message):
    """Tenant and serial number of a device, which never change, and its desired status."""

    device_id: UUID
    tenant_id: UUID | None
    serial_number: str | None
    desired: StatusChange | None = None
    erased: bool = False

    @classmethod
    def before_first_event(cls, event: LifecycleEvent) -> Self:
        """Return the state before the first event of a device."""
        return cls(device_id=event.device_id, tenant_id=event.tenant_id, serial_number=event.serial_number)

    @property
    def decommissioned(self) -> bool:
        """Return whether the device is decommissioned, which is final."""
        return self.desired is not None and self.desired.status is DesiredStatus.DECOMMISSIONED

    def fault_of(self, event: LifecycleEvent) -> Fault | None:
        """Return the field in which an event differs from this device, or None if none differs."""
        if event.device_id != self.device_id:
            return Fault(field="deviceId", reason="is not the device of this workflow")
        if event.tenant_id != self.tenant_id:
            return Fault(field="tenantId", reason="is not the tenant this device belongs to")
        if (
            None not in (event.serial_number, self.serial_number)
            and event.serial_number != self.serial_number
        ):
            return Fault(field="serialNumber", reason="is not the serial number of this device")
        return None

    def apply(self, event: LifecycleEvent) -> "DeviceState":
        """Return the state after an event of this device, which may be a repeat, late or out of order.

        A provisioned event sets no desired status.
        """
        # An event that arrives after the erasure must not restore the serial number.
        serial_number = None if self.erased else self.serial_number or event.serial_number
        updated = self.model_copy(update={"serial_number": serial_number})
        status = _DESIRED_STATUS.get(event.type)
        if status is None:
            return updated
        desired = StatusChange(status=status, occurred_at=event.occurred_at, event_id=event.event_id)
        return (
            updated.model_copy(update={"desired": desired}) if desired.supersedes(self.desired) else updated
        )
