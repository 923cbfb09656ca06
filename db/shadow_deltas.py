"""Which shadows are to be read, what was last seen in them, and which deltas still want their command."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, or_, update
from sqlmodel import Session, col, select

from db.device_states import lock_state
from db.models import AwsThingBinding, ShadowDeltaRow
from domain.provisioning_status import ProvisioningStatus
from domain.shadow import Delta


class Visit(NamedTuple):
    """An active binding whose shadow is to be read, the hash of the delta last seen in it, and by whom."""

    binding_id: UUID
    device_id: UUID
    tenant_id: UUID | None
    thing_name: str
    known_hash: str | None
    found_by: str | None


class PendingCommand(NamedTuple):
    """A delta whose command is not known to be started."""

    device_id: UUID
    tenant_id: UUID | None
    thing_name: str
    correlation_id: UUID
    delta: dict[str, Any]


def page_ends(session: Session, after: UUID | None, *, page_size: int, at_most: int) -> list[UUID]:
    """The last binding of each of the next pages of active bindings, in the order of their ids."""
    ahead = (
        select(col(AwsThingBinding.id))
        .where(*_active_behind(after))
        .order_by(col(AwsThingBinding.id))
        .limit(page_size * at_most)
        .subquery()
    )
    numbered = select(
        ahead.c.id,
        func.row_number().over(order_by=ahead.c.id).label("number"),
        func.lead(ahead.c.id).over(order_by=ahead.c.id).label("following"),
    ).subquery()
    ends = or_(numbered.c.number % page_size == 0, numbered.c.following.is_(None))
    return list(session.scalars(select(numbered.c.id).where(ends).order_by(numbered.c.id)))


def visits(session: Session, after: UUID | None, through: UUID) -> list[Visit]:
    """The active bindings behind `after`, up to and with `through`, in the order of their ids."""
    found = session.exec(
        select(AwsThingBinding, ShadowDeltaRow.delta_hash, ShadowDeltaRow.found_by)
        .outerjoin(ShadowDeltaRow, col(ShadowDeltaRow.device_id) == AwsThingBinding.device_id)
        .where(*_active_behind(after), col(AwsThingBinding.id) <= through)
        .order_by(col(AwsThingBinding.id))
    )
    return [
        Visit(binding.id, binding.device_id, binding.tenant_id, str(binding.thing_name), *known)
        for binding, *known in found
    ]


def lock_active(session: Session, visit: Visit) -> bool:
    """Whether the binding is still active and its device wanted; it stays so until the transaction ends.

    It is held against another attempt at the same page too: of two that see one delta, one tells of it.
    """
    held = session.exec(
        select(AwsThingBinding.id)
        .where(*_active_behind(None), AwsThingBinding.id == visit.binding_id)
        .with_for_update(key_share=True)
    ).first()
    if held is None:
        return False
    # Behind the binding: the order in which everyone who needs both takes the two.
    state = lock_state(session, visit.device_id)
    return state is None or state.decommissioned_at is None


def save_delta(
    session: Session, visit: Visit, delta: Delta, correlation_id: UUID, found_by: str
) -> ShadowDeltaRow | None:
    """Remember a delta in place of the one before it; None where it is that one."""
    known = session.get(ShadowDeltaRow, visit.device_id)
    if known is not None and known.delta_hash == delta.digest:
        return None
    return session.merge(
        ShadowDeltaRow(
            device_id=visit.device_id,
            tenant_id=visit.tenant_id,
            delta_hash=delta.digest,
            delta=delta.state,
            shadow_version=delta.version,
            correlation_id=correlation_id,
            found_by=found_by,
            command_started_at=None,
        )
    )


def delete_delta(session: Session, device_id: UUID) -> None:
    """Remember no delta of the device's: there is none any more, or no device."""
    session.exec(delete(ShadowDeltaRow).where(col(ShadowDeltaRow.device_id) == device_id))


def pending_commands(session: Session, after: UUID | None, *, at_most: int) -> list[PendingCommand]:
    """The deltas behind a device whose command is not known to be started, in the order of the devices."""
    found = session.exec(
        select(ShadowDeltaRow, AwsThingBinding.thing_name)
        .join(AwsThingBinding, col(AwsThingBinding.device_id) == ShadowDeltaRow.device_id)
        .where(
            *_active_behind(None),
            col(ShadowDeltaRow.command_started_at).is_(None),
            *([] if after is None else [col(ShadowDeltaRow.device_id) > after]),
        )
        .order_by(col(ShadowDeltaRow.device_id))
        .limit(at_most)
    )
    return [
        PendingCommand(row.device_id, row.tenant_id, str(thing_name), row.correlation_id, row.delta)
        for row, thing_name in found
    ]


def mark_command_started(session: Session, started: Sequence[PendingCommand]) -> None:
    """Note that these deltas' commands are started; that of a newer delta of the same device is not."""
    session.exec(
        update(ShadowDeltaRow)
        .where(
            col(ShadowDeltaRow.device_id).in_([delta.device_id for delta in started]),
            col(ShadowDeltaRow.correlation_id).in_([delta.correlation_id for delta in started]),
        )
        .values(command_started_at=datetime.now(UTC))
    )


def _active_behind(binding_id: UUID | None) -> list[ColumnElement[bool]]:
    """What makes a binding one that is polled, behind another in the order of their ids."""
    active = [
        col(AwsThingBinding.provisioning_status) == ProvisioningStatus.ACTIVE,
        col(AwsThingBinding.deleted_at).is_(None),
        # No active binding is without one; a row made elsewhere might be.
        col(AwsThingBinding.thing_name).is_not(None),
    ]
    return active if binding_id is None else [*active, col(AwsThingBinding.id) > binding_id]
