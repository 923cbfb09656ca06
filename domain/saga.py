"""Messages of the device's workflow and its activities. Temporal stores them: a new field needs a default."""

from uuid import UUID

from domain.device_state import DesiredStatus
from domain.fault import Fault
from domain.lifecycle_event import LifecycleEvent
from domain.model import Message
from domain.provisioning_status import ProvisioningStatus


class Device(Message):
    """The device that a step works on."""

    device_id: UUID
    tenant_id: UUID | None
    thing_name: str | None


class ApplyEventRequest(Message):
    """Request to apply an event to the device's state. Without an event only the snapshot is read."""

    device_id: UUID
    event: LifecycleEvent | None = None


class DeviceSnapshot(Message):
    """The state of a device after an event is applied, from which the workflow decides its next step."""

    device: Device | None = None
    serial_number: str | None = None
    rejection: Fault | None = None
    status: ProvisioningStatus | None = None
    failure_code: str | None = None
    failure_reason: str | None = None
    decommissioned: bool = False
    status_to_report: DesiredStatus | None = None
    step_retry_seconds: float = 0.0
    """How long one step is retried; 0 only where there is no device, and so no step."""
    retired_certificates: int = 0
    """The number of replaced certificates that are still to be deleted."""


class StepResult(Message):
    """The status after a step, and the ARN of the resource that it created."""

    status: ProvisioningStatus
    arn: str | None = None


class FailureReport(Message):
    """The reason why provisioning stopped, written for an operator."""

    device: Device
    code: str
    reason: str


class TeardownPlan(Message):
    """The resources of a device in AWS, by whether they are owned by it.

    The plan is made once, before anything is deleted: the deletion also removes the proof of ownership.
    """

    device: Device
    thing: bool
    certificate_arns: list[str]
    shared_certificate_arns: list[str]
    secret_arns: list[str]
    unconfirmed_arns: list[str]

    @property
    def kept(self) -> list[str]:
        """Return the resources that are not deleted: used by other Things too, or not confirmed as owned."""
        return [*self.shared_certificate_arns, *self.unconfirmed_arns]
