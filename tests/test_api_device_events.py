"""The platform tells of its devices' lives over HTTP."""

from typing import Any
from uuid import uuid4

import pytest

from domain.provisioning_status import ProvisioningStatus
from tests.bridge import Bridge, Device
from tests.doors import Doors, faults, problem

PATH = "/api/iot/device-events"


async def test_an_event_reaches_the_devices_workflow(bridge: Bridge, doors: Doors) -> None:
    """The answer names the workflow that has it, and the device is provisioned; a tenant's key says whose."""
    device = Device("HTTP-1")
    assert device.tenant_id is not None
    event = device.event("Provisioned")
    del event["tenantId"]
    async with doors.tenant(device.tenant_id) as http:
        answer = await http.post(PATH, json=event | {"later": "ignored"})
    assert (answer.status_code, answer.json()) == (202, {"workflowId": device.workflow_id})
    await bridge.ended(device)
    assert bridge.bound(device).provisioning_status is ProvisioningStatus.ACTIVE
    assert bridge.bound(device).tenant_id == device.tenant_id
    async with doors.tenant(uuid4()) as other:
        stolen = await other.post(PATH, json=device.event("Decommissioned", tenantId=None))
    assert problem(stolen)["status"] == 404


@pytest.mark.parametrize(
    ("change", "status", "field", "reason"),
    [
        ({"eventId": "x"}, 422, "eventId", "must be a UUID"),
        ({"serialNumber": None}, 400, "serialNumber", "is needed on a DeviceProvisionedEvent"),
        ({"occurredAt": 3}, 422, "occurredAt", "must be an RFC 3339 time with seconds and a UTC offset"),
    ],
)
async def test_what_is_no_event_is_refused_by_its_field(
    doors: Doors, change: dict[str, Any], status: int, field: str, reason: str
) -> None:
    """400 where something is missing, 422 where it is not what it should be; no value is repeated."""
    async with doors.operator() as http:
        answer = await http.post(PATH, json=Device("HTTP-2").event("Provisioned") | change)
    assert answer.status_code == status
    assert faults(answer) == {field: reason}
