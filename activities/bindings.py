"""The only writer of checkpoints, and the steps that are nothing but a checkpoint."""

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
from db.outbox import put
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
    """Checkpoints of the saga, in the bridge's database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def open_for_step(self, device: Device) -> AwsThingBinding:
        """The binding a provisioning step is about to work on.

        Raises:
            ApplicationError: there is none, or it has failed or ended: nothing may be done in AWS for it.
        """
        binding = self.read(device.device_id)
        if not (binding.provisioning_status.in_progress or binding.provisioning_status is _ACTIVE):
            raise PermanentError(
                FailureCode.UNEXPECTED,
                f"a provisioning step was asked of a {binding.provisioning_status} binding",
            )
        return binding

    def read(self, device_id: UUID) -> AwsThingBinding:
        """The device's binding as it stands."""
        with Session(self._engine) as session:
            return _required(newest_binding(session, device_id))

    def checkpoint(
        self,
        binding: AwsThingBinding,
        to: ProvisioningStatus,
        *,
        reason: str | None = None,
        **changes: Unpack[BindingColumns],
    ) -> AwsThingBinding:
        """Commit the binding's next status, guarded by the version it was read at, and count it."""
        with transaction(self._engine) as session:
            changed = advance(session, binding, to, actor(), reason=reason, **changes)
            if event := provisioned_event(changed):
                put(session, event, changed.id)
        if counted := _COUNTED.get((binding.provisioning_status, to)):
            counted.add(changed.tenant_id, activity.info().activity_type)
        return changed

    def update_binding(self, binding: AwsThingBinding, **changes: Unpack[BindingColumns]) -> AwsThingBinding:
        """Commit something about the binding that is no change of status."""
        with transaction(self._engine) as session:
            return update_binding(session, binding, actor(), **changes)

    def claim_name(self, binding: AwsThingBinding, name: str) -> AwsThingBinding:
        """Give the binding the Thing name it was denied when it was made.

        Raises:
            ApplicationError: another device holds the serial number; retryable where that one is being
                decommissioned.
        """
        with transaction(self._engine) as session:
            holder = live_binding_of_thing(session, name)
            if holder is None:
                return update_binding(session, binding, actor(), thing_name=name)
            state = lock_state(session, holder.device_id)
        what = f"the serial number is bound to device {holder.device_id}"
        if state is not None and state.decommissioned_at is not None:
            raise RetryLaterError("SerialBeingReleased", f"{what}, which is being decommissioned", seconds=5)
        raise PermanentError(FailureCode.SERIAL_BOUND_TO_ANOTHER_DEVICE, what)

    def retired_certificates(self, device_id: UUID) -> Sequence[RetiredCertificate]:
        """The device's replaced certificates of which something may be left in AWS."""
        with Session(self._engine) as session:
            return pending_retirements(session, device_id)

    def begin_retirement(self, retired: RetiredCertificate, kept_reason: str | None) -> RetiredCertificate:
        """Commit whether a replaced certificate is erased, before anything of it is undone."""
        with transaction(self._engine) as session:
            return begin_retirement(session, retired, kept_reason)

    def complete_retirement(self, retired: RetiredCertificate, kept_reason: str | None) -> None:
        """Commit that a replaced certificate is erased, or why it was left."""
        with transaction(self._engine) as session:
            complete_retirement(session, retired, kept_reason)

    @activity.defn(name="resume_binding", no_thread_cancel_exception=True)
    def resume_binding(self, device: Device) -> StepResult:
        """Take a failed binding back to where it failed, for a retry."""
        with transaction(self._engine) as session:
            binding = _required(newest_binding(session, device.device_id))
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
        """Record that provisioning stopped, and tell the world."""
        with transaction(self._engine) as session:
            binding = _required(newest_binding(session, report.device.device_id))
            origin = binding.provisioning_status
            fails = origin.may_become(ProvisioningStatus.FAILED)
            if fails:
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
                # The version tells one failure of a binding from its next.
                put(session, event, binding.id, binding.version)
        if fails:
            FAILED.add(binding.tenant_id, activity.info().activity_type, reason=report.code)
        return StepResult(status=binding.provisioning_status)

    @activity.defn(name="record_error", no_thread_cancel_exception=True)
    def record_error(self, report: FailureReport) -> StepResult:
        """Note what went wrong on a binding that does not become Failed for it."""
        with transaction(self._engine) as session:
            binding = _required(newest_binding(session, report.device.device_id))
            if (binding.failure_code, binding.failure_reason) != (report.code, report.reason):
                binding = update_binding(
                    session, binding, actor(), failure_code=report.code, failure_reason=report.reason
                )
            return StepResult(status=binding.provisioning_status)

    @activity.defn(name="close_binding", no_thread_cancel_exception=True)
    def close_binding(self, plan: TeardownPlan) -> StepResult:
        """End the binding, and with it the serial number's admission, now that nothing is left in AWS."""
        with transaction(self._engine) as session:
            binding = _required(newest_binding(session, plan.device.device_id))
            ends = binding.provisioning_status is not ProvisioningStatus.DECOMMISSIONED
            if ends:
                kept = plan.kept
                reason = f"left in AWS, as not this Thing's alone: {', '.join(kept)}" if kept else None
                binding = advance(
                    session,
                    binding,
                    ProvisioningStatus.DECOMMISSIONED,
                    actor(),
                    reason=reason,
                    **NO_FAILURE,
                )
                put(session, AwsThingDecommissioned(**event_subject(binding), kept=kept), binding.id)
            complete_all_retirements(session, binding.device_id, plan.kept)
            mark_decommissioned(session, binding.device_id)
            delete_delta(session, binding.device_id)
        if ends:
            DECOMMISSIONED.add(binding.tenant_id, activity.info().activity_type)
        return StepResult(status=binding.provisioning_status)


_ACTIVE = ProvisioningStatus.ACTIVE
# By where a checkpoint leads from and to: back to ThingCreated no Thing is created.
_COUNTED: Final[Mapping[tuple[ProvisioningStatus, ProvisioningStatus], Count]] = {
    (ProvisioningStatus.PENDING, ProvisioningStatus.THING_CREATED): THINGS_CREATED,
    (ProvisioningStatus.THING_CREATED, ProvisioningStatus.CERT_ISSUED): CERTIFICATES_ISSUED,
    (ProvisioningStatus.SECRET_STORED, ProvisioningStatus.ACTIVE): ACTIVATED,
}


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """One transaction; what the binding's rules refuse in it is refused for good."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        try:
            yield session
        except IllegalTransitionError as error:
            raise PermanentError(FailureCode.UNEXPECTED, str(error)) from None


def actor() -> Actor:
    """Who changes rows from here: the workflow on whose behalf the activity runs."""
    info = activity.info()
    workflow_id = info.workflow_id or info.activity_type
    return Actor(name=workflow_id, workflow_id=info.workflow_id, run_id=info.workflow_run_id)


def _required(binding: AwsThingBinding | None) -> AwsThingBinding:
    if binding is None:
        raise PermanentError(FailureCode.UNEXPECTED, "the device has no binding")
    return binding
