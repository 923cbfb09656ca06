"""The state of a `DeviceLifecycle` run, passed to the next run when the history has grown long."""

from datetime import datetime
from typing import Final, Self
from uuid import UUID

from pydantic import BaseModel
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue

from domain.device_state import DeviceState
from domain.fault import Fault
from domain.lifecycle_event import LifecycleEvent
from domain.model import CamelModel
from domain.names import device_of_workflow
from domain.provisioning_status import ProvisioningStatus
from domain.saga import Device, DeviceSnapshot, TeardownPlan

NO_ARGUMENT: Final = RawValue(Payload())
WAITING_FOR_EVENT: Final = "waiting for an event"


class RejectedSignal(CamelModel):
    """A signal that changed nothing, and why. The value that it carried is not stored."""

    at: datetime
    signal: str
    field: str
    reason: str


class LastError(CamelModel):
    """The newest error of the device; the reason ends with what an operator can do."""

    code: str
    reason: str

    @classmethod
    def of(cls, snapshot: DeviceSnapshot) -> Self | None:
        """Return the error that the binding records, if any."""
        if snapshot.failure_code is None or snapshot.failure_reason is None:
            return None
        return cls(code=snapshot.failure_code, reason=snapshot.failure_reason)


class LifecycleState(BaseModel):
    """The state of a run, and predicates on it."""

    queued: list[LifecycleEvent] = []
    """Valid events that are not applied yet, in order of arrival."""
    rejected: list[RejectedSignal] = []
    """The newest rejected signals."""
    rejected_count: int = 0
    """The number of signals rejected since the first run of this chain of runs."""
    retries_received: int = 0
    retries_handled: int = 0
    resumes: bool = False
    """True in a run that continues an earlier one, until it has read the device's snapshot."""
    snapshot: DeviceSnapshot = DeviceSnapshot()
    """The device as it was in the database after the last applied event."""
    status: ProvisioningStatus | None = None
    """The status of the binding; newer than that of the snapshot once a step has completed."""
    step: str = WAITING_FOR_EVENT
    arn: str | None = None
    """The ARN that the last completed step returned."""
    last_error: LastError | None = None
    teardown: TeardownPlan | None = None

    @classmethod
    def at_start(cls, argument: RawValue) -> Self:
        """Return the state that the previous run passed on, or that of a device without history.

        A client's argument is ignored (see docs/reference.md, "Temporal"): a wrong one must not block the
        device. A run that a cron schedule continues has a client's argument too, so it may be invalid here
        as well.
        """
        if workflow.info().continued_run_id is None:
            return cls()
        try:
            return cls.model_validate_json(argument.payload.data)
        except ValueError:
            return cls()

    @property
    def device_id(self) -> UUID | None:
        """The device that the workflow id names; None where it is not the id of a device's workflow."""
        return device_of_workflow(workflow.info().workflow_id)

    @property
    def device(self) -> Device | None:
        """The device, once its first event has been applied."""
        return self.snapshot.device

    @property
    def has_work(self) -> bool:
        """Return whether anything is left to do before the run may end."""
        return self.resumes or self.retry_requested or bool(self.queued)

    @property
    def retry_requested(self) -> bool:
        """Return whether an operator's retry is pending."""
        return self.retries_received > self.retries_handled

    @property
    def decommission_queued(self) -> bool:
        """Return whether a decommission is pending; no step may begin before it."""
        return any(event.is_decommission for event in self.queued)

    @property
    def is_provisioning(self) -> bool:
        """Return whether the binding is on its way to Active, or failed on that way."""
        return self.status is not None and (
            self.status.in_progress or self.status is ProvisioningStatus.FAILED
        )

    @property
    def has_status_to_report(self) -> bool:
        """Return whether the shadow lacks the desired status, and no queued event may change that status."""
        return (
            self.status is ProvisioningStatus.ACTIVE
            and self.snapshot.status_to_report is not None
            and not self.queued
        )

    @property
    def has_certificates_to_erase(self) -> bool:
        """Return whether an enrolment has replaced certificates that are not erased yet."""
        return self.status is ProvisioningStatus.ACTIVE and self.snapshot.retired_certificates > 0

    @property
    def is_torn_down(self) -> bool:
        """Return whether nothing of the device is left in AWS."""
        return self.status in (None, ProvisioningStatus.DECOMMISSIONED)

    def mark_retries_handled(self, received: int | None = None) -> None:
        """Count retries as handled.

        Args:
            received: how many had been received when the handling began; None: all that have been received.
        """
        received = self.retries_received if received is None else received
        self.retries_handled = max(self.retries_handled, received)

    def find_fault(self, event: LifecycleEvent) -> Fault | None:
        """Return the field in which a valid event differs from this device, as far as that is known here."""
        if event.device_id != self.device_id:
            return Fault(field="deviceId", reason="is not the device of this workflow")
        if self.device is None:
            return None
        owner = DeviceState(
            device_id=self.device.device_id,
            tenant_id=self.device.tenant_id,
            serial_number=self.snapshot.serial_number,
        )
        return owner.fault_of(event)

    def log_fields(self) -> dict[str, str]:
        """Return the ids for a log line, as far as they are known."""
        ids = {
            "device_id": self.device_id,
            "tenant_id": self.device.tenant_id if self.device else None,
            "thing_name": self.device.thing_name if self.device else None,
        }
        return {name: str(value) for name, value in ids.items() if value is not None}
