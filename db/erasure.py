"""Erasing what names a decommissioned device, whose serial number is denied all the same."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, update
from sqlmodel import Session, col, select

from db.bindings import Actor, newest_binding, update_binding
from db.device_states import lock_state
from db.models import (
    AwsThingBinding,
    BindingTransition,
    DeviceRow,
    DeviceStateRow,
    Erasure,
    OutboxRow,
    RetiredCertificate,
    ShadowDeltaRow,
)
from domain.erasure import SerialHashing
from domain.operator_error import OperatorError


class NotErasableError(OperatorError):
    """Nothing of the device may be erased, or not yet."""


class WrongHashKeyError(OperatorError):
    """What was denied under another key than the one given would be admitted."""


def require_hash_key(session: Session, hashing: SerialHashing | None) -> None:
    """Refuse to work with another key than the one that erased serial numbers were hashed with.

    Raises:
        WrongHashKeyError: with what to do.
    """
    hashed = select(AwsThingBinding.id).where(col(AwsThingBinding.serial_hash).is_not(None)).limit(1)
    if hashing is None:
        if session.exec(hashed).first():
            raise WrongHashKeyError(
                "serial numbers have been erased here, and are not denied without IOT_AWS_ERASURE__HASH_KEY: "
                "set it to the key they were hashed with"
            )
    elif session.exec(hashed.where(~col(AwsThingBinding.serial_hash).startswith(hashing.mark))).first():
        raise WrongHashKeyError(
            "IOT_AWS_ERASURE__HASH_KEY is not the key that serial numbers erased here were hashed with, and "
            "which alone can deny them: set it back"
        )


def erase_device(session: Session, device_id: UUID, hashing: SerialHashing, actor: Actor) -> bool:
    """Erase a decommissioned device; False where it was erased before.

    Raises:
        NotErasableError: it is unknown, not decommissioned, or has something left to be done or told.
    """
    state = lock_state(session, device_id)
    binding = newest_binding(session, device_id)
    if state is None and binding is None:
        raise NotErasableError(f"device {device_id} is not known here")
    if state is None or state.decommissioned_at is None:
        raise NotErasableError(f"device {device_id} is not decommissioned: decommission it first")
    if state.erased_at is not None:
        return False
    if binding is not None and binding.deleted_at is None:
        raise NotErasableError(
            f"device {device_id} is still being decommissioned: wait until its binding, now "
            f"{binding.provisioning_status}, is Decommissioned"
        )
    if session.exec(select(OutboxRow.id).where(_unsent_of(device_id)).limit(1)).first():
        raise NotErasableError(
            f"the last events of device {device_id} have not been sent yet: wait until they are"
        )
    _erase(session, [state], hashing, actor)
    return True


def erase_some(
    session: Session,
    hashing: SerialHashing,
    actor: Actor,
    *,
    limit: int,
    tenant_id: UUID | None = None,
    before: datetime | None = None,
) -> int:
    """Erase some of the decommissioned devices, and say how many; 0 where none is left that may be erased.

    Args:
        session: one transaction.
        hashing: what is to stand for their serial numbers.
        actor: who erases.
        limit: how many at most.
        tenant_id: only this tenant's.
        before: only those whose decommissioning was done by then.
    """
    device = col(DeviceStateRow.device_id)
    its_own = col(AwsThingBinding.device_id) == device
    undone: ColumnElement[bool] = col(AwsThingBinding.deleted_at).is_(None)
    query = select(DeviceStateRow).where(
        col(DeviceStateRow.decommissioned_at).is_not(None),
        col(DeviceStateRow.erased_at).is_(None),
        ~exists().where(_unsent_of(device)),
    )
    if tenant_id is not None:
        query = query.where(DeviceStateRow.tenant_id == tenant_id)
    if before is not None:
        # By the platform's clock, which may be ahead, only where nothing here says when it was done.
        query = query.where(or_(col(DeviceStateRow.decommissioned_at) < before, exists().where(its_own)))
        undone = or_(undone, col(AwsThingBinding.deleted_at) >= before)
    states = session.exec(
        query.where(~exists().where(its_own, undone))
        .order_by(col(DeviceStateRow.decommissioned_at), device)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if states:
        _erase(session, states, hashing, actor)
    return len(states)


def count_unerased(session: Session, tenant_id: UUID) -> int:
    """How many devices of a tenant have not been erased, whatever the reason."""
    return session.exec(
        select(func.count())
        .select_from(DeviceStateRow)
        .where(DeviceStateRow.tenant_id == tenant_id, col(DeviceStateRow.erased_at).is_(None))
    ).one()


def _erase(session: Session, states: Sequence[DeviceStateRow], hashing: SerialHashing, actor: Actor) -> None:
    # Also of one that began before the first was hashed: under two keys no one could deny them all.
    require_hash_key(session, hashing)
    ids = [state.device_id for state in states]
    session.add_all(
        Erasure(
            device_id=state.device_id,
            tenant_id=state.tenant_id,
            actor=actor.name,
            workflow_id=actor.workflow_id,
            run_id=actor.run_id,
        )
        for state in states
    )
    # The audit lets a reason go only where the erasure stands recorded.
    session.flush()
    bindings = select(AwsThingBinding).where(col(AwsThingBinding.device_id).in_(ids))
    for binding in session.exec(bindings).all():
        update_binding(
            session,
            binding,
            actor,
            serial_hash=hashing.of(binding.thing_name) if binding.thing_name else None,
            thing_name=None,
            thing_arn=None,
            certificate_arn=None,
            certificate_secret_arn=None,
            failure_code=None,
            failure_reason=None,
        )
    for statement in (
        update(BindingTransition).where(_is_of(BindingTransition, ids)).values(reason=None),
        delete(RetiredCertificate).where(_is_of(RetiredCertificate, ids)),
        delete(ShadowDeltaRow).where(_is_of(ShadowDeltaRow, ids)),
        # What was parked would else be held for an operator who may never come.
        delete(OutboxRow).where(_is_of(OutboxRow, ids), col(OutboxRow.parked_at).is_not(None)),
        # What each type of event tells is not known here, so nothing of it is kept.
        update(OutboxRow).where(_is_of(OutboxRow, ids)).values(data={}, refused_because=None),
        update(DeviceRow).where(col(DeviceRow.id).in_(ids)).values(serial_number=None, label=None),
        update(DeviceStateRow)
        .where(_is_of(DeviceStateRow, ids))
        .values(serial_number=None, erased_at=datetime.now(UTC)),
    ):
        session.exec(statement)


def _is_of(
    table: type[BindingTransition | DeviceStateRow | OutboxRow | RetiredCertificate | ShadowDeltaRow],
    device_ids: Sequence[UUID],
) -> ColumnElement[bool]:
    return col(table.device_id).in_(device_ids)


def _unsent_of(device_id: Any) -> ColumnElement[bool]:
    return and_(
        col(OutboxRow.device_id) == device_id,
        col(OutboxRow.published_at).is_(None),
        col(OutboxRow.parked_at).is_(None),
    )
