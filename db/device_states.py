"""Storage of the device states of `domain.device_state`."""

from uuid import UUID

from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, select

from db.models import DeviceStateRow
from domain.device_state import DeviceState, StatusChange


def lock_state(session: Session, device_id: UUID) -> DeviceStateRow | None:
    """Lock the device's row against other writers until the transaction ends. None if it has no row."""
    return session.exec(
        select(DeviceStateRow).where(DeviceStateRow.device_id == device_id).with_for_update()
    ).first()


def lock_or_create_state(session: Session, initial: DeviceState) -> DeviceStateRow:
    """Lock the device's row until the transaction ends, created from `initial` if it has none yet."""
    session.exec(
        insert(DeviceStateRow)
        .values(device_id=initial.device_id, tenant_id=initial.tenant_id, serial_number=initial.serial_number)
        .on_conflict_do_nothing()
    )
    row = lock_state(session, initial.device_id)
    assert row is not None  # noqa: S101  # nothing ever deletes a state
    return row


def state_of(row: DeviceStateRow) -> DeviceState:
    """Return the device state that a row stores."""
    desired = None
    if row.desired_status and row.occurred_at and row.event_id:
        desired = StatusChange(status=row.desired_status, occurred_at=row.occurred_at, event_id=row.event_id)
    return DeviceState(
        device_id=row.device_id,
        tenant_id=row.tenant_id,
        serial_number=row.serial_number,
        desired=desired,
        erased=row.erased_at is not None,
    )


def save_state(session: Session, row: DeviceStateRow, state: DeviceState) -> None:
    """Write a device state to its row."""
    row.serial_number = state.serial_number
    if state.desired:
        row.desired_status = state.desired.status
        row.occurred_at = state.desired.occurred_at
        row.event_id = state.desired.event_id
    if state.decommissioned and state.desired:
        row.decommissioned_at = state.desired.occurred_at
    session.add(row)
