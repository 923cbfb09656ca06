"""Decommissioning erases every trace of the device in AWS, whatever is at work and whoever provisioned it."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlmodel import Session

from db.models import AwsThingBinding, DeviceRow
from domain.provisioning_status import ProvisioningStatus
from tests.harness.bridge import POLICY, Bridge, Device, until

GONE = ProvisioningStatus.DECOMMISSIONED


async def test_nothing_of_a_decommissioned_device_is_left(bridge: Bridge) -> None:
    """Thing, certificate, secret, classic and named shadows and jobs are erased, and the end is recorded."""
    device = Device("GONE-1")
    await bridge.send_and_wait(device, device.event("Provisioned"), device.event("Activated", 1))
    certificate = bridge.require_binding(device).certificate_arn or ""
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


async def test_other_policies_and_several_certificates_go_too(bridge: Bridge) -> None:
    """Certificates and policies that others attached to the device's own Thing do not hinder its teardown."""
    device = Device("GONE-2")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    own = bridge.require_binding(device).certificate_arn or ""
    bridge.iot.create_policy(policyName="other-policy", policyDocument="{}")
    second = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    for certificate in (own, second):
        bridge.iot.attach_policy(policyName="other-policy", target=certificate)
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=second)
    await bridge.send_and_wait(device, device.event("Decommissioned"))
    assert_erased(bridge, device, own, second)


async def test_a_certificate_that_serves_another_thing_is_only_detached(bridge: Bridge) -> None:
    """A shared certificate stays active on the other Thing, and the audit says that it was left."""
    device, other = Device("GONE-3"), Device("STAYS-3")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    bridge.iot.create_thing(thingName=other.thing_name)
    shared = bridge.require_binding(device).certificate_arn or ""
    bridge.iot.attach_thing_principal(thingName=other.thing_name, principal=shared)
    await bridge.send_and_wait(device, device.event("Decommissioned"))
    assert bridge.traces(device).thing is None
    assert bridge.iot.list_thing_principals(thingName=other.thing_name)["principals"] == [shared]
    (certificate,) = bridge.traces(other).certificates
    assert (certificate.status, certificate.policies) == ("ACTIVE", (POLICY,))
    assert shared in (bridge.transition_rows(device)[-1].reason or "")
    assert bridge.outbox(device)[-1].data["kept"] == [shared]


async def test_a_thing_given_to_another_device_loses_our_certificate_and_nothing_else(bridge: Bridge) -> None:
    """A Thing that someone has stamped anew is left, but the certificate we attached to it is deleted."""
    device, heir = Device("GIVEN-AWAY-1"), str(uuid4())
    await bridge.send_and_wait(device, device.event("Provisioned"))
    certificate = bridge.require_binding(device).certificate_arn or ""
    bridge.iot.update_thing(
        thingName=device.thing_name, attributePayload={"attributes": {"deviceId": heir}, "merge": True}
    )
    await bridge.send_and_wait(device, device.event("Decommissioned"))
    traces = bridge.traces(device, certificate)
    assert traces.thing == {"deviceId": heir, "tenantId": str(device.tenant_id)}
    assert (traces.certificates, traces.secret_arn) == ([], None)


async def test_a_certificate_attached_during_the_teardown_goes_too(faulty_bridge: Bridge) -> None:
    """A device that was enrolment as it was decommissioned does not hold its Thing, nor can it connect."""
    device = Device("ENROLLING-GONE-1")
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    own = faulty_bridge.require_binding(device).certificate_arn or ""
    faulty_bridge.emulator.add_fault(
        "iot:DeleteThing", resource=device.thing_name, code="ThrottlingException", status=429
    )
    await faulty_bridge.signal(device, device.event("Decommissioned"))
    await faulty_bridge.wait_for_activity(device, "erase_thing", attempts=2)
    late = faulty_bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    faulty_bridge.iot.attach_policy(policyName=POLICY, target=late)
    faulty_bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=late)
    faulty_bridge.emulator.clear_faults()
    await faulty_bridge.wait_for_end(device)
    assert_erased(faulty_bridge, device, own, late)


async def test_a_decommission_overtakes_what_is_throttled(faulty_bridge: Bridge) -> None:
    """While every call is throttled a decommission cancels the step in backoff at once; lifted, all goes."""
    device = Device("THROTTLED-1")
    throttle = {"resource": device.thing_name, "code": "ThrottlingException", "status": 429}
    faulty_bridge.emulator.add_fault("iot:AttachThingPrincipal", **throttle)  # type: ignore[arg-type]
    await faulty_bridge.signal(device, device.event("Provisioned"))
    await faulty_bridge.wait_for_activity(device, "attach_certificate", attempts=2)
    certificate = faulty_bridge.require_binding(device).certificate_arn or ""
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
async def test_a_decommission_waits_for_the_attempt_at_work(faulty_bridge: Bridge, operation: str) -> None:
    """A step in AWS's hands finishes its attempt before anything is torn down; nothing is made after."""
    device = Device(f"MIDWAY-{operation}")
    dawdling = faulty_bridge.emulator.add_fault(f"iot:{operation}", delay_seconds=1.0, times=1)
    await faulty_bridge.signal(device, device.event("Provisioned"))
    await faulty_bridge.wait_for_fault(dawdling)
    await faulty_bridge.signal(device, device.event("Decommissioned"))
    await faulty_bridge.wait_for_end(device)
    assert_erased(faulty_bridge, device)


async def test_a_decommission_overtakes_a_failed_saga(faulty_bridge: Bridge) -> None:
    """A device in Failed, its run open, is torn down without any retry."""
    device = Device("FAILED-GONE-1")
    faulty_bridge.emulator.add_fault(
        "iot:AttachThingPrincipal", resource=device.thing_name, code="AccessDeniedException", status=403
    )
    await faulty_bridge.signal(device, device.event("Provisioned"))
    failed = await faulty_bridge.wait_for_status(device, ProvisioningStatus.FAILED)
    faulty_bridge.emulator.clear_faults()
    await faulty_bridge.send_and_wait(device, device.event("Decommissioned"))
    assert_erased(faulty_bridge, device, failed.certificate_arn or "")
    assert faulty_bridge.require_binding(device).failure_reason is None


async def test_a_refused_teardown_is_noted_and_goes_on_at_a_retry(faulty_bridge: Bridge) -> None:
    """A teardown that AWS denies leaves its reason in the row, and ends once it is allowed and retried."""
    device = Device("DENIED-GONE-1")
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    faulty_bridge.emulator.add_fault(
        "secretsmanager:DeleteSecret", resource=device.thing_name, code="AccessDeniedException", status=400
    )
    await faulty_bridge.signal(device, device.event("Decommissioned"))

    async def noted() -> bool:
        binding = faulty_bridge.require_binding(device)
        denied = binding.failure_code == "AccessDenied"
        return denied and (binding.failure_reason or "").startswith("DeleteSecret")

    await until(noted, "the denial is noted")
    assert faulty_bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE
    faulty_bridge.emulator.clear_faults()
    await faulty_bridge.signal(device, signal="retry")
    await faulty_bridge.wait_for_end(device)
    assert_erased(faulty_bridge, device)


async def test_a_shadow_recreated_meanwhile_is_erased_after_the_thing(faulty_bridge: Bridge) -> None:
    """A device still connected writes its shadow while its Thing is being deleted: it goes all the same."""
    device = Device("LINGERING-1")
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    faulty_bridge.emulator.settings(detach_settles_seconds=0)
    deleting = faulty_bridge.emulator.add_fault(
        "iot:DeleteThing", resource=device.thing_name, delay_seconds=1.5, times=1
    )
    await faulty_bridge.signal(device, device.event("Decommissioned"))
    await faulty_bridge.wait_for_fault(deleting)
    faulty_bridge.iot_data.update_thing_shadow(
        thingName=device.thing_name, payload='{"state":{"reported":{"t":1}}}'
    )
    await faulty_bridge.wait_for_end(device)
    faulty_bridge.emulator.settings(detach_settles_seconds=2)
    assert faulty_bridge.shadow_names(device) == []


async def test_a_repeated_decommission_changes_nothing(bridge: Bridge) -> None:
    """A second decommission, or an event after it, finds nothing to do."""
    device = Device("GONE-TWICE-1")
    await bridge.send_and_wait(device, device.event("Provisioned"), device.event("Decommissioned"))
    before = bridge.require_binding(device)
    await bridge.send_and_wait(device, device.event("Decommissioned", 1), device.event("Reactivated", 9))
    await bridge.send_and_wait(device, device.event("Provisioned", 10))
    assert bridge.require_binding(device) == before


async def test_a_serial_may_be_provisioned_again_under_a_new_device(bridge: Bridge) -> None:
    """After a device is gone, its serial serves a new device id, with a Thing and key of its own."""
    tenant = uuid4()
    first, second = Device("REBORN-1", tenant), Device("REBORN-1", tenant)
    await bridge.send_and_wait(first, first.event("Provisioned"))
    await bridge.send_and_wait(first, first.event("Decommissioned"))
    await bridge.send_and_wait(second, second.event("Provisioned"))
    await bridge.send_and_wait(first, first.event("Decommissioned", 30))
    assert bridge.require_binding(second).provisioning_status is ProvisioningStatus.ACTIVE
    assert bridge.traces(second).thing is not None
    assert bridge.traces(second).key is not None


async def test_a_jitp_device_is_torn_down(bridge: Bridge) -> None:
    """A device that fleet provisioning made, known by its row alone, loses all that is its Thing's own."""
    device = Device("JITP-1")
    row = jitp(bridge, device)
    await bridge.send_and_wait(device, device.event("Decommissioned"))
    assert_erased(bridge, device, row.certificate_arn or "")


async def test_a_jitp_device_loses_nothing_that_is_not_shown_to_be_its_own(bridge: Bridge) -> None:
    """A row that names another's certificate and secret does not have them deleted; the audit says so."""
    device = Device("JITP-2")
    orphan = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    foreign = bridge.secrets.create_secret(Name=f"payroll/{uuid4()}", SecretString="theirs")["ARN"]

    def claim(row: AwsThingBinding) -> None:
        row.certificate_arn, row.certificate_secret_arn = orphan, foreign

    jitp(bridge, device, claim)
    await bridge.send_and_wait(device, device.event("Decommissioned"))
    assert bridge.certificate(orphan) is not None
    assert bridge.secrets.describe_secret(SecretId=foreign)["ARN"] == foreign
    reason = bridge.transition_rows(device)[-1].reason or ""
    assert orphan in reason
    assert foreign in reason


async def test_another_tenants_event_cannot_decommission_a_jitp_device(bridge: Bridge) -> None:
    """The row fleet provisioning made says whose the device is, before any event has come."""
    device = Device("JITP-3")
    jitp(bridge, device)
    await bridge.send_and_wait(device, device.event("Decommissioned", tenantId=str(uuid4())))
    assert (await bridge.status(device))["rejected"][0]["field"] == "tenantId"
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE


async def test_the_cores_device_row_is_marked(bridge: Bridge) -> None:
    """Where the device has a row in the core's table, it says Decommissioned afterwards."""
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


def jitp(
    bridge: Bridge, device: Device, change: Callable[[AwsThingBinding], None] = lambda _: None
) -> AwsThingBinding:
    """What fleet provisioning leaves: a Thing without our stamp, its certificate, a secret, an Active row."""
    thing = bridge.iot.create_thing(thingName=device.thing_name)["thingArn"]
    certificate = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    bridge.iot.attach_policy(policyName=POLICY, target=certificate)
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=certificate)
    secret = bridge.secrets.create_secret(Name=f"iot/devices/{device.thing_name}/key", SecretString="its own")
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
    traces = bridge.traces(device, *filter(None, certificates))
    assert (traces.thing, traces.certificates, traces.secret_arn) == (None, [], None)
    assert bridge.shadow_names(device) == []
