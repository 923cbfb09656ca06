"""Queries of bindings, and their changes: each is guarded, versioned and audited."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypedDict, Unpack
from uuid import UUID

from sqlalchemy import ColumnElement, String, bindparam, or_, update
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from db.models import AwsThingBinding, BindingTransition, serial_number_of_thing
from domain.erasure import SerialHashing
from domain.outgoing_event import AwsThingProvisioned
from domain.provisioning_status import ProvisioningStatus


class AwsColumns(TypedDict, total=False):
    """The columns of a binding that identify its AWS resources and their origin."""

    thing_arn: str | None
    certificate_arn: str | None
    certificate_secret_arn: str | None
    claim_certificate_expires_at: datetime | None
    provisioned_via_jitp: bool


class FailureColumns(TypedDict):
    """The columns of a binding that hold its last error."""

    failure_code: str | None
    failure_reason: str | None


class BindingColumns(AwsColumns, total=False):
    """The columns of a binding that a change may set beside its status."""

    thing_name: str | None
    serial_hash: str | None
    failure_code: str | None
    failure_reason: str | None
    last_shadow_reported_at: datetime | None


NO_FAILURE: Final[FailureColumns] = {"failure_code": None, "failure_reason": None}
"""Clears the last error of a binding."""


class EventSubject(TypedDict):
    """The fields that every event about a binding has."""

    device_id: UUID
    tenant_id: UUID | None
    binding_id: UUID
    thing_name: str | None


@dataclass(frozen=True)
class BindingFilter:
    """Criteria for a list of bindings. None matches every value."""

    status: ProvisioningStatus | None = None
    device_id: UUID | None = None
    tenant_id: UUID | None = None
    serial_number: str | None = None

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the conditions of the query, one for each criterion that is set."""
        criteria = (
            (col(AwsThingBinding.provisioning_status), self.status),
            (col(AwsThingBinding.device_id), self.device_id),
            (col(AwsThingBinding.tenant_id), self.tenant_id),
            (serial_number_of_thing, self.serial_number),
        )
        return [column == value for column, value in criteria if value is not None]


class IllegalTransitionError(RuntimeError):
    """The binding's status does not allow the transition."""


class StaleBindingError(RuntimeError):
    """Another transaction changed the binding after it was read. Read it again."""


@dataclass(frozen=True)
class Actor:
    """The author of a change, stored in the row's `…_by` columns and in the audit."""

    name: str
    workflow_id: str | None = None
    run_id: str | None = None


def newest_binding(session: Session, device_id: UUID) -> AwsThingBinding | None:
    """Return the device's live binding, or else its last deleted one."""
    return session.exec(
        select(AwsThingBinding)
        .where(AwsThingBinding.device_id == device_id)
        .order_by(
            col(AwsThingBinding.deleted_at).desc().nulls_first(), col(AwsThingBinding.created_at).desc()
        )
        .limit(1)
    ).first()


DECIDING_BINDING: Final = (
    select(AwsThingBinding)
    .where(
        or_(
            col(AwsThingBinding.thing_name) == bindparam("thing_name", type_=String),
            # Null if there is no hash key. No row's hash is equal to null.
            col(AwsThingBinding.serial_hash) == bindparam("serial_hash", type_=String),
        )
    )
    .order_by(col(AwsThingBinding.deleted_at).desc().nulls_first(), col(AwsThingBinding.created_at).desc())
    .limit(1)
)
"""The query for the binding that decides whether a serial number may enrol: the live one, or the newest."""


def deciding_names(thing_name: str, hashing: SerialHashing | None) -> dict[str, str | None]:
    """Return the parameters of `DECIDING_BINDING`: the Thing name, and the hash that replaces it on erasure.

    Args:
        thing_name: the Thing name of tenant and serial number.
        hashing: computes the hash; None if no hash key is set.
    """
    return {"thing_name": thing_name, "serial_hash": hashing.of(thing_name) if hashing else None}


def live_binding_of_thing(session: Session, thing_name: str) -> AwsThingBinding | None:
    """Return the live binding with this Thing name."""
    return session.exec(
        select(AwsThingBinding).where(
            AwsThingBinding.thing_name == thing_name, col(AwsThingBinding.deleted_at).is_(None)
        )
    ).first()


def bindings_query(
    criteria: BindingFilter, *, after: UUID | None, limit: int
) -> SelectOfScalar[AwsThingBinding]:
    """Return the query for a page of bindings in the order of their ids, starting after the id `after`."""
    query = select(AwsThingBinding).where(*criteria.conditions).order_by(col(AwsThingBinding.id)).limit(limit)
    if after is not None:
        query = query.where(col(AwsThingBinding.id) > after)
    return query


def transitions_of(session: Session, binding_id: UUID) -> Sequence[BindingTransition]:
    """Return all status changes of the binding, the oldest first."""
    return session.exec(
        select(BindingTransition)
        .where(BindingTransition.binding_id == binding_id)
        .order_by(col(BindingTransition.id))
    ).all()


def open_binding(
    session: Session,
    *,
    device_id: UUID,
    tenant_id: UUID | None,
    thing_name: str | None,
    actor: Actor,
    status: ProvisioningStatus = ProvisioningStatus.PENDING,
    reason: str | None = None,
    **columns: Unpack[AwsColumns],
) -> AwsThingBinding:
    """Create the binding of a device, with its audit row.

    Args:
        session: in a transaction.
        device_id: the device.
        tenant_id: its tenant.
        thing_name: its Thing name, None if another device's live binding has it.
        actor: the author of the change.
        status: `Pending`, `Decommissioned` for a device that must never be provisioned, or `Active` for a
            device whose resources fleet provisioning has created.
        reason: the reason for the audit.
        **columns: the resources, known if the status is `Active`.
    """
    binding = AwsThingBinding(
        device_id=device_id,
        tenant_id=tenant_id,
        thing_name=thing_name,
        provisioning_status=status,
        created_by=actor.name,
        **columns,
    )
    if status is ProvisioningStatus.DECOMMISSIONED:
        binding.deleted_at, binding.deleted_by = binding.created_at, actor.name
    session.add(binding)
    session.flush()
    session.add(_transition(binding, None, actor, reason))
    return binding


def update_binding(
    session: Session, binding: AwsThingBinding, actor: Actor, **changes: Unpack[BindingColumns]
) -> AwsThingBinding:
    """Change columns of a binding other than its status.

    Raises:
        StaleBindingError: another transaction changed the binding after it was read.
    """
    return _update(session, binding, actor, dict(changes))


def advance(
    session: Session,
    binding: AwsThingBinding,
    to: ProvisioningStatus,
    actor: Actor,
    *,
    reason: str | None = None,
    **changes: Unpack[BindingColumns],
) -> AwsThingBinding:
    """Change the status of a binding, and write the audit row.

    Raises:
        IllegalTransitionError: the binding's status does not allow the transition.
        StaleBindingError: another transaction changed the binding after it was read.
    """
    origin = binding.provisioning_status
    if not origin.may_become(to):
        raise IllegalTransitionError(f"binding {binding.id} is {origin} and cannot become {to}")
    columns: dict[str, object] = {**changes, "provisioning_status": to}
    if to is ProvisioningStatus.DECOMMISSIONED:
        columns |= {"deleted_at": datetime.now(UTC), "deleted_by": actor.name}
    changed = _update(session, binding, actor, columns)
    session.add(_transition(changed, origin, actor, reason))
    return changed


def failed_at(session: Session, binding: AwsThingBinding) -> ProvisioningStatus:
    """Return the status in which a Failed binding failed, to which a retry returns it."""
    origin = session.exec(
        select(BindingTransition.from_status)
        .where(
            BindingTransition.binding_id == binding.id,
            BindingTransition.to_status == ProvisioningStatus.FAILED,
        )
        .order_by(col(BindingTransition.id).desc())
        .limit(1)
    ).first()
    return ProvisioningStatus(origin or ProvisioningStatus.PENDING)


def event_subject(binding: AwsThingBinding) -> EventSubject:
    """Return the fields that every event about this binding has."""
    return {
        "device_id": binding.device_id,
        "tenant_id": binding.tenant_id,
        "binding_id": binding.id,
        "thing_name": binding.thing_name,
    }


def provisioned_event(binding: AwsThingBinding) -> AwsThingProvisioned | None:
    """Return the event for a binding that became Active or got another certificate. None if not Active."""
    if (
        binding.provisioning_status is not ProvisioningStatus.ACTIVE
        or not binding.thing_arn
        or not binding.certificate_arn
    ):
        return None
    return AwsThingProvisioned(
        **event_subject(binding),
        thing_arn=binding.thing_arn,
        certificate_arn=binding.certificate_arn,
        certificate_secret_arn=binding.certificate_secret_arn,
        provisioned_via_jitp=binding.provisioned_via_jitp,
    )


def _transition(
    binding: AwsThingBinding, origin: ProvisioningStatus | None, actor: Actor, reason: str | None
) -> BindingTransition:
    return BindingTransition(
        binding_id=binding.id,
        device_id=binding.device_id,
        tenant_id=binding.tenant_id,
        from_status=origin,
        to_status=binding.provisioning_status,
        actor=actor.name,
        workflow_id=actor.workflow_id,
        run_id=actor.run_id,
        reason=reason,
    )


def _update(
    session: Session, binding: AwsThingBinding, actor: Actor, columns: dict[str, object]
) -> AwsThingBinding:
    changed: AwsThingBinding | None = session.exec(
        update(AwsThingBinding)
        .where(col(AwsThingBinding.id) == binding.id, col(AwsThingBinding.version) == binding.version)
        .values(**columns, version=binding.version + 1, modified_at=datetime.now(UTC), modified_by=actor.name)
        .returning(AwsThingBinding)
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()
    if changed is None:
        raise StaleBindingError(
            f"binding {binding.id} was changed after version {binding.version} was read: read it again"
        )
    return changed
