"""Whatever is sent as a command, what cannot be carried out ends with its reason, by itself."""

import json
from typing import Any
from uuid import uuid4

import pytest

from domain.command import CommandTarget, TargetKind, dynamic_group_name
from tests.harness.bridge import Device
from tests.harness.commands import PREFIX, QUEUE, Commands, to, to_all


async def test_each_bad_command_fails_by_itself_with_its_reason(commands: Commands) -> None:
    """No operation, a long document, an unknown target, a refused query: each is told, and no job made."""
    device = commands.device("BAD-CMD")
    others = to(device, tenant_id=uuid4())
    bad = {
        "operation: must be": to(device, " "),
        "operation: has 300": to(device, "x" * 300),
        "AWS allows 32768": to(device, parameters={"blob": "é" * 16_500}),
        "nest deeper": to(device, parameters={"a": json.loads("[" * 80 + "]" * 80)}),
        "no Active binding": to(Device("NEVER-SEEN")),
        "has no Active binding. ": others,
        "there is no thing group nobody": to("nobody"),
        "target: must be a device's UUID": to(CommandTarget(kind=TargetKind.DEVICE, value="\x00zzz")),
        "AWS refuses the query": to_all("thingName:(("),
    }
    handles = {reason: await commands.send(command) for reason, command in bad.items()}
    for reason, handle in handles.items():
        ended = await commands.wait_for_end(handle)
        assert reason in ended["reason"]
        assert ended["status"] in {"InvalidCommand", "NoSuchTarget"}
        assert commands.job(handle) is None
        kind, data = commands.event(handle.id)
        assert (kind, data["status"]) == ("DeviceCommandFailedEvent", ended["status"])
        assert reason in data["reason"]
    # Another tenant's device is not told of a command that was never meant for it.
    assert commands.event(handles["has no Active binding. "].id)[1]["deviceId"] is None


async def test_a_device_that_is_not_active_takes_no_command(commands: Commands) -> None:
    """Neither one being provisioned nor one decommissioned is a target; the reason says which."""
    device = commands.device("NOT-ACTIVE")
    await commands.bridge.send_and_wait(device, device.event("Decommissioned", 1))
    ended = await commands.done(to(device))
    assert (ended["status"], "it is Decommissioned" in ended["reason"]) == ("NoSuchTarget", True)


async def test_a_command_to_an_unknown_device_binds_it_to_no_tenant(commands: Commands) -> None:
    """The device may still be provisioned, for whatever tenant the platform says."""
    device = Device("SOON-KNOWN")
    await commands.done(to(device, tenant_id=uuid4()))
    await commands.bridge.send_and_wait(device, device.event("Provisioned"))
    assert commands.bridge.require_binding(device).tenant_id == device.tenant_id


@pytest.mark.parametrize("sent", [(), (7,), ({"operation": "x"},), (b"\x00",)], ids=str)
async def test_what_is_no_command_ends_in_words(commands: Commands, sent: tuple[Any, ...]) -> None:
    """A workflow started with anything else ends and says so; an undecodable argument would block it."""
    ended = await commands.bridge.client.execute_workflow(
        "DeviceCommand", args=sent, id=f"{PREFIX}-{uuid4()}", task_queue=QUEUE
    )
    assert ended["status"] == "InvalidCommand"


async def test_a_workflow_id_that_is_not_the_commands_is_refused(commands: Commands) -> None:
    """The job's id is made of the correlation id, so that a repeat anywhere is the same command."""
    ended = await commands.bridge.client.execute_workflow(
        "DeviceCommand", to("any"), id=f"{PREFIX}-{uuid4()}", task_queue=QUEUE
    )
    assert ended["reason"].startswith("correlationId: ")


async def test_a_full_account_fails_a_new_query_with_that_reason(commands: Commands) -> None:
    """AWS allows few dynamic groups: at the quota the command says so."""
    commands.emulator.settings(dynamic_groups_at_most=0)
    ended = await commands.done(to_all("thingName:quota"))
    assert (ended["status"], "LimitExceededException" in ended["reason"]) == ("QuotaExceeded", True)
    assert commands.event(ended["jobId"])[1]["status"] == "QuotaExceeded"


async def test_a_group_of_another_query_is_not_used(commands: Commands) -> None:
    """A group that bears the name of the query's, and is not it, is left alone."""
    name = dynamic_group_name(PREFIX, "thingName:mine")
    commands.iot.create_dynamic_thing_group(thingGroupName=name, queryString="thingName:theirs")
    ended = await commands.done(to_all("thingName:mine"))
    assert (ended["status"], "delete it" in ended["reason"]) == ("InvalidCommand", True)
    assert commands.iot.describe_thing_group(thingGroupName=name)["queryString"] == "thingName:theirs"
