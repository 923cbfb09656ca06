"""The events that the bridge publishes. Their ids allow a consumer to drop repeats."""

from datetime import date, datetime
from enum import StrEnum
from typing import ClassVar, Final, Literal
from uuid import UUID, uuid5

from pydantic import ConfigDict, JsonValue

from domain.command import CommandTarget
from domain.model import CamelModel

SOURCE: Final = "/thingbridge"
"""The CloudEvents `source` of every event."""

_NAMESPACE: Final = UUID("6c0d6f2e-6b0f-5b62-9a55-0c1f0a7f6f10")


class OutgoingEventType(StrEnum):
    """The CloudEvents types."""

    PROVISIONED = "AwsThingProvisionedEvent"
    DECOMMISSIONED = "AwsThingDecommissionedEvent"
    PROVISIONING_FAILED = "AwsThingProvisioningFailedEvent"
    DESIRED_STATE_CHANGED = "DeviceDesiredStateChangedEvent"
    COMMAND_COMPLETED = "DeviceCommandCompletedEvent"
    COMMAND_FAILED = "DeviceCommandFailedEvent"
    CLAIM_CERTIFICATE_EXPIRING = "ClaimCertificateExpiringEvent"


class OutgoingEvent(CamelModel):
    """The `data` of one event."""

    model_config = ConfigDict(use_attribute_docstrings=True)
    event_type: ClassVar[OutgoingEventType]

    device_id: UUID | None
    tenant_id: UUID | None

    def event_id(self, *distinction: object) -> UUID:
        """Return the UUIDv5 of type, device and `distinction`, the same for each repeat of this event."""
        return uuid5(_NAMESPACE, "/".join(map(str, (self.event_type, self.device_id or "", *distinction))))


class BindingEvent(OutgoingEvent):
    """An event about the binding of one device."""

    device_id: UUID
    binding_id: UUID
    thing_name: str | None


class AwsThingProvisioned(BindingEvent):
    """A device is provisioned and can connect."""

    event_type = OutgoingEventType.PROVISIONED

    thing_arn: str
    certificate_arn: str
    certificate_secret_arn: str | None
    provisioned_via_jitp: bool


class AwsThingDecommissioned(BindingEvent):
    """A device is decommissioned, and its resources in AWS are deleted."""

    event_type = OutgoingEventType.DECOMMISSIONED

    kept: list[str]
    """ARNs that were not deleted: other Things use them too, or ownership was not confirmed."""


class AwsThingProvisioningFailed(BindingEvent):
    """Provisioning stopped at an error that needs an operator."""

    event_type = OutgoingEventType.PROVISIONING_FAILED

    failed_at: str
    """The provisioning status in which the failed step began."""
    code: str
    """The failure code."""
    reason: str
    """The cause, and what to do about it."""


class ClaimCertificateExpiring(BindingEvent):
    """The claim certificate of a device's enrolment expires soon or has expired. Published once a day."""

    event_type = OutgoingEventType.CLAIM_CERTIFICATE_EXPIRING

    claim_certificate_expires_at: datetime
    # Part of the event id, with the binding.
    day: date
    """The day of publication, in UTC."""
    days_left: int
    """Whole days until the expiry, 0 from the last day on."""


class DeviceDesiredStateChanged(BindingEvent):
    """The desired state in a device's shadow changed. The job `jobId` sends it to the device."""

    event_type = OutgoingEventType.DESIRED_STATE_CHANGED

    # Part of the event id.
    shadow_version: int
    """The shadow's version at which this delta was first seen."""
    delta: dict[str, JsonValue]
    """The shadow's delta: the desired state that the device has not reported."""
    correlation_id: UUID
    job_id: str


class CommandEvent(OutgoingEvent):
    """The end of a command to a device, a thing group or a query."""

    device_id: UUID | None
    """The device. Null for a command to a group or a query, and for an unknown device."""
    thing_name: str | None
    # Part of the event id.
    job_id: str
    correlation_id: UUID
    operation: str
    target: CommandTarget
    status_details: dict[str, str]
    """The status details that the device reported."""
    counts: dict[str, int] | None
    """The number of executions by status, for a command to a group or a query."""


class DeviceCommandCompleted(CommandEvent):
    """A command succeeded, or the tracking time of a continuous command is over."""

    event_type = OutgoingEventType.COMMAND_COMPLETED

    outcome: Literal["succeeded", "windowClosed"]
    """`windowClosed` for a continuous command whose tracking time is over."""


class DeviceCommandFailed(CommandEvent):
    """A command failed."""

    event_type = OutgoingEventType.COMMAND_FAILED

    status: str
    """AWS's status of the execution or the job, or a failure code of the bridge if no job was created."""
    reason: str
    """The cause."""
