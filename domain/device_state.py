"""What is known of a device whatever order its events came in: a fold that any order ends alike."""

from datetime import datetime
from enum import StrEnum
from typing import Final, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from domain.fault import Fault
from domain.lifecycle_event import LifecycleEvent, LifecycleEventType


class DesiredStatus(StrEnum):
    """What the platform wants the device to be."""

    ACTIVE = "Active"
    SUSPENDED = "Suspended"
    DECOMMISSIONED = "Decommissioned"


_WANTED: Final = {
    LifecycleEventType.ACTIVATED: DesiredStatus.ACTIVE,
    LifecycleEventType.REACTIVATED: DesiredStatus.ACTIVE,
    LifecycleEventType.SUSPENDED: DesiredStatus.SUSPENDED,
    LifecycleEventType.DECOMMISSIONED: DesiredStatus.DECOMMISSIONED,
}


class StatusChange(BaseModel):
    """A wanted status and the event that gave it."""

    model_config = ConfigDict(frozen=True)

    status: DesiredStatus
    occurred_at: datetime
    event_id: UUID

    def supersedes(self, other: "StatusChange | None") -> bool:
        """Whether this wish stands against the other: a decommission always, else the newer one."""
        return other is None or self._rank > other._rank

    @property
    def _rank(self) -> tuple[bool, datetime, UUID, str]:
        # The status only decides between events that wrongly share an id: no two wishes may draw.
        return self.status is DesiredStatus.DECOMMISSIONED, self.occurred_at, self.event_id, self.status


class DeviceState(BaseModel):
    """The bridge's memory of one device: who it is for ever, and what it shall be now."""

    model_config = ConfigDict(frozen=True)

    device_id: UUID
    tenant_id: UUID | None
    serial_number: str | None
    desired: StatusChange | None = None
    erased: bool = False

    @classmethod
    def before_first_event(cls, event: LifecycleEvent) -> Self:
        """The state before the first event of a device."""
        return cls(device_id=event.device_id, tenant_id=event.tenant_id, serial_number=event.serial_number)

    @property
    def decommissioned(self) -> bool:
        """Whether the device's life is over; nothing brings it back."""
        return self.desired is not None and self.desired.status is DesiredStatus.DECOMMISSIONED

    def refuses(self, event: LifecycleEvent) -> Fault | None:
        """Why an event cannot be this device's: a device has one tenant and one serial number for ever."""
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

    def fold(self, event: LifecycleEvent) -> "DeviceState":
        """The state after one more event of this device, which may be a repeat, late or out of order.

        A provisioned event gives no wanted status: it says that the device exists, not what it shall be.
        """
        # An event that comes after the erasure must not bring back what was erased.
        serial_number = None if self.erased else self.serial_number or event.serial_number
        known = self.model_copy(update={"serial_number": serial_number})
        wanted = _WANTED.get(event.type)
        if wanted is None:
            return known
        desired = StatusChange(status=wanted, occurred_at=event.occurred_at, event_id=event.event_id)
        return known.model_copy(update={"desired": desired}) if desired.supersedes(self.desired) else known
