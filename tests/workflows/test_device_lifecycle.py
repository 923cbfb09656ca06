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


@pytest.fixture
def bridge(bridge_on_emulator: Bridge) -> Bridge:
    return bridge_on_emulator


@pytest.mark.both_emulators
async def test_provisioned_event_creates_thing_certificate_and_secret(bridge: Bridge) -> None:
    """A provisioned device has a Thing with its ids, an active certificate with a policy, and a secret."""
    device = Device("STRAIGHT-1")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    binding, resources = bridge.require_binding(device), bridge.aws_resources(device)
    assert binding.provisioning_status is ProvisioningStatus.ACTIVE
    assert resources.thing == {"deviceId": str(device.device_id), "tenantId": str(device.tenant_id)}
    (certificate,) = resources.certificates
    assert (certificate.arn, certificate.status, certificate.policies) == (
        binding.certificate_arn,
        "ACTIVE",
        (POLICY,),
    )
    assert resources.secret_arn == binding.certificate_secret_arn
    assert fits(resources.key, bridge.certificate_pem(certificate.arn))


async def test_null_tenant_is_written_as_the_zero_uuid(bridge: Bridge) -> None:
    """Without a tenant, Thing name and search attribute have zeros, and the tenant of the row is null."""
    device = Device("NO-TENANT-1", tenant_id=None)
    handle = await bridge.send_and_wait(device, device.event("Provisioned"))
    attributes = {pair.key.name: pair.value for pair in (await handle.describe()).typed_search_attributes}
    assert attributes["TenantId"] == "00000000-0000-0000-0000-000000000000"
    assert bridge.require_binding(device).thing_name == f"t{'0' * 32}-NO-TENANT-1"
    assert bridge.require_binding(device).tenant_id is None


async def test_every_transition_is_audited_and_the_last_published(bridge: Bridge) -> None:
    """Each status change is a row with workflow and run id, and Active is published through the outbox."""
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


async def test_provisioning_takes_four_activities_and_at_most_36_events(bridge: Bridge) -> None:
    """A history without errors has four activities and stays small, search attributes included."""
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


async def test_search_attributes_are_current_after_provisioning(bridge: Bridge) -> None:
    """Tenant, Thing name and the newest status are search attributes of the run."""
    device = Device("SEARCH-1")
    handle = await bridge.send_and_wait(device, device.event("Provisioned"))
    attributes = {pair.key.name: pair.value for pair in (await handle.describe()).typed_search_attributes}
    assert attributes["TenantId"] == str(device.tenant_id)
    assert attributes["ThingName"] == device.thing_name
    assert attributes["ProvisioningStatus"] == "Active"


async def test_activity_summaries_name_the_thing(bridge: Bridge) -> None:
    """Each activity's summary in the UI has the name of its Thing."""
    device = Device("SUMMARY-1")
    handle = await bridge.send_and_wait(device, device.event("Provisioned"))
    summaries = [
        json.loads(event.user_metadata.summary.data)
        async for event in handle.fetch_history_events()
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    assert len(summaries) == 4
    assert all(device.thing_name in summary for summary in summaries)


async def test_temporal_cli_with_plain_json_provisions_a_device(bridge: Bridge) -> None:
    """Any client works: the official CLI sends plain JSON, and shows no private key afterwards."""
    device = Device("PLAIN-CLI-1")
    await temporal(
        "workflow", "signal-with-start", "--type", "DeviceLifecycle", "--task-queue", "thingbridge",
        "--workflow-id", device.workflow_id, "--signal-name", "device_event",
        "--signal-input", json.dumps(device.event("Provisioned")),
    )  # fmt: skip
    await bridge.wait_for_end(device)
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE
    shown = await temporal("workflow", "show", "--workflow-id", device.workflow_id, "--output", "json")
    key = bridge.aws_resources(device).key
    assert key is not None
    assert "PRIVATE KEY" not in shown
    assert not [line for line in key.splitlines()[1:-1] if line in shown]


async def test_run_of_an_idle_device_ends(bridge: Bridge) -> None:
    """The run ends when nothing is queued, and a later event starts another run."""
    device = Device("IDLE-1")
    first = await bridge.send_and_wait(device, device.event("Provisioned"))
    first_run = (await first.describe()).run_id
    second = await bridge.send_and_wait(device, device.event("Activated", 1))
    assert (await second.describe()).run_id != first_run


async def test_start_argument_of_a_client_is_ignored(bridge: Bridge) -> None:
    """An event or a forged state, sent as the run's argument, changes nothing and blocks nothing."""
    device = Device("MISTAKE-1")
    for argument in (device.event("Provisioned"), {"rejected_count": 7, "retries_received": 1}):
        await bridge.client.start_workflow(
            "DeviceLifecycle", argument, id=device.workflow_id, task_queue="thingbridge"
        )
        await bridge.wait_for_end(device)
        status = await bridge.status(device)
        assert (status["rejectedCount"], status["queued"]) == (0, [])
    await bridge.send_and_wait(device, device.event("Provisioned"))
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE


async def test_burst_of_events_is_handled_over_several_runs(bridge: Bridge) -> None:
    """A burst that makes the history long continues in a new run; no event and no rejection is lost."""
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


async def test_no_event_is_lost_while_the_run_ends(bridge: Bridge) -> None:
    """An event that arrives while the run ends is handled by it or by the next run."""
    device = Device("CLOSING-1")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    for minute in range(1, 30):
        await bridge.signal(device, device.event("Suspended" if minute % 2 else "Activated", minute))
        await asyncio.sleep(0.01 * (minute % 7))
    await bridge.wait_for_end(device)
    shadow = json.load(bridge.iot_data.get_thing_shadow(thingName=device.thing_name)["payload"])
    assert shadow["state"]["reported"]["updatedAt"] == "2026-11-23T12:29:00Z"


async def test_run_cancelled_by_an_operator_loses_no_event(faulty_bridge: Bridge) -> None:
    """Queued events are stored before the run ends, and a retry brings the device to the desired status."""
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
    """Return whether a private key belongs to a certificate."""
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
