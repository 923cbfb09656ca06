"""What workflow and activities say to each other. It stands in histories: a new field needs a default."""

from uuid import UUID

from domain.device_state import DesiredStatus
from domain.fault import Fault
from domain.lifecycle_event import LifecycleEvent
from domain.model import Message
from domain.provisioning_status import ProvisioningStatus


class Device(Message):
    """Whom a step is about."""

    device_id: UUID
    tenant_id: UUID | None
    thing_name: str | None


class ApplyEventRequest(Message):
    """One event to fold into the device's state; none where a run only takes up what stands."""

    device_id: UUID
    event: LifecycleEvent | None = None


class DeviceSnapshot(Message):
    """Where a device stands once an event is folded, and so what is to be done."""

    device: Device | None = None
    serial_number: str | None = None
    rejection: Fault | None = None
    status: ProvisioningStatus | None = None
    failure_code: str | None = None
    failure_reason: str | None = None
    decommissioned: bool = False
    status_to_report: DesiredStatus | None = None
    step_retry_seconds: float = 86_400.0
    retired_certificates: int = 0
    """How many replaced certificates are still to be erased."""


class StepResult(Message):
    """What a step left behind it."""

    status: ProvisioningStatus
    arn: str | None = None


class FailureReport(Message):
    """Why provisioning stopped, in words an operator can act on."""

    device: Device
    code: str
    reason: str


class TeardownPlan(Message):
    """What of a device is in AWS and confirmed to be its own.

    It is taken once, before anything is undone, since what proves ownership goes with the undoing.
    """

    device: Device
    thing: bool
    certificate_arns: list[str]
    shared_certificate_arns: list[str]
    secret_arns: list[str]
    unconfirmed_arns: list[str]

    @property
    def kept(self) -> list[str]:
        """What the teardown leaves: it serves other Things too, or was never shown to be this Thing's."""
        return [*self.shared_certificate_arns, *self.unconfirmed_arns]
