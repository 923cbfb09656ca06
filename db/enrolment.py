"""Enrolment of a device by fleet provisioning: the checks, and all of its rows in one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Final
from uuid import UUID, uuid4

from sqlalchemy import Connection, and_, exists, func, or_, tuple_
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from db.bindings import (
    DECIDING_BINDING,
    Actor,
    deciding_names,
    open_binding,
    provisioned_event,
    update_binding,
)
from db.device_states import lock_or_create_state
from db.devices import write_enrolled
from db.models import AwsThingBinding, DeviceStateRow, RetiredCertificate
from db.outbox import enqueue
from db.retired_certificates import (
    SecretBeingErasedError,
    pending_retirements,
    reclaim_secret,
    retire,
    retired_from,
)
from domain.device_state import DeviceState
from domain.enrolment import Denial, Registration, activation
from domain.erasure import SerialHashing
from domain.lifecycle_event import LifecycleEvent
from domain.names import id_of_certificate
from domain.provisioning_status import ProvisioningStatus
from domain.saga import Device

# Prefix of a Thing name before hashing, so that an enrolment's advisory lock differs from other locks.
_LOCKS: Final = b"thingbridge/enrolment/"


# Built once and run without the ORM: building the query takes a third of the time of a `/verify` call.
_DENIAL_QUERY: Final = DECIDING_BINDING.outerjoin(
    DeviceStateRow, col(DeviceStateRow.device_id) == col(AwsThingBinding.device_id)
).with_only_columns(col(AwsThingBinding.deleted_at), col(DeviceStateRow.decommissioned_at))


class EnrolmentDeniedError(RuntimeError):
    """The serial number may not enrol."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(str(denial))


class EnrolmentConflictError(RuntimeError):
    """The certificate or the secret of the registration cannot be bound to the device."""


@dataclass(frozen=True)
class Enrolled:
    """The result of an enrolment, the first one or a repeat."""

    binding: AwsThingBinding
    already_provisioned: bool
    follow_up_due: bool
    """True if the device's workflow must still be signalled."""


def find_denial(
    connection: Connection, thing_name: str, *, allow_reprovision: bool, hashing: SerialHashing | None
) -> Denial | None:
    """Return why the serial number of a Thing name may not enrol, None if it may. Runs one indexed query."""
    found = connection.execute(_DENIAL_QUERY, deciding_names(thing_name, hashing)).one_or_none()
    if found is None:
        return None
    deleted_at, decommissioned_at = found
    if deleted_at or decommissioned_at:
        return Denial.DECOMMISSIONED
    return None if allow_reprovision else Denial.LIVE


def enrol(
    session: Session,
    registration: Registration,
    thing_name: str,
    actor: Actor,
    *,
    allow_reprovision: bool,
    hashing: SerialHashing | None,
) -> Enrolled:
    """Bind a device to the resources that fleet provisioning created for it. A repeat changes nothing.

    An advisory lock serialises the enrolments of a serial number. Another concurrent change of the same rows
    raises an IntegrityError or a StaleBindingError, and nothing is written: repeat the call.

    Raises:
        EnrolmentDeniedError: the device of the serial number was decommissioned.
        EnrolmentConflictError: the certificate or its secret is bound already, or may not replace the bound
            one.
    """
    digest = sha256(_LOCKS + thing_name.encode()).digest()
    session.exec(select(func.pg_advisory_xact_lock(int.from_bytes(digest[:8], signed=True))))
    names = deciding_names(thing_name, hashing)
    deciding = session.exec(DECIDING_BINDING, params=names).first()
    if deciding is None:
        created = _enrol_first(session, registration, thing_name, actor)
        return Enrolled(created, already_provisioned=False, follow_up_due=True)
    # Only a live binding is locked: an erasure locks the state of a decommissioned device before its binding,
    # so that a lock here could be a deadlock.
    binding = session.exec(
        select(AwsThingBinding)
        .where(AwsThingBinding.id == deciding.id, col(AwsThingBinding.deleted_at).is_(None))
        .with_for_update()
        .execution_options(populate_existing=True)
    ).first()
    if binding is None:
        raise EnrolmentDeniedError(Denial.DECOMMISSIONED)
    # All transactions lock a binding's row before its state's, so that none of them deadlock.
    state = lock_or_create_state(session, _state(binding.device_id, registration))
    if state.decommissioned_at:
        raise EnrolmentDeniedError(Denial.DECOMMISSIONED)
    arn = registration.certificate_arn
    if arn == binding.certificate_arn or retired_from(session, arn) == binding.id:
        # The platform sends the events of the devices that it provisioned itself.
        due = binding.provisioned_via_jitp and (
            state.event_id is None or bool(pending_retirements(session, binding.device_id))
        )
        return Enrolled(binding, already_provisioned=True, follow_up_due=due)
    if not allow_reprovision:
        raise EnrolmentConflictError(
            "the device has another certificate and may not enrol again: ALLOW_REPROVISION is off"
        )
    if binding.provisioning_status is not ProvisioningStatus.ACTIVE:
        raise EnrolmentConflictError(
            f"the platform is provisioning this serial number: its binding is {binding.provisioning_status}"
        )
    replaced = _replace(session, binding, registration, actor)
    return Enrolled(replaced, already_provisioned=True, follow_up_due=True)


def activation_of(binding: AwsThingBinding) -> LifecycleEvent:
    """Return the event that makes a device's workflow report its status and delete replaced certificates."""
    device = Device(device_id=binding.device_id, tenant_id=binding.tenant_id, thing_name=binding.thing_name)
    assert binding.certificate_arn is not None  # noqa: S101  # an enrolled device has one
    return activation(device, binding.id, binding.certificate_arn, binding.created_at)


def expiring_query(
    until: datetime, after: tuple[datetime, UUID] | None, at_most: int
) -> SelectOfScalar[AwsThingBinding]:
    """Return the query for live bindings whose claim certificate expires by a time, the earliest first.

    Args:
        until: the latest expiry.
        after: expiry and binding id after which the page starts, None for the first page.
        at_most: the page size.
    """
    expires_at, binding_id = col(AwsThingBinding.claim_certificate_expires_at), col(AwsThingBinding.id)
    query = (
        select(AwsThingBinding)
        .where(col(AwsThingBinding.deleted_at).is_(None), expires_at.is_not(None), expires_at <= until)
        .order_by(expires_at, binding_id)
        .limit(at_most)
    )
    return query if after is None else query.where(tuple_(expires_at, binding_id) > after)


def lock_if_expiring(session: Session, found: AwsThingBinding) -> bool:
    """Lock a binding until the transaction ends.

    Returns:
        False if the binding was deleted or its claim certificate was replaced after it was read.
    """
    locked = session.exec(
        select(AwsThingBinding.id)
        .where(
            AwsThingBinding.id == found.id,
            AwsThingBinding.claim_certificate_expires_at == found.claim_certificate_expires_at,
            col(AwsThingBinding.deleted_at).is_(None),
        )
        .with_for_update(key_share=True)
    ).first()
    return locked is not None


def enrolled_without_follow_up(
    session: Session, after: UUID | None, at_most: int
) -> Sequence[AwsThingBinding]:
    """Return a page of enrolled devices whose workflow never ran, or has a replaced certificate to delete."""
    pending_retirement = exists().where(
        col(RetiredCertificate.device_id) == AwsThingBinding.device_id,
        col(RetiredCertificate.completed_at).is_(None),
    )
    query = (
        select(AwsThingBinding)
        .outerjoin(DeviceStateRow, col(DeviceStateRow.device_id) == col(AwsThingBinding.device_id))
        .where(
            AwsThingBinding.provisioning_status == ProvisioningStatus.ACTIVE,
            col(AwsThingBinding.deleted_at).is_(None),
            col(AwsThingBinding.provisioned_via_jitp),
            # Enrolment always records one; a row written by another system may lack it.
            col(AwsThingBinding.certificate_arn).is_not(None),
            or_(col(DeviceStateRow.event_id).is_(None), pending_retirement),
        )
        .order_by(col(AwsThingBinding.id))
        .limit(at_most)
    )
    if after is not None:
        query = query.where(col(AwsThingBinding.id) > after)
    return session.exec(query).all()


def _enrol_first(
    session: Session, registration: Registration, thing_name: str, actor: Actor
) -> AwsThingBinding:
    _require_free(session, registration, None)
    device_id = uuid4()
    # The state stores tenant and serial number, so that events with different ones are rejected.
    lock_or_create_state(session, _state(device_id, registration))
    write_enrolled(session, device_id, registration)
    binding = open_binding(
        session,
        device_id=device_id,
        tenant_id=registration.tenant_id,
        thing_name=thing_name,
        actor=actor,
        status=ProvisioningStatus.ACTIVE,
        reason="enrolled",
        thing_arn=registration.thing_arn,
        certificate_arn=registration.certificate_arn,
        certificate_secret_arn=registration.certificate_secret_arn,
        claim_certificate_expires_at=registration.claim_certificate_expires_at,
        provisioned_via_jitp=True,
    )
    if event := provisioned_event(binding):
        enqueue(session, event, binding.id)
    return binding


def _replace(
    session: Session, binding: AwsThingBinding, registration: Registration, actor: Actor
) -> AwsThingBinding:
    """Replace the certificate of a live binding.

    A binding that the saga provisioned is marked as provisioned by fleet provisioning: a caller named its
    resources, so that their ownership must be confirmed before they are deleted.
    """
    _require_free(session, registration, binding)
    retire(session, binding, registration.certificate_secret_arn)
    write_enrolled(session, binding.device_id, registration)
    binding = update_binding(
        session,
        binding,
        actor,
        certificate_arn=registration.certificate_arn,
        certificate_secret_arn=registration.certificate_secret_arn,
        claim_certificate_expires_at=registration.claim_certificate_expires_at,
        provisioned_via_jitp=True,
    )
    if event := provisioned_event(binding):
        enqueue(session, event, binding.id, id_of_certificate(registration.certificate_arn))
    return binding


def _require_free(session: Session, registration: Registration, own: AwsThingBinding | None) -> None:
    certificate_arn, secret_arn = registration.certificate_arn, registration.certificate_secret_arn
    bound = col(AwsThingBinding.certificate_arn) == certificate_arn
    if secret_arn is not None:
        bound = or_(bound, col(AwsThingBinding.certificate_secret_arn) == secret_arn)
    others = and_(bound, col(AwsThingBinding.deleted_at).is_(None))
    if own is not None:
        others = and_(others, col(AwsThingBinding.id) != own.id)
    # Bindings are queried before retired certificates: a certificate moves from the first to the second only,
    # so that this order finds it in one of them.
    if session.exec(select(AwsThingBinding.id).where(others).limit(1)).first():
        raise EnrolmentConflictError("the certificate or its secret is bound to a device already")
    if retired_from(session, certificate_arn):
        raise EnrolmentConflictError("the certificate was replaced and is deleted: enrol with a new one")
    if own is not None and secret_arn is not None:
        try:
            reclaim_secret(session, own.device_id, secret_arn)
        except SecretBeingErasedError:
            raise EnrolmentConflictError(
                "the secret is deleted with an earlier certificate: enrol with another secret"
            ) from None


def _state(device_id: UUID, registration: Registration) -> DeviceState:
    return DeviceState(
        device_id=device_id, tenant_id=registration.tenant_id, serial_number=registration.serial_number
    )
