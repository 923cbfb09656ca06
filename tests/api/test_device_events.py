"""Lifecycle events over HTTP."""

from typing import Any
from uuid import uuid4

import pytest

from domain.provisioning_status import ProvisioningStatus
from tests.harness.bridge import Bridge, Device
from tests.harness.http_api import HttpApi, faults, problem

PATH = "/api/iot/device-events"


async def test_an_event_is_passed_to_the_devices_workflow(bridge: Bridge, http_api: HttpApi) -> None:
    """The response names the workflow, the device is provisioned, and a tenant's key supplies the tenant."""
    device = Device("HTTP-1")
    assert device.tenant_id is not None
    event = device.event("Provisioned")
    del event["tenantId"]
    async with http_api.tenant(device.tenant_id) as http:
        answer = await http.post(PATH, json=event | {"later": "ignored"})
    assert (answer.status_code, answer.json()) == (202, {"workflowId": device.workflow_id})
    await bridge.wait_for_end(device)
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE
    assert bridge.require_binding(device).tenant_id == device.tenant_id
    async with http_api.tenant(uuid4()) as other:
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
async def test_an_invalid_event_is_refused_with_its_field(
    http_api: HttpApi, change: dict[str, Any], status: int, field: str, reason: str
) -> None:
    """A missing field is 400, an invalid one 422; no value is repeated."""
    async with http_api.operator() as http:
        answer = await http.post(PATH, json=Device("HTTP-2").event("Provisioned") | change)
    assert answer.status_code == status
    assert faults(answer) == {field: reason}
