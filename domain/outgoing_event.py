"""What the bridge tells the world, with ids by which a consumer can drop a repeat."""

from datetime import date, datetime
from enum import StrEnum
from typing import ClassVar, Final, Literal
from uuid import UUID, uuid5

from pydantic import BaseModel, ConfigDict, JsonValue
from pydantic.alias_generators import to_camel

from domain.command import CommandTarget

SOURCE: Final = "/thingbridge"
"""The `source` of every event, as CloudEvents has it."""

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


class _Public(BaseModel):
    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, validate_by_name=True, use_attribute_docstrings=True
    )


class OutgoingEvent(_Public):
    """The `data` of one event; camelCase on the wire."""

    event_type: ClassVar[OutgoingEventType]

    device_id: UUID | None
    tenant_id: UUID | None

    def event_id(self, *distinction: object) -> UUID:
        """The same for every repeat of this event: over type, device and what makes it one."""
        return uuid5(_NAMESPACE, "/".join(map(str, (self.event_type, self.device_id or "", *distinction))))


class BindingEvent(OutgoingEvent):
    """What is told of one device's binding."""

    device_id: UUID
    binding_id: UUID
    thing_name: str | None


class AwsThingProvisioned(BindingEvent):
    """The device can connect."""

    event_type = OutgoingEventType.PROVISIONED

    thing_arn: str
    certificate_arn: str
    certificate_secret_arn: str | None
    provisioned_via_jitp: bool


class AwsThingDecommissioned(BindingEvent):
    """Nothing of the device is left in AWS; `kept` names certificates that serve other Things too."""

    event_type = OutgoingEventType.DECOMMISSIONED

    kept: list[str]


class AwsThingProvisioningFailed(BindingEvent):
    """Provisioning stopped at something no retry can mend."""

    event_type = OutgoingEventType.PROVISIONING_FAILED

    failed_at: str
    code: str
    reason: str


class ClaimCertificateExpiring(BindingEvent):
    """The claim certificate that the device enrolled with expires soon, or has; told once a day."""

    event_type = OutgoingEventType.CLAIM_CERTIFICATE_EXPIRING

    claim_certificate_expires_at: datetime
    # With the binding, its distinction too.
    day: date
    """The day, in UTC, on which this is told."""
    days_left: int
    """Whole days; 0 from the last one on."""


class DeviceDesiredStateChanged(BindingEvent):
    """The device's shadow wants another state of the device; the job `jobId` takes it there."""

    event_type = OutgoingEventType.DESIRED_STATE_CHANGED

    # Its distinction too.
    shadow_version: int
    """The shadow's version at which this delta was first seen."""
    delta: dict[str, JsonValue]
    """What is desired and not yet reported, as the shadow has it."""
    correlation_id: UUID
    job_id: str


class CommandEvent(OutgoingEvent):
    """How a command ended, for one device or for a group."""

    device_id: UUID | None
    """None where the command was for a group or a query, or for no device that the sender could mean."""
    thing_name: str | None
    # Its distinction too.
    job_id: str
    correlation_id: UUID
    operation: str
    target: CommandTarget
    status_details: dict[str, str]
    """What the device said of it."""
    counts: dict[str, int] | None
    """The executions of a group's job by their status."""


class DeviceCommandCompleted(CommandEvent):
    """The command was carried out; for a continuous one, the time for which it was watched is over."""

    event_type = OutgoingEventType.COMMAND_COMPLETED

    outcome: Literal["succeeded", "windowClosed"]


class DeviceCommandFailed(CommandEvent):
    """The command was not carried out."""

    event_type = OutgoingEventType.COMMAND_FAILED

    status: str
    """AWS's status of the execution or the job; where it came to no job, a failure code of the bridge."""
    reason: str
