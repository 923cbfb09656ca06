"""Shadows to read, the deltas last seen in them, and deltas whose command has not been started."""

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
    """An active binding whose shadow is to be read.

    `known_hash` is the hash of the delta last seen in the shadow, `found_by` the workflow run that found it.
    """

    binding_id: UUID
    device_id: UUID
    tenant_id: UUID | None
    thing_name: str
    known_hash: str | None
    found_by: str | None


class PendingCommand(NamedTuple):
    """A delta whose command is not recorded as started."""

    device_id: UUID
    tenant_id: UUID | None
    thing_name: str
    correlation_id: UUID
    delta: dict[str, Any]


def page_ends(session: Session, after: UUID | None, *, page_size: int, at_most: int) -> list[UUID]:
    """Return the last binding id of each of the next pages of active bindings, in the order of the ids."""
    following = (
        select(col(AwsThingBinding.id))
        .where(*_active_after(after))
        .order_by(col(AwsThingBinding.id))
        .limit(page_size * at_most)
        .subquery()
    )
    numbered = select(
        following.c.id,
        func.row_number().over(order_by=following.c.id).label("number"),
        func.lead(following.c.id).over(order_by=following.c.id).label("next_id"),
    ).subquery()
    ends = or_(numbered.c.number % page_size == 0, numbered.c.next_id.is_(None))
    return list(session.scalars(select(numbered.c.id).where(ends).order_by(numbered.c.id)))


def visits(session: Session, after: UUID | None, through: UUID) -> list[Visit]:
    """Return the active bindings after the id `after` up to and including `through`, in the order of ids."""
    found = session.exec(
        select(AwsThingBinding, ShadowDeltaRow.delta_hash, ShadowDeltaRow.found_by)
        .outerjoin(ShadowDeltaRow, col(ShadowDeltaRow.device_id) == AwsThingBinding.device_id)
        .where(*_active_after(after), col(AwsThingBinding.id) <= through)
        .order_by(col(AwsThingBinding.id))
    )
    return [
        Visit(binding.id, binding.device_id, binding.tenant_id, str(binding.thing_name), *known)
        for binding, *known in found
    ]


def lock_active(session: Session, visit: Visit) -> bool:
    """Lock a binding and its device's state until the transaction ends.

    The lock also serialises concurrent attempts at the same page, so that only one of them publishes a delta.

    Returns:
        False if the binding is no longer active or its device is decommissioned.
    """
    locked = session.exec(
        select(AwsThingBinding.id)
        .where(*_active_after(None), AwsThingBinding.id == visit.binding_id)
        .with_for_update(key_share=True)
    ).first()
    if locked is None:
        return False
    # All transactions lock a binding before the state, so that none of them deadlock.
    state = lock_state(session, visit.device_id)
    return state is None or state.decommissioned_at is None


def save_delta(
    session: Session, visit: Visit, delta: Delta, correlation_id: UUID, found_by: str
) -> ShadowDeltaRow | None:
    """Store a delta in place of the previous one. None if they are the same."""
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
    """Delete the row of a device that no longer has a delta, or is decommissioned."""
    session.exec(delete(ShadowDeltaRow).where(col(ShadowDeltaRow.device_id) == device_id))


def pending_commands(session: Session, after: UUID | None, *, at_most: int) -> list[PendingCommand]:
    """Return deltas whose command is not recorded as started, in the order of the device ids."""
    found = session.exec(
        select(ShadowDeltaRow, AwsThingBinding.thing_name)
        .join(AwsThingBinding, col(AwsThingBinding.device_id) == ShadowDeltaRow.device_id)
        .where(
            *_active_after(None),
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
    """Record that the commands of these deltas are started. A newer delta of a device is not changed."""
    session.exec(
        update(ShadowDeltaRow)
        .where(
            col(ShadowDeltaRow.device_id).in_([delta.device_id for delta in started]),
            col(ShadowDeltaRow.correlation_id).in_([delta.correlation_id for delta in started]),
        )
        .values(command_started_at=datetime.now(UTC))
    )


def _active_after(binding_id: UUID | None) -> list[ColumnElement[bool]]:
    """Return the conditions of a binding whose shadow is polled, after a binding in the order of the ids."""
    active = [
        col(AwsThingBinding.provisioning_status) == ProvisioningStatus.ACTIVE,
        col(AwsThingBinding.deleted_at).is_(None),
        # The bridge's own active bindings have a Thing name; a row of another system may have none.
        col(AwsThingBinding.thing_name).is_not(None),
    ]
    return active if binding_id is None else [*active, col(AwsThingBinding.id) > binding_id]
