"""Invalid signals: they are rejected, counted and listed, and leave the workflow healthy."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue

from domain.provisioning_status import ProvisioningStatus
from tests.harness.bridge import Bridge, Device

DEVICE = Device("BAD-1")
EVENT = DEVICE.event("Provisioned")


def without(field: str) -> dict[str, Any]:
    return {key: value for key, value in EVENT.items() if key != field}


INVALID: dict[str, tuple[tuple[Any, ...], str]] = {
    "no argument": ((), "event"),
    "two arguments": ((EVENT, EVENT), "event"),
    "null": ((None,), "event"),
    "a string": (("DeviceProvisionedEvent",), "event"),
    "a list": (([EVENT],), "event"),
    "a number": ((7,), "event"),
    "bytes": ((b"\x00\xff",), "event"),
    "another encoding": (
        (RawValue(Payload(metadata={"encoding": b"binary/encrypted"}, data=b"{}")),),
        "event",
    ),
    "broken JSON": ((RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b'{"eventId":')),), "event"),
    "deep JSON": (
        (RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b"[" * 9000 + b"]" * 6000)),),
        "event",
    ),
    "no eventId": ((without("eventId"),), "eventId"),
    "no type": ((without("type"),), "type"),
    "no deviceId": ((without("deviceId"),), "deviceId"),
    "no tenantId": ((without("tenantId"),), "tenantId"),
    "no occurredAt": ((without("occurredAt"),), "occurredAt"),
    "no serialNumber to provision": ((without("serialNumber"),), "serialNumber"),
    "eventId a number": ((EVENT | {"eventId": 7},), "eventId"),
    "a bad deviceId": ((EVENT | {"deviceId": "not-a-uuid-at-all"},), "deviceId"),
    "another device": ((EVENT | {"deviceId": str(uuid4())},), "deviceId"),
    "the zero tenant": ((EVENT | {"tenantId": str(UUID(int=0))},), "tenantId"),
    "an unknown type": ((EVENT | {"type": "DeviceExplodedEvent"},), "type"),
    "no UTC offset": ((EVENT | {"occurredAt": "2026-11-23T10:00:00"},), "occurredAt"),
    "a date": ((EVENT | {"occurredAt": "2026-11-23"},), "occurredAt"),
    "a Unix time": ((EVENT | {"occurredAt": 1795428000},), "occurredAt"),
    "a Unix time as a string": ((EVENT | {"occurredAt": "1795428000"},), "occurredAt"),
    "a time before year 1 in UTC": ((EVENT | {"occurredAt": "0001-01-01T00:00:00+14:00"},), "occurredAt"),
    "a serial with a space": ((EVENT | {"serialNumber": "SN 1"},), "serialNumber"),
    "a serial with a line break": ((EVENT | {"serialNumber": "SN-1\n"},), "serialNumber"),
    "a serial of 95 characters": ((EVENT | {"serialNumber": "S" * 95},), "serialNumber"),
    "an empty serial": ((EVENT | {"serialNumber": ""},), "serialNumber"),
    "a serial of other letters": ((EVENT | {"serialNumber": "\uff33\uff2e\uff11"},), "serialNumber"),
    "a huge payload": ((EVENT | {"note": "x" * 500_000},), "event"),
}


@pytest.mark.parametrize("name", INVALID)
async def test_invalid_event_is_rejected_with_its_field(bridge: Bridge, name: str) -> None:
    """Each kind of invalid signal is listed with the field at fault, and creates no binding."""
    arguments, field = INVALID[name]
    await bridge.signal(DEVICE, *arguments)
    await bridge.wait_for_end(DEVICE)
    status = await bridge.status(DEVICE)
    assert status["rejectedCount"] == 1
    assert status["rejected"][0]["field"] == field
    assert bridge.binding(DEVICE) is None


async def test_rejection_does_not_repeat_the_value(bridge: Bridge) -> None:
    """The value of a rejected field is nowhere in the status, since it can be a secret."""
    device = Device("BAD-2")
    marked = "zz-secret-zz"
    for field in ("eventId", "type", "deviceId", "tenantId", "serialNumber", "occurredAt"):
        await bridge.signal(device, device.event("Provisioned") | {field: f"{marked} {field}"})
    await bridge.signal(device, signal=marked)
    await bridge.wait_for_end(device)
    assert marked not in str(await bridge.status(device))


async def test_valid_events_are_handled_between_invalid_ones(bridge: Bridge) -> None:
    """Invalid signals before and after a valid event do not keep the device from Active."""
    device = Device("BAD-3")
    bridge.emulator.add_fault("iot:CreateThing", resource=device.thing_name, delay_seconds=1, times=1)
    await bridge.signal(device)
    await bridge.signal(device, device.event("Provisioned"))
    for arguments, _ in INVALID.values():
        await bridge.signal(device, *arguments)
    await bridge.signal(device, signal="reboot")
    await bridge.wait_for_end(device)
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE


async def test_only_the_last_twenty_rejections_are_kept(bridge: Bridge) -> None:
    """Many invalid signals are all counted, and the last twenty are listed."""
    device = Device("BAD-4")
    bridge.emulator.add_fault("iot:CreateThing", resource=device.thing_name, delay_seconds=1, times=1)
    await bridge.signal(device, device.event("Provisioned"))
    for _ in range(25):
        await bridge.signal(device)
    status = await bridge.status(device)
    assert (status["rejectedCount"], len(status["rejected"])) == (25, 20)
    await bridge.wait_for_end(device)


async def test_event_with_another_tenant_or_serial_is_rejected(bridge: Bridge) -> None:
    """A device id belongs to one tenant and one serial number: an event with another one changes nothing."""
    device = Device("BAD-5")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    await bridge.send_and_wait(device, device.event("Decommissioned", tenantId=str(uuid4())))
    assert (await bridge.status(device))["rejected"][0]["field"] == "tenantId"
    await bridge.send_and_wait(device, device.event("Decommissioned", tenantId=None))
    assert (await bridge.status(device))["rejected"][0]["field"] == "tenantId"
    await bridge.send_and_wait(device, device.event("Decommissioned", serialNumber="OTHER"))
    assert (await bridge.status(device))["rejected"][0]["field"] == "serialNumber"
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE


async def test_decommission_of_another_tenant_cancels_no_step(faulty_bridge: Bridge) -> None:
    """A decommission with another tenant does not cancel the step in progress."""
    device = Device("BAD-6")
    faulty_bridge.emulator.add_fault(
        "iot:CreateThing", resource=device.thing_name, code="ThrottlingException", status=429
    )
    await faulty_bridge.signal(device, device.event("Provisioned"))
    await faulty_bridge.wait_for_activity(device, "ensure_thing", attempts=2)
    await faulty_bridge.signal(device, device.event("Decommissioned", tenantId=str(uuid4())))
    faulty_bridge.emulator.clear_faults()
    await faulty_bridge.wait_for_end(device)
    assert faulty_bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE
