"""Commands that cannot be carried out: each ends with its reason and affects no other command."""

import json
from typing import Any
from uuid import uuid4

import pytest

from domain.command import CommandTarget, TargetKind, dynamic_group_name
from tests.harness.bridge import Device
from tests.harness.commands import PREFIX, QUEUE, Commands, command_for, command_for_query


async def test_each_bad_command_fails_with_its_own_reason(commands: Commands) -> None:
    """Each one publishes a DeviceCommandFailedEvent with the reason, and creates no job."""
    device = commands.device("BAD-CMD")
    other_tenant = command_for(device, tenant_id=uuid4())
    bad = {
        "operation: must be": command_for(device, " "),
        "operation: has 300": command_for(device, "x" * 300),
        "AWS allows 32768": command_for(device, parameters={"blob": "é" * 16_500}),
        "nest deeper": command_for(device, parameters={"a": json.loads("[" * 80 + "]" * 80)}),
        "no Active binding": command_for(Device("NEVER-SEEN")),
        "has no Active binding. ": other_tenant,
        "there is no thing group nobody": command_for("nobody"),
        "target: must be a device's UUID": command_for(
            CommandTarget(kind=TargetKind.DEVICE, value="\x00zzz")
        ),
        "AWS refuses the query": command_for_query("thingName:(("),
    }
    handles = {reason: await commands.send(command) for reason, command in bad.items()}
    for reason, handle in handles.items():
        ended = await commands.wait_for_end(handle)
        assert reason in ended["reason"]
        assert ended["status"] in {"InvalidCommand", "NoSuchTarget"}
        assert commands.job(handle) is None
        event_type, data = commands.event(handle.id)
        assert (event_type, data["status"]) == ("DeviceCommandFailedEvent", ended["status"])
        assert reason in data["reason"]
    # The event of a command of another tenant does not name the device.
    assert commands.event(handles["has no Active binding. "].id)[1]["deviceId"] is None


async def test_a_command_to_a_device_that_is_not_active_fails(commands: Commands) -> None:
    """The reason names the status of the device's binding."""
    device = commands.device("NOT-ACTIVE")
    await commands.bridge.send_and_wait(device, device.event("Decommissioned", 1))
    ended = await commands.run_to_end(command_for(device))
    assert (ended["status"], "it is Decommissioned" in ended["reason"]) == ("NoSuchTarget", True)


async def test_a_command_to_an_unknown_device_does_not_assign_a_tenant(commands: Commands) -> None:
    """The device can still be provisioned for any tenant."""
    device = Device("SOON-KNOWN")
    await commands.run_to_end(command_for(device, tenant_id=uuid4()))
    await commands.bridge.send_and_wait(device, device.event("Provisioned"))
    assert commands.bridge.require_binding(device).tenant_id == device.tenant_id


@pytest.mark.parametrize("sent", [(), (7,), ({"operation": "x"},), (b"\x00",)], ids=str)
async def test_an_argument_that_is_not_a_command_ends_the_run_with_a_reason(
    commands: Commands, sent: tuple[Any, ...]
) -> None:
    """An argument that the workflow cannot decode would block it; so it reads raw JSON."""
    ended = await commands.bridge.client.execute_workflow(
        "DeviceCommand", args=sent, id=f"{PREFIX}-{uuid4()}", task_queue=QUEUE
    )
    assert ended["status"] == "InvalidCommand"


async def test_a_workflow_id_without_the_correlation_id_is_rejected(commands: Commands) -> None:
    """The id is made from the correlation id, so that every repeat is the same command."""
    ended = await commands.bridge.client.execute_workflow(
        "DeviceCommand", command_for("any"), id=f"{PREFIX}-{uuid4()}", task_queue=QUEUE
    )
    assert ended["reason"].startswith("correlationId: ")


async def test_a_new_query_fails_when_the_group_quota_is_used_up(commands: Commands) -> None:
    """AWS allows few dynamic groups; the command fails with QuotaExceeded."""
    commands.emulator.settings(dynamic_groups_at_most=0)
    ended = await commands.run_to_end(command_for_query("thingName:quota"))
    assert (ended["status"], "LimitExceededException" in ended["reason"]) == ("QuotaExceeded", True)
    assert commands.event(ended["jobId"])[1]["status"] == "QuotaExceeded"


async def test_a_group_with_another_query_is_not_used(commands: Commands) -> None:
    """A group that has the expected name and another query is neither used nor changed."""
    name = dynamic_group_name(PREFIX, "thingName:mine")
    commands.iot.create_dynamic_thing_group(thingGroupName=name, queryString="thingName:theirs")
    ended = await commands.run_to_end(command_for_query("thingName:mine"))
    assert (ended["status"], "delete it" in ended["reason"]) == ("InvalidCommand", True)
    assert commands.iot.describe_thing_group(thingGroupName=name)["queryString"] == "thingName:theirs"
