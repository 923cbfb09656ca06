"""A permanent error ends in Failed with a reason and a remedy; every other error is retried."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio
from sqlalchemy import Engine

from aws.clients import AwsClients
from domain.failure import FailureCode
from domain.provisioning_status import ProvisioningStatus
from settings import Settings
from tests.harness.bridge import Bridge, Device, until, worker_on

FAILED, ACTIVE = ProvisioningStatus.FAILED, ProvisioningStatus.ACTIVE


@pytest.fixture
def bridge(bridge_on_emulator: Bridge) -> Bridge:
    return bridge_on_emulator


@pytest.mark.both_emulators
async def test_a_missing_policy_fails_and_a_retry_ends_active(bridge: Bridge, missing_policy: str) -> None:
    """PolicyNotFound names the policy and the remedy. A retry continues from the failed step."""
    device = Device("NO-POLICY-1")
    await bridge.signal(device, device.event("Provisioned"), queue=f"queue-{missing_policy}")
    failed = await bridge.wait_for_status(device, FAILED)
    assert failed.failure_reason is not None
    assert failed.failure_code == "PolicyNotFound"
    assert missing_policy in failed.failure_reason
    assert FailureCode.POLICY_NOT_FOUND.remedy in failed.failure_reason
    assert bridge.published(device) == ["AwsThingProvisioningFailedEvent"]
    certificate = failed.certificate_arn
    bridge.iot.create_policy(policyName=missing_policy, policyDocument="{}")
    await bridge.signal(device, signal="retry")
    await bridge.wait_for_end(device)
    active = bridge.require_binding(device)
    assert (active.provisioning_status, active.failure_reason) == (ACTIVE, None)
    assert active.certificate_arn == certificate
    assert bridge.transitions(device)[-3:] == ["Failed", "SecretStored", "Active"]


async def test_a_failed_device_is_listed_and_holds_later_events(bridge: Bridge, missing_policy: str) -> None:
    """A failed run stays open, is found by its search attributes, and queues later events for the retry."""
    device = Device("HELD-1")
    await bridge.signal(device, device.event("Provisioned"), queue=f"queue-{missing_policy}")
    await bridge.wait_for_status(device, FAILED)
    await bridge.signal(device, device.event("Suspended", 7))
    status = await bridge.status(device)
    assert [event["type"] for event in status["queued"]] == ["DeviceSuspendedEvent"]
    assert status["lastError"]["code"] == "PolicyNotFound"
    query = f'ProvisioningStatus="Failed" AND ExecutionStatus="Running" AND ThingName="{device.thing_name}"'
    assert await listed(bridge, query) == [device.workflow_id]
    bridge.iot.create_policy(policyName=missing_policy, policyDocument="{}")
    await bridge.signal(device, signal="retry")
    await bridge.wait_for_end(device)
    assert bridge.require_binding(device).last_shadow_reported_at is not None


async def test_a_second_failure_after_a_retry_is_reported_again(bridge: Bridge, missing_policy: str) -> None:
    """A retry that does not help fails again, with another event of another id."""
    device = Device("AGAIN-1")
    await bridge.signal(device, device.event("Provisioned"), queue=f"queue-{missing_policy}")
    await bridge.wait_for_status(device, FAILED)
    await bridge.signal(device, signal="retry")

    async def reported_twice() -> bool:
        return len(bridge.outbox(device)) == 2

    await until(reported_twice, "two failures are reported")
    first, second = bridge.outbox(device)
    assert first.event_id != second.event_id
    assert (first.sequence, second.sequence) == (1, 2)
    await bridge.send_and_wait(device, device.event("Decommissioned"))


async def test_a_retry_resumes_after_a_terminated_run(bridge: Bridge, missing_policy: str) -> None:
    """A retry alone continues after a run was terminated, because the state is in the database."""
    device = Device("TERMINATED-1")
    await bridge.signal(device, device.event("Provisioned"), queue=f"queue-{missing_policy}")
    await bridge.wait_for_status(device, FAILED)
    await bridge.client.get_workflow_handle(device.workflow_id).terminate("by an operator")
    bridge.iot.create_policy(policyName=missing_policy, policyDocument="{}")
    await bridge.signal(device, signal="retry", queue=f"queue-{missing_policy}")
    await bridge.wait_for_end(device)
    assert bridge.require_binding(device).provisioning_status is ACTIVE


async def test_access_denied_fails_at_once_and_names_the_action(faulty_bridge: Bridge) -> None:
    """A denied call is not retried, and the reason names it."""
    device = Device("DENIED-1")
    faulty_bridge.emulator.add_fault(
        "iot:CreateThing", resource=device.thing_name, code="AccessDeniedException", status=403
    )
    await faulty_bridge.signal(device, device.event("Provisioned"))
    failed = await faulty_bridge.wait_for_status(device, FAILED)
    assert failed.failure_reason is not None
    assert failed.failure_code == "AccessDenied"
    assert failed.failure_reason.startswith("CreateThing")
    faulty_bridge.emulator.clear_faults()
    await faulty_bridge.signal(device, signal="retry")
    await faulty_bridge.wait_for_end(device)
    assert faulty_bridge.require_binding(device).provisioning_status is ACTIVE


@pytest.mark.parametrize(
    ("code", "status"),
    [("ThrottlingException", 429), ("InternalFailureException", 500), ("ExpiredTokenException", 403)],
)
async def test_a_temporary_error_is_retried(faulty_bridge: Bridge, code: str, status: int) -> None:
    """Throttling, server errors of AWS and keys that are being rotated do not fail the device."""
    device = Device(f"RETRIED-{status}-{code[:3]}")
    faulty_bridge.emulator.add_fault(
        "iot:CreateThing", resource=device.thing_name, code=code, status=status, times=1
    )
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    assert faulty_bridge.require_binding(device).provisioning_status is ACTIVE
    assert "Failed" not in faulty_bridge.transitions(device)


async def test_retries_end_as_exhausted_with_the_last_error(bridge: Bridge, short_step_retry: str) -> None:
    """After the configured time the device is Failed as RetriesExhausted, with the last error."""
    device = Device("EXHAUSTED-1")
    bridge.emulator.add_fault(
        "iot:CreateThing", resource=device.thing_name, code="ThrottlingException", status=429
    )
    await bridge.signal(device, device.event("Provisioned"), queue=short_step_retry)
    failed = await bridge.wait_for_status(device, FAILED)
    assert failed.failure_reason is not None
    assert failed.failure_code == "RetriesExhausted"
    assert "ThrottlingException" in failed.failure_reason
    bridge.emulator.clear_faults()
    await bridge.send_and_wait(device, device.event("Decommissioned"))


@pytest.mark.both_emulators
async def test_the_thing_of_another_device_is_not_changed(bridge: Bridge) -> None:
    """A Thing with another device's id fails this device, and its teardown does not change that Thing."""
    device, other_id = Device("FOREIGN-1"), str(uuid4())
    bridge.iot.create_thing(
        thingName=device.thing_name, attributePayload={"attributes": {"deviceId": other_id}}
    )
    await bridge.signal(device, device.event("Provisioned"))
    failed = await bridge.wait_for_status(device, FAILED)
    assert failed.failure_code == "ThingOfAnotherDevice"
    await bridge.send_and_wait(device, device.event("Decommissioned"))
    assert bridge.aws_resources(device).thing == {"deviceId": other_id}


async def test_a_thing_with_an_unknown_certificate_is_not_changed(bridge: Bridge) -> None:
    """A Thing with an unrecorded certificate is never adopted, and its certificate is not deleted."""
    device = Device("FOREIGN-2")
    bridge.iot.create_thing(thingName=device.thing_name)
    certificate = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=certificate)
    await bridge.signal(device, device.event("Provisioned"))
    failed = await bridge.wait_for_status(device, FAILED)
    assert failed.failure_code == "UnknownCertificate"
    await bridge.send_and_wait(device, device.event("Decommissioned"))
    resources = bridge.aws_resources(device, certificate)
    assert resources.thing == {}
    assert [found.status for found in resources.certificates] == ["ACTIVE"]


@pytest.mark.both_emulators
async def test_a_thing_without_an_owner_is_adopted(bridge: Bridge) -> None:
    """A Thing that records no owner is adopted, and keeps its own attributes."""
    device = Device("LEGACY-1")
    bridge.iot.create_thing(thingName=device.thing_name, attributePayload={"attributes": {"model": "MX-3"}})
    await bridge.send_and_wait(device, device.event("Provisioned"))
    assert bridge.aws_resources(device).thing == {
        "model": "MX-3",
        "deviceId": str(device.device_id),
        "tenantId": str(device.tenant_id),
    }


async def test_a_thing_without_room_for_the_owner_attributes_fails(bridge: Bridge) -> None:
    """AWS allows three attributes: a Thing with two of its own is not changed, and the device fails."""
    device = Device("FULL-1")
    own = {"model": "MX-3", "site": "north"}
    bridge.iot.create_thing(thingName=device.thing_name, attributePayload={"attributes": own})
    await bridge.signal(device, device.event("Provisioned"))
    failed = await bridge.wait_for_status(device, FAILED)
    assert failed.failure_code == "NoRoomForAttributes"
    assert bridge.aws_resources(device).thing == own
    await bridge.send_and_wait(device, device.event("Decommissioned"))


async def test_a_name_taken_during_the_creation_is_described_again(faulty_bridge: Bridge) -> None:
    """After a CreateThing that fails because the name exists, the next attempt describes the Thing again."""
    device = Device("RACED-1")
    faulty_bridge.emulator.add_fault(
        "iot:CreateThing",
        resource=device.thing_name,
        code="ResourceAlreadyExistsException",
        status=409,
        times=1,
    )
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    assert faulty_bridge.require_binding(device).provisioning_status is ACTIVE


async def test_a_thing_deleted_during_the_adoption_is_created(faulty_bridge: Bridge) -> None:
    """A Thing that is deleted before its owner is recorded does not fail the device."""
    device = Device("DELETED-BETWEEN-1")
    faulty_bridge.iot.create_thing(thingName=device.thing_name)
    faulty_bridge.emulator.add_fault(
        "iot:UpdateThing",
        resource=device.thing_name,
        code="ResourceNotFoundException",
        status=404,
        times=1,
    )
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    assert "Failed" not in faulty_bridge.transitions(device)


async def test_a_secret_deleted_during_the_write_is_retried(faulty_bridge: Bridge) -> None:
    """A secret that exists at CreateSecret and not at PutSecretValue is being deleted, which is retried."""
    device = Device("DELETED-BETWEEN-2")
    faulty_bridge.secrets.create_secret(Name=f"iot/devices/{device.thing_name}/key", SecretString="older")
    faulty_bridge.emulator.add_fault(
        "secretsmanager:PutSecretValue",
        resource=device.thing_name,
        code="ResourceNotFoundException",
        times=1,
    )
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    assert "Failed" not in faulty_bridge.transitions(device)


async def test_an_unexpected_error_of_aws_names_a_remedy(faulty_bridge: Bridge) -> None:
    """An error that no step handles has a failure code, and its reason ends with the remedy."""
    device = Device("UNEXPECTED-1")
    faulty_bridge.emulator.add_fault(
        "secretsmanager:CreateSecret",
        resource=device.thing_name,
        code="ResourceNotFoundException",
        times=1,
    )
    await faulty_bridge.signal(device, device.event("Provisioned"))
    failed = await faulty_bridge.wait_for_status(device, FAILED)
    reason = failed.failure_reason
    assert reason is not None
    assert failed.failure_code == "RefusedByAws"
    assert reason.startswith("CreateSecret: ResourceNotFoundException")
    assert reason.endswith(FailureCode.REFUSED_BY_AWS.remedy)
    await faulty_bridge.signal(device, signal="retry")
    await faulty_bridge.wait_for_end(device)


async def test_a_serial_bound_to_another_device_fails_until_it_is_free(bridge: Bridge) -> None:
    """Two devices of a tenant cannot have one serial: the second fails until the first is decommissioned."""
    tenant = uuid4()
    first, second = Device("ONE-SERIAL-1", tenant), Device("ONE-SERIAL-1", tenant)
    await bridge.send_and_wait(first, first.event("Provisioned"))
    await bridge.signal(second, second.event("Provisioned"))
    failed = await bridge.wait_for_status(second, FAILED)
    assert failed.failure_code == "SerialBoundToAnotherDevice"
    await bridge.send_and_wait(first, first.event("Decommissioned"))
    await bridge.signal(second, signal="retry")
    await bridge.wait_for_end(second)
    assert bridge.require_binding(second).provisioning_status is ACTIVE
    assert bridge.aws_resources(second).thing == {
        "deviceId": str(second.device_id),
        "tenantId": str(second.tenant_id),
    }


async def test_a_serial_being_released_is_retried(bridge: Bridge) -> None:
    """A device whose serial belongs to a device that is being decommissioned waits and does not fail."""
    tenant = uuid4()
    first, second = Device("REUSED-1", tenant), Device("REUSED-1", tenant)
    await bridge.send_and_wait(first, first.event("Provisioned"))
    await bridge.signal(first, first.event("Decommissioned"))
    await bridge.wait_for_activity(first, "revoke_certificates")
    await bridge.send_and_wait(second, second.event("Provisioned"))
    assert bridge.require_binding(first).provisioning_status is ProvisioningStatus.DECOMMISSIONED
    assert bridge.transitions(second)[-1] == "Active"
    assert "Failed" not in bridge.transitions(second)


async def test_two_tenants_can_have_the_same_serial(bridge: Bridge) -> None:
    """Serials are unique per tenant only."""
    first, second = Device("TWIN-1"), Device("TWIN-1")
    await bridge.send_and_wait(first, first.event("Provisioned"))
    await bridge.send_and_wait(second, second.event("Provisioned"))
    assert bridge.require_binding(first).thing_name != bridge.require_binding(second).thing_name
    assert bridge.require_binding(second).provisioning_status is ACTIVE


async def test_an_error_of_an_active_device_is_recorded_and_does_not_fail_it(faulty_bridge: Bridge) -> None:
    """An Active device stays Active if its shadow is denied; the row has the reason until a success."""
    device = Device("SHADOW-DENIED-1")
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    faulty_bridge.emulator.add_fault(
        "iot-data:UpdateThingShadow", resource=device.thing_name, code="ForbiddenException", status=403
    )
    await faulty_bridge.send_and_wait(device, device.event("Activated", 1))
    stored = faulty_bridge.require_binding(device)
    assert stored.provisioning_status is ACTIVE
    assert stored.failure_code == "AccessDenied"
    assert stored.failure_reason is not None
    assert stored.failure_reason.startswith("UpdateThingShadow")
    faulty_bridge.emulator.clear_faults()
    await faulty_bridge.send_and_wait(device, device.event("Suspended", 2))
    assert faulty_bridge.require_binding(device).failure_reason is None


async def test_a_retry_sent_during_another_retry_is_handled(faulty_bridge: Bridge) -> None:
    """A second retry is not ignored if it is sent while the first one is still failing."""
    device = Device("RETRIED-TWICE-1")
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    denied = {"resource": device.thing_name, "code": "ForbiddenException", "status": 403, "times": 1}
    faulty_bridge.emulator.add_fault("iot-data:UpdateThingShadow", **denied)  # type: ignore[arg-type]
    await faulty_bridge.send_and_wait(device, device.event("Activated", 1))
    slow_call = faulty_bridge.emulator.add_fault("iot-data:UpdateThingShadow", **denied, delay_seconds=2)  # type: ignore[arg-type]
    await faulty_bridge.signal(device, signal="retry")
    await faulty_bridge.wait_for_fault(slow_call)
    await faulty_bridge.signal(device, signal="retry")
    await faulty_bridge.wait_for_end(device)
    assert faulty_bridge.require_binding(device).last_shadow_reported_at is not None
    assert faulty_bridge.require_binding(device).failure_reason is None


@pytest_asyncio.fixture
async def missing_policy(
    bridge: Bridge, aws_on_emulator: AwsClients, engine: Engine, settings: Settings
) -> AsyncIterator[str]:
    """Run a worker whose IoT policy does not exist, on a separate queue; the value is the policy's name."""
    name = f"later-{uuid4().hex[:8]}"
    changed = settings.model_copy(
        update={"provisioning": settings.provisioning.model_copy(update={"device_policy_name": name})}
    )
    async with worker_on(f"queue-{name}", changed, bridge, aws_on_emulator, engine):
        yield name


@pytest_asyncio.fixture
async def short_step_retry(
    bridge: Bridge, aws: AwsClients, engine: Engine, settings: Settings
) -> AsyncIterator[str]:
    """Run a worker that retries a step for three seconds, on a separate queue; the value is the queue."""
    queue = f"queue-{uuid4().hex[:8]}"
    changed = settings.model_copy(
        update={"provisioning": settings.provisioning.model_copy(update={"step_retry_seconds": 3.0})}
    )
    async with worker_on(queue, changed, bridge, aws, engine):
        yield queue


async def listed(bridge: Bridge, query: str) -> list[str]:
    """Return the workflow ids that a visibility query finds, after it finds one: visibility lags."""
    found: list[str] = []

    async def some() -> bool:
        found.extend([run.id async for run in bridge.client.list_workflows(query)])
        return bool(found)

    await until(some, query)
    return found
