"""Checkpoints of the saga in the database, and the activities that only write one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Unpack
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session
from temporalio import activity

from db.bindings import (
    NO_FAILURE,
    Actor,
    BindingColumns,
    IllegalTransitionError,
    advance,
    event_subject,
    failed_at,
    live_binding_of_thing,
    newest_binding,
    provisioned_event,
    update_binding,
)
from db.device_states import lock_state
from db.devices import mark_decommissioned
from db.models import AwsThingBinding, RetiredCertificate
from db.outbox import enqueue
from db.retired_certificates import (
    begin_retirement,
    complete_all_retirements,
    complete_retirement,
    pending_retirements,
)
from db.shadow_deltas import delete_delta
from domain.failure import FailureCode, PermanentError, RetryLaterError
from domain.outgoing_event import (
    AwsThingDecommissioned,
    AwsThingProvisioningFailed,
)
from domain.provisioning_status import ProvisioningStatus
from domain.saga import Device, FailureReport, StepResult, TeardownPlan
from observability.metrics import (
    ACTIVATED,
    CERTIFICATES_ISSUED,
    DECOMMISSIONED,
    FAILED,
    THINGS_CREATED,
    Count,
)


class BindingActivities:
    """Reads the bindings of devices, and changes each in one transaction per checkpoint."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def open_for_step(self, device: Device) -> AwsThingBinding:
        """Return the binding for a provisioning step.

        Raises:
            PermanentError: the device has no binding, or its binding is Failed or Decommissioned. No step
                may create anything in AWS for it.
        """
        binding = self.read(device.device_id)
        if not (binding.provisioning_status.in_progress or binding.provisioning_status is _ACTIVE):
            raise PermanentError(
                FailureCode.UNEXPECTED,
                f"a provisioning step cannot run for a binding that is {binding.provisioning_status}",
            )
        return binding

    def read(self, device_id: UUID) -> AwsThingBinding:
        """Return the device's current binding.

        Raises:
            PermanentError: the device has no binding.
        """
        with Session(self._engine) as session:
            return _existing(newest_binding(session, device_id))

    def checkpoint(
        self,
        binding: AwsThingBinding,
        to: ProvisioningStatus,
        *,
        reason: str | None = None,
        **changes: Unpack[BindingColumns],
    ) -> AwsThingBinding:
        """Commit the binding's next status with its event and its audit row, and count it.

        The binding's version guards the change: it fails if the binding was changed since it was read.

        Raises:
            PermanentError: the binding's status does not allow the next one.
            StaleBindingError: the binding was changed since it was read.
        """
        with transaction(self._engine) as session:
            changed = advance(session, binding, to, actor(), reason=reason, **changes)
            if event := provisioned_event(changed):
                enqueue(session, event, changed.id)
        if count := _COUNTS.get((binding.provisioning_status, to)):
            count.add(changed.tenant_id, activity.info().activity_type)
        return changed

    def update_binding(self, binding: AwsThingBinding, **changes: Unpack[BindingColumns]) -> AwsThingBinding:
        """Commit changes of other columns than the status.

        Raises:
            StaleBindingError: the binding was changed since it was read.
        """
        with transaction(self._engine) as session:
            return update_binding(session, binding, actor(), **changes)

    def claim_name(self, binding: AwsThingBinding, name: str) -> AwsThingBinding:
        """Record the Thing name in a binding that was created without it, because another device had it.

        Raises:
            RetryLaterError: the other device is being decommissioned.
            PermanentError: the other device still has the serial number.
        """
        with transaction(self._engine) as session:
            holder = live_binding_of_thing(session, name)
            if holder is None:
                return update_binding(session, binding, actor(), thing_name=name)
            state = lock_state(session, holder.device_id)
        holder_text = f"the serial number belongs to device {holder.device_id}"
        if state is not None and state.decommissioned_at is not None:
            raise RetryLaterError(
                "SerialBeingReleased", f"{holder_text}, which is being decommissioned", seconds=5
            )
        raise PermanentError(FailureCode.SERIAL_BOUND_TO_ANOTHER_DEVICE, holder_text)

    def retired_certificates(self, device_id: UUID) -> Sequence[RetiredCertificate]:
        """Return the device's replaced certificates that are not erased completely."""
        with Session(self._engine) as session:
            return pending_retirements(session, device_id)

    def begin_retirement(self, retired: RetiredCertificate, kept_reason: str | None) -> RetiredCertificate:
        """Commit the decision to erase or to keep a replaced certificate, before it is changed in AWS."""
        with transaction(self._engine) as session:
            return begin_retirement(session, retired, kept_reason)

    def complete_retirement(self, retired: RetiredCertificate, kept_reason: str | None) -> None:
        """Commit that a replaced certificate is erased, or why it is kept."""
        with transaction(self._engine) as session:
            complete_retirement(session, retired, kept_reason)

    @activity.defn(name="resume_binding", no_thread_cancel_exception=True)
    def resume_binding(self, device: Device) -> StepResult:
        """Return a Failed binding to the status it had before the failure, for a retry."""
        with transaction(self._engine) as session:
            binding = _existing(newest_binding(session, device.device_id))
            if binding.provisioning_status is ProvisioningStatus.FAILED:
                binding = advance(
                    session,
                    binding,
                    failed_at(session, binding),
                    actor(),
                    reason="retry",
                    **NO_FAILURE,
                )
            return StepResult(status=binding.provisioning_status)

    @activity.defn(name="mark_failed", no_thread_cancel_exception=True)
    def mark_failed(self, report: FailureReport) -> StepResult:
        """Record that provisioning failed, and enqueue the event that reports it."""
        with transaction(self._engine) as session:
            binding = _existing(newest_binding(session, report.device.device_id))
            origin = binding.provisioning_status
            becomes_failed = origin.may_become(ProvisioningStatus.FAILED)
            if becomes_failed:
                binding = advance(
                    session,
                    binding,
                    ProvisioningStatus.FAILED,
                    actor(),
                    reason=f"{report.code}: {report.reason}",
                    failure_code=report.code,
                    failure_reason=report.reason,
                )
                event = AwsThingProvisioningFailed(
                    **event_subject(binding), failed_at=origin, code=report.code, reason=report.reason
                )
                # The version makes the event id differ from that of an earlier failure of the binding.
                enqueue(session, event, binding.id, binding.version)
        if becomes_failed:
            FAILED.add(binding.tenant_id, activity.info().activity_type, reason=report.code)
        return StepResult(status=binding.provisioning_status)

    @activity.defn(name="record_error", no_thread_cancel_exception=True)
    def record_error(self, report: FailureReport) -> StepResult:
        """Record an error in a binding without a change of its status."""
        with transaction(self._engine) as session:
            binding = _existing(newest_binding(session, report.device.device_id))
            if (binding.failure_code, binding.failure_reason) != (report.code, report.reason):
                binding = update_binding(
                    session, binding, actor(), failure_code=report.code, failure_reason=report.reason
                )
            return StepResult(status=binding.provisioning_status)

    @activity.defn(name="close_binding", no_thread_cancel_exception=True)
    def close_binding(self, plan: TeardownPlan) -> StepResult:
        """Record that the device is decommissioned, after everything that it owns in AWS was erased.

        From now on the serial number is denied, until it is provisioned under another device id.
        """
        with transaction(self._engine) as session:
            binding = _existing(newest_binding(session, plan.device.device_id))
            was_open = binding.provisioning_status is not ProvisioningStatus.DECOMMISSIONED
            if was_open:
                kept = plan.kept
                reason = f"kept in AWS, as not owned by this Thing alone: {', '.join(kept)}" if kept else None
                binding = advance(
                    session,
                    binding,
                    ProvisioningStatus.DECOMMISSIONED,
                    actor(),
                    reason=reason,
                    **NO_FAILURE,
                )
                enqueue(session, AwsThingDecommissioned(**event_subject(binding), kept=kept), binding.id)
            complete_all_retirements(session, binding.device_id, plan.kept)
            mark_decommissioned(session, binding.device_id)
            delete_delta(session, binding.device_id)
        if was_open:
            DECOMMISSIONED.add(binding.tenant_id, activity.info().activity_type)
        return StepResult(status=binding.provisioning_status)


_ACTIVE = ProvisioningStatus.ACTIVE
# The keys are the statuses before and after a checkpoint, because a return to ThingCreated creates no Thing.
_COUNTS: Final[Mapping[tuple[ProvisioningStatus, ProvisioningStatus], Count]] = {
    (ProvisioningStatus.PENDING, ProvisioningStatus.THING_CREATED): THINGS_CREATED,
    (ProvisioningStatus.THING_CREATED, ProvisioningStatus.CERT_ISSUED): CERTIFICATES_ISSUED,
    (ProvisioningStatus.SECRET_STORED, ProvisioningStatus.ACTIVE): ACTIVATED,
}


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """Open a session in one transaction.

    Raises:
        PermanentError: the status of a binding does not allow a change that the transaction made.
    """
    with Session(engine, expire_on_commit=False) as session, session.begin():
        try:
            yield session
        except IllegalTransitionError as error:
            raise PermanentError(FailureCode.UNEXPECTED, str(error)) from None


def actor() -> Actor:
    """Return the actor that changes rows in this activity: its workflow."""
    info = activity.info()
    workflow_id = info.workflow_id or info.activity_type
    return Actor(name=workflow_id, workflow_id=info.workflow_id, run_id=info.workflow_run_id)


def thing_name_of(subject: AwsThingBinding | Device) -> str:
    """Return the Thing name of a binding, or of the device that a step is for.

    Raises:
        PermanentError: the binding or the device has no Thing name.
    """
    if subject.thing_name is None:
        raise _null(subject, "thing_name")
    return subject.thing_name


def certificate_arn_of(binding: AwsThingBinding) -> str:
    """Return the ARN of a binding's certificate.

    Raises:
        PermanentError: the binding has no certificate.
    """
    if binding.certificate_arn is None:
        raise _null(binding, "certificate_arn")
    return binding.certificate_arn


def _null(subject: AwsThingBinding | Device, column: str) -> PermanentError:
    return PermanentError(FailureCode.UNEXPECTED, f"{column} of device {subject.device_id} is null")


def _existing(binding: AwsThingBinding | None) -> AwsThingBinding:
    if binding is None:
        raise PermanentError(FailureCode.UNEXPECTED, "the device has no binding")
    return binding
