"""A device from its first event to Active, as the platform and an operator see it."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError

from domain.provisioning_status import ProvisioningStatus
from tests.harness.bridge import POLICY, Bridge, Device

TEMPORAL_CLI = Path(sys.executable).parent / "temporal"


async def test_provisioned_event_makes_everything_a_device_needs(bridge: Bridge) -> None:
    """A provisioned device has a stamped Thing, an active certificate with a policy, its key in a secret."""
    device = Device("STRAIGHT-1")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    binding, traces = bridge.require_binding(device), bridge.traces(device)
    assert binding.provisioning_status is ProvisioningStatus.ACTIVE
    assert traces.thing == {"deviceId": str(device.device_id), "tenantId": str(device.tenant_id)}
    (certificate,) = traces.certificates
    assert (certificate.arn, certificate.status, certificate.policies) == (
        binding.certificate_arn,
        "ACTIVE",
        (POLICY,),
    )
    assert traces.secret_arn == binding.certificate_secret_arn
    assert fits(traces.key, bridge.certificate_pem(certificate.arn))


async def test_a_null_tenant_is_written_as_the_zero_uuid(bridge: Bridge) -> None:
    """A device of no tenant gets a Thing name of 32 zeros, is searched for by them, and its row says null."""
    device = Device("NO-TENANT-1", tenant_id=None)
    handle = await bridge.send_and_wait(device, device.event("Provisioned"))
    attributes = {pair.key.name: pair.value for pair in (await handle.describe()).typed_search_attributes}
    assert attributes["TenantId"] == "00000000-0000-0000-0000-000000000000"
    assert bridge.require_binding(device).thing_name == f"t{'0' * 32}-NO-TENANT-1"
    assert bridge.require_binding(device).tenant_id is None


async def test_every_transition_is_audited_and_told(bridge: Bridge) -> None:
    """Each status change is a row naming workflow and run, and the end is told in the outbox."""
    device = Device("AUDITED-1")
    handle = await bridge.send_and_wait(device, device.event("Provisioned"))
    assert bridge.transitions(device) == ["Pending", "ThingCreated", "CertIssued", "SecretStored", "Active"]
    rows = bridge.transition_rows(device)
    run_id = (await handle.describe()).run_id
    assert {(row.workflow_id, row.run_id) for row in rows} == {(device.workflow_id, run_id)}
    assert (
        bridge.require_binding(device).created_by
        == bridge.require_binding(device).modified_by
        == device.workflow_id
    )
    assert bridge.published(device) == ["AwsThingProvisionedEvent"]


async def test_the_straight_path_costs_at_most_36_events_and_four_activities(bridge: Bridge) -> None:
    """An operator sees four activities; the history stays small, search attributes included."""
    device = Device("SHAPE-1")
    handle = await bridge.send_and_wait(device, device.event("Provisioned"))
    events = [event async for event in handle.fetch_history_events()]
    activities = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    assert activities == ["ensure_thing", "issue_certificate", "attach_certificate", "activate_certificate"]
    assert len(events) <= 36


async def test_search_attributes_follow_the_saga(bridge: Bridge) -> None:
    """Tenant, Thing name and status can be searched for, and the status is the newest."""
    device = Device("SEARCH-1")
    handle = await bridge.send_and_wait(device, device.event("Provisioned"))
    attributes = {pair.key.name: pair.value for pair in (await handle.describe()).typed_search_attributes}
    assert attributes["TenantId"] == str(device.tenant_id)
    assert attributes["ThingName"] == device.thing_name
    assert attributes["ProvisioningStatus"] == "Active"


async def test_activities_say_what_they_do_to_which_thing(bridge: Bridge) -> None:
    """Each activity's summary in the UI names its work and its Thing."""
    device = Device("SUMMARY-1")
    handle = await bridge.send_and_wait(device, device.event("Provisioned"))
    summaries = [
        json.loads(event.user_metadata.summary.data)
        async for event in handle.fetch_history_events()
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    assert len(summaries) == 4
    assert all(device.thing_name in summary for summary in summaries)


async def test_the_plain_temporal_cli_takes_a_device_to_active(bridge: Bridge) -> None:
    """Anyone's client will do: the official CLI with plain JSON, and no key in what it then shows."""
    device = Device("PLAIN-CLI-1")
    await temporal(
        "workflow", "signal-with-start", "--type", "DeviceLifecycle", "--task-queue", "thingbridge",
        "--workflow-id", device.workflow_id, "--signal-name", "device_event",
        "--signal-input", json.dumps(device.event("Provisioned")),
    )  # fmt: skip
    await bridge.wait_for_end(device)
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE
    shown = await temporal("workflow", "show", "--workflow-id", device.workflow_id, "--output", "json")
    key = bridge.traces(device).key
    assert key is not None
    assert "PRIVATE KEY" not in shown
    assert not [line for line in key.splitlines()[1:-1] if line in shown]


async def test_no_run_stays_open_for_an_idle_device(bridge: Bridge) -> None:
    """The workflow ends once nothing is queued, and a later event starts another run."""
    device = Device("IDLE-1")
    first = await bridge.send_and_wait(device, device.event("Provisioned"))
    first_run = (await first.describe()).run_id
    second = await bridge.send_and_wait(device, device.event("Activated", 1))
    assert (await second.describe()).run_id != first_run


async def test_a_start_argument_sent_by_mistake_blocks_nothing(bridge: Bridge) -> None:
    """An event sent as the run's argument, where the signal's was meant, does not block the device."""
    device = Device("MISTAKE-1")
    await bridge.client.start_workflow(
        "DeviceLifecycle", device.event("Provisioned"), id=device.workflow_id, task_queue="thingbridge",
    )  # fmt: skip
    await bridge.wait_for_end(device)
    await bridge.send_and_wait(device, device.event("Provisioned"))
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE


async def test_a_burst_of_events_is_handled_over_several_runs(bridge: Bridge) -> None:
    """A burst that makes history long is carried into a new run, and nothing of it is lost."""
    device = Device("BURST-1")
    bridge.emulator.add_fault("iot:CreateThing", resource=device.thing_name, delay_seconds=2, times=1)
    first = await bridge.signal(device, device.event("Provisioned"))
    burst = [device.event("Activated", minute) for minute in range(250)]
    burst.append(device.event("Suspended", 5000))
    await asyncio.gather(*(bridge.signal(device, event) for event in burst))
    await bridge.signal(device, {"not": "an event"})
    last = await bridge.wait_for_end(device, 60)
    assert (await first.describe()).status is WorkflowExecutionStatus.CONTINUED_AS_NEW
    shadow = json.load(bridge.iot_data.get_thing_shadow(thingName=device.thing_name)["payload"])
    assert shadow["state"]["reported"]["status"] == "Suspended"
    assert (await last.query("status"))["rejectedCount"] == 1


async def test_no_event_is_lost_as_the_run_closes(bridge: Bridge) -> None:
    """Events that arrive just as the workflow ends are taken by it or by the next run, never by none."""
    device = Device("CLOSING-1")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    for minute in range(1, 30):
        await bridge.signal(device, device.event("Suspended" if minute % 2 else "Activated", minute))
        await asyncio.sleep(0.01 * (minute % 7))
    await bridge.wait_for_end(device)
    shadow = json.load(bridge.iot_data.get_thing_shadow(thingName=device.thing_name)["payload"])
    assert shadow["state"]["reported"]["updatedAt"] == "2026-11-23T12:29:00Z"


async def test_a_run_cancelled_by_hand_loses_no_event(faulty_bridge: Bridge) -> None:
    """What was queued is remembered, and a retry brings the device where it has to be."""
    device = Device("CANCELLED-1")
    throttle = faulty_bridge.emulator.add_fault
    throttle("iot:CreateThing", resource=device.thing_name, code="ThrottlingException", status=429)
    handle = await faulty_bridge.signal(device, device.event("Provisioned"))
    await faulty_bridge.wait_for_activity(device, "ensure_thing", attempts=2)
    await faulty_bridge.signal(device, device.event("Suspended", 1))
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await faulty_bridge.wait_for_end(device)
    assert "Failed" not in faulty_bridge.transitions(device)
    faulty_bridge.emulator.clear_faults()
    await faulty_bridge.signal(device, signal="retry")
    await faulty_bridge.wait_for_end(device)
    shadow = json.load(faulty_bridge.iot_data.get_thing_shadow(thingName=device.thing_name)["payload"])
    assert shadow["state"]["reported"]["status"] == "Suspended"


def fits(key: str | None, certificate_pem: str) -> bool:
    """Whether a private key is that of a certificate."""
    assert key is not None
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    return load_pem_private_key(key.encode(), None).public_key() == certificate.public_key()


async def temporal(*arguments: str) -> str:
    """Run the official CLI against the stack."""
    process = await asyncio.create_subprocess_exec(
        TEMPORAL_CLI, *arguments, "--address", os.environ["TEMPORAL_ADDRESS"], stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()
