"""The platform's own device table. A platform that stores its devices elsewhere replaces this file."""

from uuid import UUID

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col

from db.models import DeviceRow
from domain.enrolment import Registration


def write_enrolled(session: Session, device_id: UUID, registration: Registration) -> None:
    """Insert or update the row of an enrolled device. The status of an existing row is not changed."""
    described = {"model": registration.model, "firmware_version": registration.firmware_version}
    session.exec(
        insert(DeviceRow)
        .values(
            id=device_id,
            tenant_id=registration.tenant_id,
            serial_number=registration.serial_number,
            label=registration.label,
            status="Active",
            **described,
        )
        .on_conflict_do_update(
            index_elements=[col(DeviceRow.id)],
            set_={**described, "label": func.coalesce(registration.label, col(DeviceRow.label))},
        )
    )


def mark_decommissioned(session: Session, device_id: UUID) -> None:
    """Set the device's status to Decommissioned, if it has a row."""
    session.exec(update(DeviceRow).where(col(DeviceRow.id) == device_id).values(status="Decommissioned"))
