"""Decommissioning erases everything of a device in AWS, at any time and however it was provisioned."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlmodel import Session

from activities.bindings import certificate_arn_of
from db.models import AwsThingBinding, DeviceRow
from domain.provisioning_status import ProvisioningStatus
from tests.harness.bridge import POLICY, Bridge, Device, until

GONE = ProvisioningStatus.DECOMMISSIONED


@pytest.fixture
def bridge(bridge_on_emulator: Bridge) -> Bridge:
    return bridge_on_emulator


@pytest.mark.both_emulators
async def test_a_decommission_erases_everything_of_the_device(bridge: Bridge) -> None:
    """Thing, certificate, secret, classic and named shadows and jobs are erased, and the end is recorded."""
    device = Device("GONE-1")
    await bridge.send_and_wait(device, device.event("Provisioned"), device.event("Activated", 1))
    certificate = certificate_arn_of(bridge.require_binding(device))
    for shadow in ("config", "firmware"):
        bridge.iot_data.update_thing_shadow(
            thingName=device.thing_name,
            shadowName=shadow,
            payload=json.dumps({"state": {"desired": {"a": 1}}}),
        )
    thing_arn = bridge.require_binding(device).thing_arn
    bridge.iot.create_job(jobId=f"job-{device.device_id}", targets=[thing_arn], document="{}")
    await bridge.send_and_wait(device, device.event("Decommissioned", 2))
    assert_erased(bridge, device, certificate)
    with pytest.raises(bridge.iot.exceptions.ResourceNotFoundException):
        bridge.iot.describe_job(jobId=f"job-{device.device_id}")
    binding = bridge.require_binding(device)
    assert binding.deleted_at is not None
    assert binding.deleted_by == device.workflow_id
    assert bridge.published(device) == ["AwsThingProvisionedEvent", "AwsThingDecommissionedEvent"]


@pytest.mark.both_emulators
async def test_further_policies_and_certificates_are_erased(bridge: Bridge) -> None:
    """Certificates and policies that others attached to the device's Thing do not block its teardown."""
    device = Device("GONE-2")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    own = certificate_arn_of(bridge.require_binding(device))
    bridge.iot.create_policy(policyName="other-policy", policyDocument="{}")
    second = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    for certificate in (own, second):
        bridge.iot.attach_policy(policyName="other-policy", target=certificate)
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=second)
    await bridge.send_and_wait(device, device.event("Decommissioned"))
    assert_erased(bridge, device, own, second)


@pytest.mark.both_emulators
async def test_a_certificate_that_serves_another_thing_is_only_detached(bridge: Bridge) -> None:
    """A shared certificate stays active on the other Thing, and the audit names it."""
    device, other = Device("GONE-3"), Device("STAYS-3")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    bridge.iot.create_thing(thingName=other.thing_name)
    shared = certificate_arn_of(bridge.require_binding(device))
    bridge.iot.attach_thing_principal(thingName=other.thing_name, principal=shared)
    await bridge.send_and_wait(device, device.event("Decommissioned"))
    assert bridge.aws_resources(device).thing is None
    assert bridge.iot.list_thing_principals(thingName=other.thing_name)["principals"] == [shared]
    (certificate,) = bridge.aws_resources(other).certificates
    assert (certificate.status, certificate.policies) == ("ACTIVE", (POLICY,))
    assert shared in str(bridge.transition_rows(device)[-1].reason)
    assert bridge.outbox(device)[-1].data["kept"] == [shared]


async def test_a_thing_assigned_to_another_device_loses_only_the_old_certificate(bridge: Bridge) -> None:
    """A Thing that now records another device is kept, but the certificate of this device is deleted."""
    device, other_id = Device("REASSIGNED-1"), str(uuid4())
    await bridge.send_and_wait(device, device.event("Provisioned"))
    certificate = certificate_arn_of(bridge.require_binding(device))
    bridge.iot.update_thing(
        thingName=device.thing_name, attributePayload={"attributes": {"deviceId": other_id}, "merge": True}
    )
    await bridge.send_and_wait(device, device.event("Decommissioned"))
    resources = bridge.aws_resources(device, certificate)
    assert resources.thing == {"deviceId": other_id, "tenantId": str(device.tenant_id)}
    assert (resources.certificates, resources.secret_arn) == ([], None)


async def test_a_certificate_attached_during_the_teardown_is_erased(faulty_bridge: Bridge) -> None:
    """Its Thing is deleted, and so is the certificate, also if an attempt fails once it is detached."""
    device = Device("ENROLLING-GONE-1")
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    own = certificate_arn_of(faulty_bridge.require_binding(device))
    faulty_bridge.emulator.add_fault(
        "iot:DeleteThing", resource=device.thing_name, code="ThrottlingException", status=429
    )
    await faulty_bridge.signal(device, device.event("Decommissioned"))
    await faulty_bridge.wait_for_activity(device, "erase_thing", attempts=2)
    late = faulty_bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    faulty_bridge.iot.attach_policy(policyName=POLICY, target=late)
    faulty_bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=late)
    faulty_bridge.emulator.clear_faults()

    async def detached() -> bool:
        return not faulty_bridge.iot.list_principal_things(principal=late)["things"]

    await until(detached, "the certificate is detached")
    throttled = faulty_bridge.emulator.add_fault(
        "iot:ListJobExecutionsForThing", code="ThrottlingException", status=429, times=1
    )
    await faulty_bridge.wait_for_fault(throttled)
    await faulty_bridge.wait_for_end(device)
    assert_erased(faulty_bridge, device, own, late)


async def test_a_decommission_cancels_a_throttled_step(faulty_bridge: Bridge) -> None:
    """A decommission cancels a step in its backoff at once, and ends when the throttling ends."""
    device = Device("THROTTLED-1")
    throttle = {"resource": device.thing_name, "code": "ThrottlingException", "status": 429}
    faulty_bridge.emulator.add_fault("iot:AttachThingPrincipal", **throttle)  # type: ignore[arg-type]
    await faulty_bridge.signal(device, device.event("Provisioned"))
    await faulty_bridge.wait_for_activity(device, "attach_certificate", attempts=2)
    certificate = certificate_arn_of(faulty_bridge.require_binding(device))
    faulty_bridge.emulator.add_fault("*", code="ThrottlingException", status=429)
    await faulty_bridge.signal(device, device.event("Decommissioned"))
    await faulty_bridge.wait_for_activity(device, "plan_teardown", attempts=2)
    faulty_bridge.emulator.clear_faults()
    await faulty_bridge.wait_for_end(device)
    assert_erased(faulty_bridge, device, certificate)
    assert "Active" not in faulty_bridge.transitions(device)
    assert "Failed" not in faulty_bridge.transitions(device)


@pytest.mark.parametrize(
    "operation", ["CreateThing", "CreateKeysAndCertificate", "AttachPolicy", "UpdateCertificate"]
)
async def test_a_decommission_waits_for_the_running_attempt(faulty_bridge: Bridge, operation: str) -> None:
    """A step that waits for AWS ends its attempt before the teardown, so nothing is created after it."""
    device = Device(f"MIDWAY-{operation}")
    slow_call = faulty_bridge.emulator.add_fault(f"iot:{operation}", delay_seconds=1.0, times=1)
    await faulty_bridge.signal(device, device.event("Provisioned"))
    await faulty_bridge.wait_for_fault(slow_call)
    await faulty_bridge.signal(device, device.event("Decommissioned"))
    await faulty_bridge.wait_for_end(device)
    assert_erased(faulty_bridge, device)


async def test_a_decommission_ends_a_failed_saga(faulty_bridge: Bridge) -> None:
    """A Failed device with an open run is torn down without a retry."""
    device = Device("FAILED-GONE-1")
    faulty_bridge.emulator.add_fault(
        "iot:AttachThingPrincipal", resource=device.thing_name, code="AccessDeniedException", status=403
    )
    await faulty_bridge.signal(device, device.event("Provisioned"))
    failed = await faulty_bridge.wait_for_status(device, ProvisioningStatus.FAILED)
    faulty_bridge.emulator.clear_faults()
    await faulty_bridge.send_and_wait(device, device.event("Decommissioned"))
    assert_erased(faulty_bridge, device, certificate_arn_of(failed))
    assert faulty_bridge.require_binding(device).failure_reason is None


async def test_a_denied_teardown_is_recorded_and_continues_at_a_retry(faulty_bridge: Bridge) -> None:
    """The reason of a teardown that AWS denies is in the row; a retry ends it when it is permitted."""
    device = Device("DENIED-GONE-1")
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    faulty_bridge.emulator.add_fault(
        "secretsmanager:DeleteSecret", resource=device.thing_name, code="AccessDeniedException", status=400
    )
    await faulty_bridge.signal(device, device.event("Decommissioned"))

    async def recorded() -> bool:
        binding = faulty_bridge.require_binding(device)
        denied = binding.failure_code == "AccessDenied"
        return denied and str(binding.failure_reason).startswith("DeleteSecret")

    await until(recorded, "the denial is recorded")
    assert faulty_bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE
    faulty_bridge.emulator.clear_faults()
    await faulty_bridge.signal(device, signal="retry")
    await faulty_bridge.wait_for_end(device)
    assert_erased(faulty_bridge, device)


async def test_a_shadow_recreated_during_the_teardown_is_erased(faulty_bridge: Bridge) -> None:
    """A shadow is erased, even if a device that is still connected writes it during the deletion."""
    device = Device("LINGERING-1")
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    faulty_bridge.emulator.settings(detach_seconds=0)
    deleting = faulty_bridge.emulator.add_fault(
        "iot:DeleteThing", resource=device.thing_name, delay_seconds=1.5, times=1
    )
    await faulty_bridge.signal(device, device.event("Decommissioned"))
    await faulty_bridge.wait_for_fault(deleting)
    faulty_bridge.iot_data.update_thing_shadow(
        thingName=device.thing_name, payload='{"state":{"reported":{"t":1}}}'
    )
    await faulty_bridge.wait_for_end(device)
    faulty_bridge.emulator.settings(detach_seconds=2)
    assert faulty_bridge.shadow_names(device) == []


@pytest.mark.both_emulators
async def test_a_repeated_decommission_changes_nothing(bridge: Bridge) -> None:
    """A second decommission, or an event after it, has no effect."""
    device = Device("GONE-TWICE-1")
    await bridge.send_and_wait(device, device.event("Provisioned"), device.event("Decommissioned"))
    before = bridge.require_binding(device)
    await bridge.send_and_wait(device, device.event("Decommissioned", 1), device.event("Reactivated", 9))
    await bridge.send_and_wait(device, device.event("Provisioned", 10))
    assert bridge.require_binding(device) == before


@pytest.mark.both_emulators
async def test_a_serial_can_be_provisioned_again_for_a_new_device(bridge: Bridge) -> None:
    """After a decommission its serial can be provisioned under a new device id, with a new Thing and key."""
    tenant = uuid4()
    first, second = Device("REBORN-1", tenant), Device("REBORN-1", tenant)
    await bridge.send_and_wait(first, first.event("Provisioned"))
    await bridge.send_and_wait(first, first.event("Decommissioned"))
    await bridge.send_and_wait(second, second.event("Provisioned"))
    await bridge.send_and_wait(first, first.event("Decommissioned", 30))
    assert bridge.require_binding(second).provisioning_status is ProvisioningStatus.ACTIVE
    assert bridge.aws_resources(second).thing is not None
    assert bridge.aws_resources(second).key is not None


@pytest.mark.both_emulators
async def test_an_enrolled_device_is_torn_down(bridge: Bridge) -> None:
    """Everything that belongs to the Thing of a device is erased, if fleet provisioning created it."""
    device = Device("JITP-1")
    row = create_enrolled_device(bridge, device)
    await bridge.send_and_wait(device, device.event("Decommissioned"))
    assert_erased(bridge, device, certificate_arn_of(row))


async def test_unconfirmed_resources_of_an_enrolled_device_are_kept(bridge: Bridge) -> None:
    """A certificate and a secret of others are kept, even if the row names them; the audit names them."""
    device = Device("JITP-2")
    orphan = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    foreign = bridge.secrets.create_secret(Name=f"payroll/{uuid4()}", SecretString="theirs")["ARN"]

    def claim(row: AwsThingBinding) -> None:
        row.certificate_arn, row.certificate_secret_arn = orphan, foreign

    create_enrolled_device(bridge, device, claim)
    await bridge.send_and_wait(device, device.event("Decommissioned"))
    assert bridge.certificate(orphan) is not None
    assert bridge.secrets.describe_secret(SecretId=foreign)["ARN"] == foreign
    reason = str(bridge.transition_rows(device)[-1].reason)
    assert orphan in reason
    assert foreign in reason


async def test_an_event_of_another_tenant_cannot_decommission_an_enrolled_device(bridge: Bridge) -> None:
    """The row of fleet provisioning defines the tenant of the device before its first event."""
    device = Device("JITP-3")
    create_enrolled_device(bridge, device)
    await bridge.send_and_wait(device, device.event("Decommissioned", tenantId=str(uuid4())))
    assert (await bridge.status(device))["rejected"][0]["field"] == "tenantId"
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE


async def test_the_device_row_of_the_platform_is_marked(bridge: Bridge) -> None:
    """A row of the device in the platform's table is Decommissioned afterwards."""
    device = Device("CORE-1")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    with Session(bridge.engine) as session, session.begin():
        session.add(
            DeviceRow(
                id=device.device_id,
                tenant_id=device.tenant_id,
                serial_number=device.serial_number,
                model="MX-3",
                firmware_version="1.0",
                status="Active",
            )
        )
    await bridge.send_and_wait(device, device.event("Decommissioned"))
    with Session(bridge.engine) as session:
        row = session.get(DeviceRow, device.device_id)
        assert row is not None
        assert row.status == "Decommissioned"


def create_enrolled_device(
    bridge: Bridge, device: Device, change: Callable[[AwsThingBinding], None] = lambda _: None
) -> AwsThingBinding:
    """Create a device as fleet provisioning does: its Thing has no owner attributes, its row is Active."""
    thing = bridge.iot.create_thing(thingName=device.thing_name)["thingArn"]
    certificate = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    bridge.iot.attach_policy(policyName=POLICY, target=certificate)
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=certificate)
    secret = bridge.secrets.create_secret(Name=f"iot/devices/{device.thing_name}/key", SecretString="a key")
    row = AwsThingBinding(
        device_id=device.device_id,
        tenant_id=device.tenant_id,
        thing_name=device.thing_name,
        thing_arn=thing,
        certificate_arn=certificate,
        certificate_secret_arn=secret["ARN"],
        provisioning_status=ProvisioningStatus.ACTIVE,
        provisioned_via_jitp=True,
        created_at=datetime.now(UTC),
    )
    change(row)
    with Session(bridge.engine, expire_on_commit=False) as session, session.begin():
        session.add(row)
    return row


def assert_erased(bridge: Bridge, device: Device, *certificates: str) -> None:
    assert bridge.require_binding(device).provisioning_status is GONE
    resources = bridge.aws_resources(device, *filter(None, certificates))
    assert (resources.thing, resources.certificates, resources.secret_arn) == (None, [], None)
    assert bridge.shadow_names(device) == []
