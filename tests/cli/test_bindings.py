"""`thingbridge bindings` and `thingbridge retry`."""

import asyncio
from uuid import uuid4

import pytest
from rich.console import Console
from temporalio.service import RPCError

from cli.binding_records import list_bindings
from db.bindings import BindingFilter
from domain.provisioning_status import ProvisioningStatus
from settings import DatabaseSettings
from tests.harness.bridge import Bridge, Device
from tests.harness.command_line import Result, call_in_thread

# --- bindings


async def test_filters_narrow_the_list_together(bridge: Bridge) -> None:
    """Status, tenant, serial number and device narrow the list, also in combination."""
    tenant = uuid4()
    active, gone = Device("LISTED-1", tenant), Device("LISTED-2", tenant)
    stranger = Device("LISTED-1")
    await asyncio.gather(
        *(bridge.send_and_wait(each, each.event("Provisioned")) for each in (active, stranger))
    )
    await bridge.send_and_wait(gone, gone.event("Decommissioned"), gone.event("Provisioned"))
    for filters, found in {
        ("--tenant", str(tenant)): {active, gone},
        ("--serial", "LISTED-1"): {active, stranger},
        ("--tenant", str(tenant), "--status", "Decommissioned"): {gone},
        ("--tenant", str(tenant), "--serial", "LISTED-1"): {active},
        ("--device", str(stranger.device_id)): {stranger},
    }.items():
        result = await call_in_thread("bindings", *filters)
        assert result.exit_code == 0
        assert {each for each in (active, gone, stranger) if is_listed(result, each)} == found
    result = await call_in_thread("bindings", "--tenant", str(tenant), "--limit", "1")
    assert is_listed(result, gone)
    assert not is_listed(result, active)
    assert result.stdout.endswith("the newest 1 of more: see --limit\n")


async def test_single_device_is_listed_with_resources_and_transitions(bridge: Bridge) -> None:
    """A single device is listed with its ARNs, and with each change of status below the run that made it."""
    device = Device("TRANSITIONS-1")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    lines = (await call_in_thread("bindings", "--device", str(device.device_id))).stdout.splitlines()
    binding, run_id = bridge.require_binding(device), bridge.transition_rows(device)[0].run_id
    assert {binding.thing_arn, binding.certificate_arn, binding.certificate_secret_arn} <= set(lines)
    changes = lines[lines.index(f"{device.workflow_id}, run {run_id}") + 1 :]
    assert [line.split()[-1] for line in changes] == [
        "Pending",
        "ThingCreated",
        "CertIssued",
        "SecretStored",
        "Active",
    ]


@pytest.mark.usefixtures("engine")
async def test_empty_list_is_a_sentence() -> None:
    """A sentence is printed if no binding matches, and an unknown status is refused with the valid ones."""
    assert await call_in_thread("bindings", "--serial", "NOT-THERE") == Result(0, "no binding matches\n", "")
    result = await call_in_thread("bindings", "--status", "Lost")
    assert result.exit_code == 2
    assert "ThingCreated" in result.stderr


async def test_ids_are_complete_on_a_narrow_terminal(bridge: Bridge) -> None:
    """Ids and ARNs are neither cut nor wrapped, so that they can be copied."""
    device = Device("NARROW-1")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    terminal = Console(width=80, force_terminal=True, color_system=None, emoji=False)
    with terminal.capture() as captured:
        matching = BindingFilter(device_id=device.device_id)
        list_bindings(DatabaseSettings.load(), terminal, matching, limit=50)
    lines = captured.get().splitlines()
    assert any(str(device.device_id) in line and device.thing_name in line for line in lines)
    assert bridge.require_binding(device).certificate_arn in lines


# --- retry


@pytest.mark.usefixtures("engine")
async def test_retry_of_an_unknown_device_starts_no_workflow(bridge: Bridge) -> None:
    """An unknown device id is an error, and no workflow is started."""
    device = Device("NEVER-SEEN")
    result = await call_in_thread("retry", str(device.device_id))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: device {device.device_id} has no binding: see `thingbridge bindings`\n"
    with pytest.raises(RPCError, match="not found"):
        await bridge.client.get_workflow_handle(device.workflow_id).describe()
    assert (await call_in_thread("retry", "SN-1")).exit_code == 2


async def test_failed_device_becomes_active_after_fix_and_retry(bridge: Bridge) -> None:
    """A Thing of another device makes it Failed, with the reason; without that Thing, a retry succeeds."""
    device = Device("FIXED-1")
    other = {"attributes": {"deviceId": str(uuid4())}}
    bridge.iot.create_thing(thingName=device.thing_name, attributePayload=other)
    await bridge.send(device, device.event("Provisioned"))
    await bridge.wait_for_status(device, ProvisioningStatus.FAILED)
    result = await call_in_thread("bindings", "--status", "Failed", "--serial", "FIXED-1")
    assert "ThingOfAnotherDevice: " in result.stdout
    assert "then retry" in result.stdout
    bridge.iot.delete_thing(thingName=device.thing_name)
    result = await call_in_thread("retry", str(device.device_id))
    assert result == Result(0, f"retry sent to {device.workflow_id}, whose binding is Failed\n", "")
    await bridge.wait_for_end(device)
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE


def is_listed(result: Result, device: Device) -> bool:
    """Return whether the list contains a device."""
    lines = result.stdout.splitlines()
    return any(line.startswith(str(device.device_id)) and device.thing_name in line for line in lines)
