"""Decommissioning erases every trace of the device in AWS, whatever is at work and whoever provisioned it."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlmodel import Session

from db.models import AwsThingBinding, DeviceRow
from domain.provisioning_status import ProvisioningStatus
from tests.bridge import POLICY, Bridge, Device, until

GONE = ProvisioningStatus.DECOMMISSIONED


async def test_nothing_of_a_decommissioned_device_is_left(bridge: Bridge) -> None:
    """Thing, certificate, secret, classic and named shadows and jobs are erased, and the end is recorded."""
    device = Device("GONE-1")
    await bridge.handled(device, device.event("Provisioned"), device.event("Activated", 1))
    certificate = bridge.bound(device).certificate_arn or ""
    for shadow in ("config", "firmware"):
        bridge.iot_data.update_thing_shadow(
            thingName=device.thing_name,
            shadowName=shadow,
            payload=json.dumps({"state": {"desired": {"a": 1}}}),
        )
    thing_arn = bridge.bound(device).thing_arn
    bridge.iot.create_job(jobId=f"job-{device.device_id}", targets=[thing_arn], document="{}")
    await bridge.handled(device, device.event("Decommissioned", 2))
    assert_erased(bridge, device, certificate)
    with pytest.raises(bridge.iot.exceptions.ResourceNotFoundException):
        bridge.iot.describe_job(jobId=f"job-{device.device_id}")
    binding = bridge.bound(device)
    assert binding.deleted_at is not None
    assert binding.deleted_by == device.workflow_id
    assert bridge.told(device) == ["AwsThingProvisionedEvent", "AwsThingDecommissionedEvent"]


async def test_other_policies_and_several_certificates_go_too(bridge: Bridge) -> None:
    """Certificates and policies that others attached to the device's own Thing do not hinder its teardown."""
    device = Device("GONE-2")
    await bridge.handled(device, device.event("Provisioned"))
    own = bridge.bound(device).certificate_arn or ""
    bridge.iot.create_policy(policyName="other-policy", policyDocument="{}")
    second = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    for certificate in (own, second):
        bridge.iot.attach_policy(policyName="other-policy", target=certificate)
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=second)
    await bridge.handled(device, device.event("Decommissioned"))
    assert_erased(bridge, device, own, second)


async def test_a_certificate_that_serves_another_thing_is_only_detached(bridge: Bridge) -> None:
    """A shared certificate stays active on the other Thing, and the audit says that it was left."""
    device, other = Device("GONE-3"), Device("STAYS-3")
    await bridge.handled(device, device.event("Provisioned"))
    bridge.iot.create_thing(thingName=other.thing_name)
    shared = bridge.bound(device).certificate_arn or ""
    bridge.iot.attach_thing_principal(thingName=other.thing_name, principal=shared)
    await bridge.handled(device, device.event("Decommissioned"))
    assert bridge.traces(device).thing is None
    assert bridge.iot.list_thing_principals(thingName=other.thing_name)["principals"] == [shared]
    (certificate,) = bridge.traces(other).certificates
    assert (certificate.status, certificate.policies) == ("ACTIVE", (POLICY,))
    assert shared in (bridge.transition_rows(device)[-1].reason or "")
    assert bridge.outbox(device)[-1].data["kept"] == [shared]


async def test_a_thing_given_to_another_device_loses_our_certificate_and_nothing_else(bridge: Bridge) -> None:
    """A Thing that someone has stamped anew is left, but the certificate we attached to it is deleted."""
    device, heir = Device("GIVEN-AWAY-1"), str(uuid4())
    await bridge.handled(device, device.event("Provisioned"))
    certificate = bridge.bound(device).certificate_arn or ""
    bridge.iot.update_thing(
        thingName=device.thing_name, attributePayload={"attributes": {"deviceId": heir}, "merge": True}
    )
    await bridge.handled(device, device.event("Decommissioned"))
    traces = bridge.traces(device, certificate)
    assert traces.thing == {"deviceId": heir, "tenantId": str(device.tenant_id)}
    assert (traces.certificates, traces.secret_arn) == ([], None)


async def test_a_certificate_attached_during_the_teardown_goes_too(calm: Bridge) -> None:
    """A device that was enrolling as it was decommissioned does not hold its Thing, nor can it connect."""
    device = Device("ENROLLING-GONE-1")
    await calm.handled(device, device.event("Provisioned"))
    own = calm.bound(device).certificate_arn or ""
    calm.emulator.add_fault(
        "iot:DeleteThing", resource=device.thing_name, code="ThrottlingException", status=429
    )
    await calm.signal(device, device.event("Decommissioned"))
    await calm.at_work(device, "erase_thing", attempts=2)
    late = calm.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    calm.iot.attach_policy(policyName=POLICY, target=late)
    calm.iot.attach_thing_principal(thingName=device.thing_name, principal=late)
    calm.emulator.clear_faults()
    await calm.ended(device)
    assert_erased(calm, device, own, late)


async def test_a_decommission_overtakes_what_is_throttled(calm: Bridge) -> None:
    """While every call is throttled a decommission cancels the step in backoff at once; lifted, all goes."""
    device = Device("THROTTLED-1")
    throttle = {"resource": device.thing_name, "code": "ThrottlingException", "status": 429}
    calm.emulator.add_fault("iot:AttachThingPrincipal", **throttle)  # type: ignore[arg-type]
    await calm.signal(device, device.event("Provisioned"))
    await calm.at_work(device, "attach_certificate", attempts=2)
    certificate = calm.bound(device).certificate_arn or ""
    calm.emulator.add_fault("*", code="ThrottlingException", status=429)
    await calm.signal(device, device.event("Decommissioned"))
    await calm.at_work(device, "plan_teardown", attempts=2)
    calm.emulator.clear_faults()
    await calm.ended(device)
    assert_erased(calm, device, certificate)
    assert "Active" not in calm.transitions(device)
    assert "Failed" not in calm.transitions(device)


@pytest.mark.parametrize(
    "operation", ["CreateThing", "CreateKeysAndCertificate", "AttachPolicy", "UpdateCertificate"]
)
async def test_a_decommission_waits_for_the_attempt_at_work(calm: Bridge, operation: str) -> None:
    """A step in AWS's hands finishes its attempt before anything is torn down; nothing is made after."""
    device = Device(f"MIDWAY-{operation}")
    dawdling = calm.emulator.add_fault(f"iot:{operation}", delay_seconds=1.0, times=1)
    await calm.signal(device, device.event("Provisioned"))
    await calm.met(dawdling)
    await calm.signal(device, device.event("Decommissioned"))
    await calm.ended(device)
    assert_erased(calm, device)


async def test_a_decommission_overtakes_a_failed_saga(calm: Bridge) -> None:
    """A device in Failed, its run open, is torn down without any retry."""
    device = Device("FAILED-GONE-1")
    calm.emulator.add_fault(
        "iot:AttachThingPrincipal", resource=device.thing_name, code="AccessDeniedException", status=403
    )
    await calm.signal(device, device.event("Provisioned"))
    failed = await calm.reaches(device, ProvisioningStatus.FAILED)
    calm.emulator.clear_faults()
    await calm.handled(device, device.event("Decommissioned"))
    assert_erased(calm, device, failed.certificate_arn or "")
    assert calm.bound(device).failure_reason is None


async def test_a_refused_teardown_is_noted_and_goes_on_at_a_retry(calm: Bridge) -> None:
    """A teardown that AWS denies leaves its reason in the row, and ends once it is allowed and retried."""
    device = Device("DENIED-GONE-1")
    await calm.handled(device, device.event("Provisioned"))
    calm.emulator.add_fault(
        "secretsmanager:DeleteSecret", resource=device.thing_name, code="AccessDeniedException", status=400
    )
    await calm.signal(device, device.event("Decommissioned"))

    async def noted() -> bool:
        return (calm.bound(device).failure_reason or "").startswith("AccessDenied: DeleteSecret")

    await until(noted, "the denial is noted")
    assert calm.bound(device).provisioning_status is ProvisioningStatus.ACTIVE
    calm.emulator.clear_faults()
    await calm.signal(device, signal="retry")
    await calm.ended(device)
    assert_erased(calm, device)


async def test_a_shadow_recreated_meanwhile_is_erased_after_the_thing(calm: Bridge) -> None:
    """A device still connected writes its shadow while its Thing is being deleted: it goes all the same."""
    device = Device("LINGERING-1")
    await calm.handled(device, device.event("Provisioned"))
    calm.emulator.settings(detach_settles_seconds=0)
    deleting = calm.emulator.add_fault(
        "iot:DeleteThing", resource=device.thing_name, delay_seconds=1.5, times=1
    )
    await calm.signal(device, device.event("Decommissioned"))
    await calm.met(deleting)
    calm.iot_data.update_thing_shadow(thingName=device.thing_name, payload='{"state":{"reported":{"t":1}}}')
    await calm.ended(device)
    calm.emulator.settings(detach_settles_seconds=2)
    assert calm.shadow_names(device) == []


async def test_a_repeated_decommission_changes_nothing(bridge: Bridge) -> None:
    """A second decommission, or an event after it, finds nothing to do."""
    device = Device("GONE-TWICE-1")
    await bridge.handled(device, device.event("Provisioned"), device.event("Decommissioned"))
    before = bridge.bound(device)
    await bridge.handled(device, device.event("Decommissioned", 1), device.event("Reactivated", 9))
    await bridge.handled(device, device.event("Provisioned", 10))
    assert bridge.bound(device) == before


async def test_a_serial_may_be_provisioned_again_under_a_new_device(bridge: Bridge) -> None:
    """After a device is gone, its serial serves a new device id, with a Thing and key of its own."""
    tenant = uuid4()
    first, second = Device("REBORN-1", tenant), Device("REBORN-1", tenant)
    await bridge.handled(first, first.event("Provisioned"))
    await bridge.handled(first, first.event("Decommissioned"))
    await bridge.handled(second, second.event("Provisioned"))
    await bridge.handled(first, first.event("Decommissioned", 30))
    assert bridge.bound(second).provisioning_status is ProvisioningStatus.ACTIVE
    assert bridge.traces(second).thing is not None
    assert bridge.traces(second).key is not None


async def test_a_jitp_device_is_torn_down(bridge: Bridge) -> None:
    """A device that fleet provisioning made, known by its row alone, loses all that is its Thing's own."""
    device = Device("JITP-1")
    row = jitp(bridge, device)
    await bridge.handled(device, device.event("Decommissioned"))
    assert_erased(bridge, device, row.certificate_arn or "")


async def test_a_jitp_device_loses_nothing_that_is_not_shown_to_be_its_own(bridge: Bridge) -> None:
    """A row that names another's certificate and secret does not have them deleted; the audit says so."""
    device = Device("JITP-2")
    orphan = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    foreign = bridge.secrets.create_secret(Name=f"payroll/{uuid4()}", SecretString="theirs")["ARN"]

    def claim(row: AwsThingBinding) -> None:
        row.certificate_arn, row.certificate_secret_arn = orphan, foreign

    jitp(bridge, device, claim)
    await bridge.handled(device, device.event("Decommissioned"))
    assert bridge.certificate(orphan) is not None
    assert bridge.secrets.describe_secret(SecretId=foreign)["ARN"] == foreign
    reason = bridge.transition_rows(device)[-1].reason or ""
    assert orphan in reason
    assert foreign in reason


async def test_another_tenants_event_cannot_decommission_a_jitp_device(bridge: Bridge) -> None:
    """The row fleet provisioning made says whose the device is, before any event has come."""
    device = Device("JITP-3")
    jitp(bridge, device)
    await bridge.handled(device, device.event("Decommissioned", tenantId=str(uuid4())))
    assert (await bridge.status(device))["rejected"][0]["field"] == "tenantId"
    assert bridge.bound(device).provisioning_status is ProvisioningStatus.ACTIVE


async def test_the_cores_device_row_is_marked(bridge: Bridge) -> None:
    """Where the device has a row in the core's table, it says Decommissioned afterwards."""
    device = Device("CORE-1")
    await bridge.handled(device, device.event("Provisioned"))
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
    await bridge.handled(device, device.event("Decommissioned"))
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
    assert bridge.bound(device).provisioning_status is GONE
    traces = bridge.traces(device, *filter(None, certificates))
    assert (traces.thing, traces.certificates, traces.secret_arn) == (None, [], None)
    assert bridge.shadow_names(device) == []
