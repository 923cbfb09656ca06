"""What is known of a device whatever order its events came in: a fold that any order ends alike."""

from datetime import datetime
from enum import StrEnum
from typing import Final, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from domain.lifecycle_event import LifecycleEvent, LifecycleEventType, Rejection


class WantedStatus(StrEnum):
    """What the platform wants the device to be."""

    ACTIVE = "Active"
    SUSPENDED = "Suspended"
    DECOMMISSIONED = "Decommissioned"


_WANTED: Final = {
    LifecycleEventType.ACTIVATED: WantedStatus.ACTIVE,
    LifecycleEventType.REACTIVATED: WantedStatus.ACTIVE,
    LifecycleEventType.SUSPENDED: WantedStatus.SUSPENDED,
    LifecycleEventType.DECOMMISSIONED: WantedStatus.DECOMMISSIONED,
}


class Wish(BaseModel):
    """A wanted status and the event that gave it."""

    model_config = ConfigDict(frozen=True)

    status: WantedStatus
    occurred_at: datetime
    event_id: UUID

    def outranks(self, other: "Wish | None") -> bool:
        """Whether this wish stands against the other: a decommission always, else the newer one."""
        return other is None or self._rank > other._rank

    @property
    def _rank(self) -> tuple[bool, datetime, UUID, str]:
        # The status only decides between events that wrongly share an id: no two wishes may draw.
        return self.status is WantedStatus.DECOMMISSIONED, self.occurred_at, self.event_id, self.status


class DeviceState(BaseModel):
    """The bridge's memory of one device: who it is for ever, and what it shall be now."""

    model_config = ConfigDict(frozen=True)

    device_id: UUID
    tenant_id: UUID | None
    serial_number: str | None
    wish: Wish | None = None
    erased: bool = False

    @classmethod
    def unheard_of(cls, event: LifecycleEvent) -> Self:
        """The state before the first event of a device."""
        return cls(device_id=event.device_id, tenant_id=event.tenant_id, serial_number=event.serial_number)

    @property
    def decommissioned(self) -> bool:
        """Whether the device's life is over; nothing brings it back."""
        return self.wish is not None and self.wish.status is WantedStatus.DECOMMISSIONED

    def refuses(self, event: LifecycleEvent) -> Rejection | None:
        """Why an event cannot be this device's: a device has one tenant and one serial number for ever."""
        if event.device_id != self.device_id:
            return Rejection(field="deviceId", reason="is not the device of this workflow")
        if event.tenant_id != self.tenant_id:
            return Rejection(field="tenantId", reason="is not the tenant this device belongs to")
        if (
            None not in (event.serial_number, self.serial_number)
            and event.serial_number != self.serial_number
        ):
            return Rejection(field="serialNumber", reason="is not the serial number of this device")
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
        wish = Wish(status=wanted, occurred_at=event.occurred_at, event_id=event.event_id)
        return known.model_copy(update={"wish": wish}) if wish.outranks(self.wish) else known
