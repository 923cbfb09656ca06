"""Names that other systems rely on (docs/reference.md): queues, workflows, ids, search attributes, Things."""

import re
from typing import Final
from uuid import UUID

TASK_QUEUE: Final = "thingbridge"
DEVICE_LIFECYCLE: Final = "DeviceLifecycle"
OUTBOX_PUBLISHER: Final = "OutboxPublisher"
DEVICE_EVENT_SIGNAL: Final = "device_event"
RETRY_SIGNAL: Final = "retry"
STATUS_QUERY: Final = "status"

CLAIM_CERTIFICATE_CHECK: Final = "ClaimCertificateCheck"
ERASURE_SWEEP: Final = "ErasureSweep"
ERASURE_SWEEP_SCHEDULE: Final = "erasure-sweep"
CLAIM_CERTIFICATE_CHECK_SCHEDULE: Final = "claim-certificate-check"

SHADOW_DELTA_POLL: Final = "ShadowDeltaPoll"
SHADOW_DELTA_POLL_SCHEDULE: Final = "shadow-delta-poll"

DEVICE_COMMAND: Final = "DeviceCommand"
CANCEL_SIGNAL: Final = "cancel"
COMMAND_GROUP_SWEEP: Final = "CommandGroupSweep"
COMMAND_GROUP_SWEEP_SCHEDULE: Final = "command-group-sweep"

TENANT_ID_ATTRIBUTE: Final = "TenantId"
THING_NAME_ATTRIBUTE: Final = "ThingName"
PROVISIONING_STATUS_ATTRIBUTE: Final = "ProvisioningStatus"
SEARCH_ATTRIBUTES: Final = (TENANT_ID_ATTRIBUTE, THING_NAME_ATTRIBUTE, PROVISIONING_STATUS_ATTRIBUTE)

DEVICE_ID_THING_ATTRIBUTE: Final = "deviceId"
TENANT_ID_THING_ATTRIBUTE: Final = "tenantId"
"""The attributes of a Thing that identify its owner."""

NO_TENANT: Final = UUID(int=0)
"""Represents the null tenant where null is impossible. It is never the id of a tenant."""

TENANT_PREFIX_LENGTH: Final = len("t-") + 32
SERIAL_NUMBER_LIMIT: Final = 128 - TENANT_PREFIX_LENGTH
"""AWS allows 128 characters for a Thing name."""

SERIAL_NUMBER_PATTERN: Final = rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{SERIAL_NUMBER_LIMIT - 1}}}"
_SERIAL_NUMBER: Final = re.compile(SERIAL_NUMBER_PATTERN)
_THING_NAME: Final = re.compile(rf"t([0-9a-f]{{32}})-({SERIAL_NUMBER_PATTERN})")
_DEVICE_WORKFLOW_ID: Final = re.compile(r"device-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def device_workflow_id(device_id: UUID) -> str:
    """Return the id of the workflow that handles the device's events."""
    return f"device-{device_id}"


def device_of_workflow(workflow_id: str) -> UUID | None:
    """Return the device whose workflow has this id, or None if it is not the id of a device's workflow."""
    match = _DEVICE_WORKFLOW_ID.fullmatch(workflow_id)
    return UUID(match[1]) if match else None


def job_queue(task_queue: str) -> str:
    """Return the task queue of the activities that poll jobs. Its rate limits the polling of all workers."""
    return f"{task_queue}-jobs"


def event_queue(task_queue: str) -> str:
    """Return the task queue of the activities that send events, so that a slow sink does not delay sagas."""
    return f"{task_queue}-events"


def outbox_publisher_id(task_queue: str, shard: int) -> str:
    """Return the id of the workflow that sends a shard of the outbox, unique for each deployment's queue."""
    return f"{task_queue}-outbox-publisher-{shard}"


def tenant_key(tenant_id: UUID | None) -> str:
    """Return the tenant's id, or the zero UUID for the null tenant, for search and Thing attributes."""
    return str(tenant_id or NO_TENANT)


def serial_number_fault(serial_number: str) -> str | None:
    """Return what is wrong with a serial number without quoting it, or None if it is valid."""
    if len(serial_number) > SERIAL_NUMBER_LIMIT:
        return f"has {len(serial_number)} characters, at most {SERIAL_NUMBER_LIMIT} are allowed"
    if not _SERIAL_NUMBER.fullmatch(serial_number):
        return "must begin with a letter or digit and hold only ASCII letters, digits, '_' and '-'"
    return None


def thing_name(tenant_id: UUID | None, serial_number: str) -> str:
    """Return the Thing name of a tenant's serial number. No other code builds Thing names.

    Raises:
        ValueError: the serial number is invalid.
    """
    if fault := serial_number_fault(serial_number):
        raise ValueError(f"serial number {fault}")
    return f"t{(tenant_id or NO_TENANT).hex}-{serial_number}"


def owner_of_thing(name: str) -> tuple[UUID | None, str] | None:
    """Return the tenant and the serial number of a Thing name, or None if the bridge builds no such name."""
    match = _THING_NAME.fullmatch(name)
    if match is None:
        return None
    tenant = UUID(match[1])
    return (None if tenant == NO_TENANT else tenant), match[2]


def id_of_certificate(certificate_arn: str) -> str:
    """Return a certificate's id, the last part of its ARN."""
    return certificate_arn.rpartition("/")[2]
