"""Reading bindings, and changing them in the only ways allowed: guarded, versioned, audited."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypedDict, Unpack
from uuid import UUID

from sqlalchemy import ColumnElement, String, bindparam, or_, update
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from db.models import AwsThingBinding, BindingTransition, serial_number_of_thing
from domain.erasure import SerialHashing
from domain.outgoing_event import AwsThingProvisioned
from domain.provisioning_status import ProvisioningStatus


class AwsColumns(TypedDict, total=False):
    """The columns of a binding that name its AWS resources and where they come from."""

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


@dataclass(frozen=True)
class BindingFilter:
    """Which bindings to list; None lets all pass."""

    status: ProvisioningStatus | None = None
    device_id: UUID | None = None
    tenant_id: UUID | None = None
    serial_number: str | None = None

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        """The conditions of the query, one for each filter that is set."""
        wanted = (
            (col(AwsThingBinding.provisioning_status), self.status),
            (col(AwsThingBinding.device_id), self.device_id),
            (col(AwsThingBinding.tenant_id), self.tenant_id),
            (serial_number_of_thing, self.serial_number),
        )
        return [column == value for column, value in wanted if value is not None]


class IllegalTransitionError(RuntimeError):
    """A binding cannot go from its status to the one asked for."""


class StaleBindingError(RuntimeError):
    """Someone else changed the binding since it was read; read it again."""


@dataclass(frozen=True)
class Actor:
    """Who makes a change, for the who-columns and the audit."""

    name: str
    workflow_id: str | None = None
    run_id: str | None = None


def newest_binding(session: Session, device_id: UUID) -> AwsThingBinding | None:
    """The device's binding: the live one, else the last that was."""
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
            # Bound as null where nothing was ever erased, which no row's is equal to.
            col(AwsThingBinding.serial_hash) == bindparam("serial_hash", type_=String),
        )
    )
    .order_by(col(AwsThingBinding.deleted_at).desc().nulls_first(), col(AwsThingBinding.created_at).desc())
    .limit(1)
)
"""Asks for the binding that decides whether a serial may enrol: the live one, else the newest."""


def deciding_names(thing_name: str, hashing: SerialHashing | None) -> dict[str, str | None]:
    """What the deciding binding is asked for by: its name, or what stands for that once it is erased.

    Args:
        thing_name: the name, made of tenant and serial number.
        hashing: what stands for it; None where nothing was ever erased.
    """
    return {"thing_name": thing_name, "serial_hash": hashing.of(thing_name) if hashing else None}


def live_binding_of_thing(session: Session, thing_name: str) -> AwsThingBinding | None:
    """The live binding that bears this Thing name."""
    return session.exec(
        select(AwsThingBinding).where(
            AwsThingBinding.thing_name == thing_name, col(AwsThingBinding.deleted_at).is_(None)
        )
    ).first()


def bindings_query(
    wanted: BindingFilter, *, after: UUID | None, limit: int
) -> SelectOfScalar[AwsThingBinding]:
    """Return the query for a page of bindings, in the order of their ids, that begins after one of them."""
    query = select(AwsThingBinding).where(*wanted.conditions).order_by(col(AwsThingBinding.id)).limit(limit)
    if after is not None:
        query = query.where(col(AwsThingBinding.id) > after)
    return query


def transitions_of(session: Session, binding_id: UUID) -> Sequence[BindingTransition]:
    """Every status the binding was given, in order."""
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
    """Make a device's binding.

    It is `Pending`; `Decommissioned` for one that must never be provisioned; `Active` for one that fleet
    provisioning made, all of whose `columns` are known.
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
    """Change columns of a binding, not its status.

    Raises:
        StaleBindingError: the binding was changed since it was read.
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
    """Give a binding its next status, with its audit row.

    Raises:
        IllegalTransitionError: the binding's status does not lead there.
        StaleBindingError: the binding was changed since it was read.
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
    """The station a failed binding failed at, to which a retry returns it."""
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


def event_subject(binding: AwsThingBinding) -> dict[str, Any]:
    """Whom an event about a binding is about."""
    return {
        "device_id": binding.device_id,
        "tenant_id": binding.tenant_id,
        "binding_id": binding.id,
        "thing_name": binding.thing_name,
    }


def provisioned_event(binding: AwsThingBinding) -> AwsThingProvisioned | None:
    """What there is to tell of a binding that has become Active, or that has another certificate."""
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
            f"binding {binding.id} was changed by another since version {binding.version}"
        )
    return changed
