"""Erasure of the data that identifies a decommissioned device. Its serial number stays denied."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, update
from sqlalchemy.orm import Mapped
from sqlmodel import Session, col, select

from db.bindings import NO_FAILURE, Actor, newest_binding, update_binding
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
    """The device may not be erased, or not yet."""


class WrongHashKeyError(OperatorError):
    """The hash key is not the one of earlier erasures: denied serial numbers would be admitted."""


def require_hash_key(session: Session, hashing: SerialHashing | None) -> None:
    """Check that the hash key is the one with which erased serial numbers were hashed.

    Raises:
        WrongHashKeyError: the key is another one, or is missing although there are hashes.
    """
    hashed = select(AwsThingBinding.id).where(col(AwsThingBinding.serial_hash).is_not(None)).limit(1)
    if hashing is None:
        if session.exec(hashed).first():
            raise WrongHashKeyError(
                "this database has erased serial numbers, which are not denied without "
                "IOT_AWS_ERASURE__HASH_KEY: set it to the key with which they were hashed"
            )
    elif session.exec(hashed.where(~col(AwsThingBinding.serial_hash).startswith(hashing.key_id))).first():
        raise WrongHashKeyError(
            "IOT_AWS_ERASURE__HASH_KEY is not the key with which erased serial numbers of this database were "
            "hashed, and cannot deny them: set it back to that key"
        )


def erase_device(session: Session, device_id: UUID, hashing: SerialHashing, actor: Actor) -> bool:
    """Erase a decommissioned device. False if it was erased before.

    Raises:
        NotErasableError: the device is unknown or not decommissioned, or has AWS resources or unsent events.
        WrongHashKeyError: see `require_hash_key`.
    """
    state = lock_state(session, device_id)
    binding = newest_binding(session, device_id)
    if state is None and binding is None:
        raise NotErasableError(f"device {device_id} is unknown")
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
    """Erase a batch of decommissioned devices, and return their number: 0 if no more may be erased.

    Args:
        session: in a transaction.
        hashing: computes the hashes that replace their serial numbers.
        actor: the author of the erasure.
        limit: the batch size.
        tenant_id: erase only devices of this tenant.
        before: erase only devices whose decommissioning was complete by then.

    Raises:
        WrongHashKeyError: see `require_hash_key`.
    """
    device = col(DeviceStateRow.device_id)
    of_device = col(AwsThingBinding.device_id) == device
    incomplete: ColumnElement[bool] = col(AwsThingBinding.deleted_at).is_(None)
    query = select(DeviceStateRow).where(
        col(DeviceStateRow.decommissioned_at).is_not(None),
        col(DeviceStateRow.erased_at).is_(None),
        ~exists().where(_unsent_of(device)),
    )
    if tenant_id is not None:
        query = query.where(DeviceStateRow.tenant_id == tenant_id)
    if before is not None:
        # `decommissioned_at` is the event's time, by the platform's clock, which may be ahead. It is used
        # only for a device without a binding; the `deleted_at` of a binding is the bridge's own time.
        query = query.where(or_(col(DeviceStateRow.decommissioned_at) < before, exists().where(of_device)))
        incomplete = or_(incomplete, col(AwsThingBinding.deleted_at) >= before)
    states = session.exec(
        query.where(~exists().where(of_device, incomplete))
        .order_by(col(DeviceStateRow.decommissioned_at), device)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if states:
        _erase(session, states, hashing, actor)
    return len(states)


def count_unerased(session: Session, tenant_id: UUID) -> int:
    """Return the number of devices of a tenant that have not been erased, for any reason."""
    return session.exec(
        select(func.count())
        .select_from(DeviceStateRow)
        .where(DeviceStateRow.tenant_id == tenant_id, col(DeviceStateRow.erased_at).is_(None))
    ).one()


def _erase(session: Session, states: Sequence[DeviceStateRow], hashing: SerialHashing, actor: Actor) -> None:
    # Checked in each transaction: another process may have hashed the first serial number after this process
    # checked its key at start, and serial numbers hashed with two keys could not all be denied.
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
    # A trigger allows the removal of a transition's reason only after the erasure has been recorded.
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
            **NO_FAILURE,
        )
    for statement in (
        update(BindingTransition).where(_is_of(BindingTransition, ids)).values(reason=None),
        delete(RetiredCertificate).where(_is_of(RetiredCertificate, ids)),
        delete(ShadowDeltaRow).where(_is_of(ShadowDeltaRow, ids)),
        # A parked event waits for an operator, possibly for ever.
        delete(OutboxRow).where(_is_of(OutboxRow, ids), col(OutboxRow.parked_at).is_not(None)),
        # The fields of an event depend on its type, so that all of them are removed.
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


def _unsent_of(device_id: UUID | Mapped[UUID]) -> ColumnElement[bool]:
    return and_(
        col(OutboxRow.device_id) == device_id,
        col(OutboxRow.published_at).is_(None),
        col(OutboxRow.parked_at).is_(None),
    )
