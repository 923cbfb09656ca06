"""Devices that enrol themselves: admission, registration, ownership checks, follow-up and re-enrolment."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from sqlalchemy import Engine
from sqlmodel import Session, delete, select

from api.app import create_app
from aws.clients import AwsClients
from db.aws_location import load_location, save_location
from db.bindings import Actor, open_binding
from db.device_states import lock_or_create_state, save_state
from db.models import AwsLocationRow, AwsThingBinding
from domain.claim_check import CheckTotals
from domain.device_state import DesiredStatus, DeviceState, StatusChange
from domain.names import TASK_QUEUE
from domain.provisioning_status import ProvisioningStatus
from embedded.emulator_control import EmulatorControl
from embedded.stack import Addresses
from settings import ApiSettings
from tests.harness.bridge import Bridge, Device, until
from tests.harness.enrolment import REGISTERED, VERIFY, EnrolmentHarness, enrol
from tests.harness.http_api import HttpApi, faults, open_http_api, problem
from worker import discover_location
from workflows.claim_certificate_check import ClaimCertificateCheck

ACTIVE, DECOMMISSIONED = ProvisioningStatus.ACTIVE, ProvisioningStatus.DECOMMISSIONED
ADMITTED = (200, {"allowProvisioning": True, "reason": None})
PLATFORM = Actor("the platform")


@pytest.fixture(scope="module", autouse=True)
def _detaches_complete_immediately(stack: Addresses) -> Iterator[None]:
    """Other tests cover slow detaches, which would delay each of these tests by two seconds."""
    emulator = EmulatorControl(stack.aws_endpoint_url)
    emulator.settings(detach_seconds=0)
    yield
    emulator.default_settings()


@asynccontextmanager
async def operator_without_temporal(
    engine: Engine, **fleet_provisioning: Any
) -> AsyncIterator[httpx2.AsyncClient]:
    """Return an operator's client of an application without Temporal, with changed settings."""
    settings = ApiSettings.load()
    own = settings.fleet_provisioning.model_copy(update=fleet_provisioning)
    app = create_app(settings.model_copy(update={"fleet_provisioning": own}))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
        async with open_http_api(engine, app) as http_api, http_api.operator() as http:
            yield http


async def verdict(http: httpx2.AsyncClient, device: Device) -> tuple[int, dict[str, Any]]:
    tenant = str(device.tenant_id) if device.tenant_id else None
    answer = await http.post(VERIFY, json={"serialNumber": device.serial_number, "tenantId": tenant})
    return answer.status_code, answer.json()


def denied(reason: str) -> tuple[int, dict[str, Any]]:
    return 403, {"allowProvisioning": False, "reason": reason}


# Admission


async def test_an_unrecorded_device_may_enrol(http_api: HttpApi) -> None:
    """An operator names the tenant, or none for the null tenant; a tenant's key determines the tenant."""
    tenant = uuid4()
    async with http_api.operator() as operator:
        assert await verdict(operator, Device("NEW-1")) == ADMITTED
        assert await verdict(operator, Device("NEW-1", None)) == ADMITTED
    async with http_api.tenant(tenant) as own:
        assert await verdict(own, Device("NEW-1", None)) == ADMITTED
        assert await verdict(own, Device("NEW-1", tenant)) == ADMITTED
        answer = await own.post(VERIFY, json={"serialNumber": "NEW-1", "tenantId": str(uuid4())})
    assert problem(answer)["status"] == 403


async def test_an_invalid_serial_number_is_422(http_api: HttpApi) -> None:
    """The response names the field."""
    async with http_api.operator() as http:
        answer = await http.post(VERIFY, json={"serialNumber": "no blanks"})
    assert answer.status_code == 422
    assert "serialNumber" in faults(answer)


async def test_a_decommissioned_serial_number_is_denied(
    bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """It is denied from the event on, before the teardown ends; the same number of another tenant is not."""
    device = Device("DENIED-1")
    async with http_api.operator() as http:
        await enrol(http, enrolment.create_aws_resources(bridge, device))
        enrolled = enrolment.with_assigned_id(device)
        await bridge.wait_for_end(enrolled)
        assert await verdict(http, device) == ADMITTED
        erasing = bridge.emulator.add_fault(
            "iot:DeleteThing", resource=device.thing_name, times=1, delay_seconds=1
        )
        await bridge.send(enrolled, enrolled.event("Decommissioned", 5))
        await bridge.wait_for_fault(erasing)
        reason = "the device of this serial number was decommissioned"
        assert await verdict(http, device) == denied(reason)
        refused = await http.post(REGISTERED, json=enrolment.body(device))
        assert (refused.status_code, problem(refused)["detail"]) == (403, reason)
        await bridge.wait_for_end(enrolled)
        assert enrolment.require_binding(device).provisioning_status is DECOMMISSIONED
        assert await verdict(http, device) == denied(reason)
        with enrolment.no_rows_written(device):
            refused = await http.post(REGISTERED, json=enrolment.body(device))
        assert (refused.status_code, problem(refused)["detail"]) == (403, reason)
        assert await verdict(http, Device("DENIED-1")) == ADMITTED
    (row,) = enrolment.device_rows(device)
    assert row.status == "Decommissioned"


async def test_a_serial_number_that_the_platform_reuses_may_enrol(
    http_api: HttpApi, engine: Engine, enrolment: EnrolmentHarness
) -> None:
    """The newest device of a serial number decides, not an older decommissioned one."""
    device = Device("AGAIN-1")
    for status in (DECOMMISSIONED, ProvisioningStatus.PENDING):
        with Session(engine) as session, session.begin():
            open_binding(
                session,
                device_id=uuid4(),
                tenant_id=device.tenant_id,
                thing_name=device.thing_name,
                actor=PLATFORM,
                status=status,
            )
    async with http_api.operator() as http:
        assert await verdict(http, device) == ADMITTED
        # The platform's saga creates the certificate of this device.
        with enrolment.no_rows_written(device):
            answer = await http.post(REGISTERED, json=enrolment.body(device))
    assert problem(answer)["status"] == 409
    assert "Pending" in problem(answer)["detail"]


async def test_a_live_serial_number_is_denied_without_allow_reprovision(
    http_api: HttpApi, engine: Engine, enrolment: EnrolmentHarness
) -> None:
    """/verify denies it, another certificate is refused, and a repeat gets the same response."""
    device = Device("ONCE-1")
    body = enrolment.body(device)
    async with operator_without_temporal(engine, allow_reprovision=False) as http:
        assert await verdict(http, device) == ADMITTED
        device_id = await enrol(http, body)
        status, answer = await verdict(http, device)
        assert (status, answer["allowProvisioning"]) == (403, False)
        with enrolment.no_rows_written(device):
            refused = await http.post(REGISTERED, json=enrolment.body(device))
            assert problem(refused)["status"] == 409
            assert await enrol(http, body, already_provisioned=True) == device_id


# Registration


async def test_registration_stores_device_and_binding_and_reports_the_status(
    bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """Both are Active, with audit and event. The bridge itself creates no AWS resource for the device."""
    device = Device("JOIN-1")
    assert device.tenant_id is not None
    expires = datetime(2027, 3, 1, tzinfo=UTC)
    body = enrolment.create_aws_resources(bridge, device) | {
        "tenantId": None,
        "label": "Pump, hall 3",
        "claimCertificateExpiresAt": "2027-03-01T01:00:00+01:00",
    }
    async with http_api.tenant(device.tenant_id) as http:
        device_id = await enrol(http, body)
    enrolled = enrolment.with_assigned_id(device)
    assert enrolled.device_id == device_id
    (row,) = enrolment.device_rows(device)
    assert (row.id, row.model, row.firmware_version, row.label, row.status) == (
        *(device_id, "MX-3", "1.0", "Pump, hall 3", "Active"),
    )
    binding = bridge.require_binding(enrolled)
    assert (binding.provisioning_status, binding.provisioned_via_jitp) == (ACTIVE, True)
    assert binding.thing_name == device.thing_name
    assert binding.thing_arn == body["thingArn"]
    assert binding.certificate_arn == body["certificateArn"]
    assert binding.certificate_secret_arn == body["certificateSecretArn"]
    assert binding.claim_certificate_expires_at == expires
    (transition,) = bridge.transition_rows(enrolled)
    assert (transition.from_status, transition.to_status) == (None, ACTIVE)
    assert transition.actor.startswith("key ")
    (published,) = bridge.outbox(enrolled)
    assert (published.type, published.data["provisionedViaJitp"]) == ("AwsThingProvisionedEvent", True)
    await bridge.wait_for_end(enrolled)
    assert reported(bridge, device) == "Active"
    before = bridge.aws_resources(enrolled)
    later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    await bridge.send_and_wait(
        enrolled, enrolled.event("Provisioned"), enrolled.event("Suspended", occurredAt=later)
    )
    assert reported(bridge, device) == "Suspended"
    assert bridge.aws_resources(enrolled) == before
    assert bridge.transitions(enrolled) == ["Active"]
    assert bridge.published(enrolled) == ["AwsThingProvisionedEvent"]


async def test_a_repeated_registration_changes_nothing(engine: Engine, enrolment: EnrolmentHarness) -> None:
    """The device keeps its id and rows even if other fields differ, and no second event is published."""
    device = Device("REPEAT-1")
    body = enrolment.body(device)
    async with operator_without_temporal(engine) as http:
        device_id = await enrol(http, body)
        with enrolment.no_rows_written(device):
            assert await enrol(http, body | {"firmwareVersion": "2.0"}, already_provisioned=True) == device_id


async def test_fifty_concurrent_repeats_are_one_enrolment(
    bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """All return the same id and one returns it as new: there is one device, one binding and one event."""
    device = Device("CROWD-1")
    body = enrolment.body(device)
    async with http_api.operator() as http:
        answers = await asyncio.gather(*(http.post(REGISTERED, json=body) for _ in range(50)))
    assert Counter(answer.status_code for answer in answers) == {200: 50}
    assert Counter(answer.json()["alreadyProvisioned"] for answer in answers) == {False: 1, True: 49}
    enrolled = enrolment.with_assigned_id(device)
    assert {answer.json()["deviceId"] for answer in answers} == {str(enrolled.device_id)}
    assert [row.id for row in enrolment.device_rows(device)] == [enrolled.device_id]
    assert bridge.transitions(enrolled) == ["Active"]
    assert bridge.published(enrolled) == ["AwsThingProvisionedEvent"]


async def test_an_enrolled_device_keeps_its_tenant_and_serial_number(
    bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """After the enrolment the workflow rejects an event that names another tenant or serial number."""
    device = Device("JOIN-2")
    async with http_api.operator() as http:
        await enrol(http, enrolment.body(device))
    enrolled = enrolment.with_assigned_id(device)
    await bridge.send_and_wait(enrolled, enrolled.event("Decommissioned", tenantId=str(uuid4())))
    await bridge.send_and_wait(enrolled, enrolled.event("Provisioned", serialNumber="JOIN-3"))
    assert (await bridge.status(enrolled))["rejected"][0]["field"] == "serialNumber"
    assert enrolment.require_binding(device).provisioning_status is ACTIVE


# Ownership


IOT = "arn:aws:iot:{region}:{account}:"
SECRET = "arn:aws:secretsmanager:{region}:{account}:secret:"
KEY = SECRET + "iot/devices/{thing}/key"


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("thingName", "{other}"),
        ("thingName", "{thing}x"),
        ("thingArn", IOT + "thing/{other}"),
        ("thingArn", IOT + "thing/{thing}/x"),
        ("thingArn", IOT.replace("iot", "secretsmanager") + "thing/{thing}"),
        ("thingArn", IOT.replace("{account}", "999999999999") + "thing/{thing}"),
        ("thingArn", IOT.replace("{region}", "eu-north-1") + "thing/{thing}"),
        ("thingArn", IOT.replace("aws", "aws-cn") + "thing/{thing}"),
        ("certificateArn", "{id}"),
        ("certificateArn", IOT + "cert/{id}0"),
        ("certificateArn", IOT + "cert/{id}\n"),
        ("certificateArn", IOT + "cert/" + 64 * "Z"),
        ("certificateArn", IOT + "thing/{id}"),
        ("certificateArn", IOT.replace("{account}", "999999999999") + "cert/{id}"),
        ("certificateArn", IOT.replace("{region}", "eu-north-1") + "cert/{id}"),
        ("certificateArn", IOT.replace("aws", "aws-us-gov") + "cert/{id}"),
        ("certificateSecretArn", "iot/devices/{thing}/key"),
        ("certificateSecretArn", SECRET + "payroll-AbCd12"),
        ("certificateSecretArn", SECRET + "iot/devices/{other}/key-AbCd12"),
        ("certificateSecretArn", KEY),
        ("certificateSecretArn", KEY + "-AbCd1"),
        ("certificateSecretArn", KEY + "-AbCd1/"),
        ("certificateSecretArn", KEY + "s-AbCd12"),
        ("certificateSecretArn", KEY.replace("{account}", "999999999999") + "-AbCd12"),
        ("certificateSecretArn", KEY.replace("{region}", "eu-north-1") + "-AbCd12"),
        ("certificateSecretArn", KEY.replace("aws:", "aws-cn:") + "-AbCd12"),
    ],
)
async def test_a_resource_that_is_not_certainly_the_devices_own_is_refused(
    http_api: HttpApi, enrolment: EnrolmentHarness, field: str, named: str
) -> None:
    """Otherwise a tenant could make the bridge delete another tenant's resources. Nothing is written."""
    device, other = Device("CLAIM-1"), Device("CLAIM-1")
    body = enrolment.body(device)
    value = named.format(
        thing=device.thing_name,
        other=other.thing_name,
        id=64 * "a",
        region=enrolment.location.region,
        account=enrolment.location.account_id,
    )
    async with http_api.operator() as http:
        with enrolment.no_rows_written(device):
            answer = await http.post(REGISTERED, json=body | {field: value})
    # 422 for text that is not an ARN of the right kind, 403 for the ARN of another resource.
    assert answer.status_code in {403, 422}
    assert list(faults(answer)) == [field]


async def test_a_certificate_or_secret_of_another_device_is_refused(
    http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """The first device keeps it, whatever its tenant; no device row is written without a binding."""
    first, second = Device("OWNER-1"), Device("OWNER-2")
    body = enrolment.body(first)
    async with http_api.operator() as http:
        await enrol(http, body)
        with enrolment.no_rows_written(second):
            answer = await http.post(
                REGISTERED, json=enrolment.body(second, certificateArn=body["certificateArn"])
            )
            assert problem(answer)["status"] == 409
        enrolment.update_binding_row(first, certificate_secret_arn=enrolment.secret_arn(second))
        with enrolment.no_rows_written(second):
            answer = await http.post(
                REGISTERED, json=enrolment.body(second, certificateSecretArn=enrolment.secret_arn(second))
            )
            assert problem(answer)["status"] == 409
    assert enrolment.device_rows(second) == []


async def test_a_certificate_that_is_registered_concurrently_gets_one_owner(
    http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """One device is registered; the others are refused and nothing of them is written."""
    devices = [Device(f"RACE-{number}") for number in range(8)]
    shared = enrolment.certificate_arn()
    async with http_api.operator() as http:
        answers = await asyncio.gather(
            *(http.post(REGISTERED, json=enrolment.body(device, certificateArn=shared)) for device in devices)
        )
    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 7}
    assert len([device for device in devices if enrolment.device_rows(device)]) == 1


async def test_registration_is_503_until_a_worker_has_found_its_location(
    http_api: HttpApi, engine: Engine, enrolment: EnrolmentHarness
) -> None:
    """Without account and region no ARN can be checked, and nothing is written. /verify needs neither."""
    with Session(engine) as session, session.begin():
        session.exec(delete(AwsLocationRow))
    try:
        async with http_api.operator() as http:
            device = Device("NOWHERE-1")
            assert await verdict(http, device) == ADMITTED
            with enrolment.no_rows_written(device):
                answer = await http.post(REGISTERED, json=enrolment.body(device))
        assert problem(answer)["status"] == 503
    finally:
        with Session(engine) as session, session.begin():
            save_location(session, enrolment.location)


async def test_a_worker_finds_its_aws_location(
    faulty_bridge: Bridge,
    aws: AwsClients,
    engine: Engine,
    enrolment: EnrolmentHarness,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It calls STS until that succeeds, or uses the account of its settings."""
    faulty_bridge.emulator.add_fault("sts:GetCallerIdentity", code="InternalFailure", status=500, times=2)
    try:
        await discover_location(aws, engine, "999999999999")
        with Session(engine) as session:
            assert load_location(session) == enrolment.location.model_copy(
                update={"account_id": "999999999999"}
            )
    finally:
        await discover_location(aws, engine, None, retry_seconds=0.01)
    with Session(engine) as session:
        assert load_location(session) == enrolment.location
    assert sum("AWS location not found" in message for message in caplog.messages) == 2


# Re-enrolment


async def test_another_certificate_replaces_the_bound_one(
    bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """The old one is erased, the new one and their shared secret stay, and an event is published for each."""
    device = Device("TWICE-1")
    first = enrolment.create_aws_resources(bridge, device)
    async with http_api.operator() as http:
        device_id = await enrol(http, first)
        second = enrolment.create_aws_resources(bridge, device) | {"firmwareVersion": "2.0"}
        enrolled = enrolment.with_assigned_id(device)
        await bridge.wait_for_end(enrolled)
        assert await enrol(http, second, already_provisioned=True) == device_id
        await bridge.wait_for_end(enrolled)
        await wait_until_erased(enrolment, device_id)
        assert bridge.certificate(first["certificateArn"]) is None
        assert certificates(bridge, enrolled) == {second["certificateArn"]: "ACTIVE"}
        assert bridge.aws_resources(enrolled).secret_arn == second["certificateSecretArn"]
        assert bridge.published(enrolled) == 2 * ["AwsThingProvisionedEvent"]
        assert len({row.event_id for row in bridge.outbox(enrolled)}) == 2
        (row,) = enrolment.device_rows(device)
        assert row.firmware_version == "2.0"
        # A late repeat of the first registration changes nothing.
        assert await enrol(http, first, already_provisioned=True) == device_id
        assert enrolment.require_binding(device).certificate_arn == second["certificateArn"]
        other = await http.post(
            REGISTERED, json=enrolment.body(Device("OWNER-3"), certificateArn=first["certificateArn"])
        )
    assert problem(other)["status"] == 409


async def test_a_platform_provisioned_device_may_enrol_with_another_certificate(
    bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """The certificate and the secret that the bridge issued are erased, and the device keeps its id."""
    device = Device("SAGA-1")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    issued = bridge.require_binding(device)
    assert issued.certificate_arn is not None
    certificate = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=certificate)
    async with http_api.operator() as http:
        same = enrolment.body(device, certificateArn=issued.certificate_arn)
        assert await enrol(http, same, already_provisioned=True) == device.device_id
        assert bridge.require_binding(device) == issued
        assert (
            await enrol(http, enrolment.body(device, certificateArn=certificate), already_provisioned=True)
            == device.device_id
        )
    await wait_until_erased(enrolment, device.device_id)
    assert bridge.certificate(issued.certificate_arn) is None
    assert certificates(bridge, device) == {certificate: "ACTIVE"}
    assert bridge.aws_resources(device).secret_arn is None
    assert bridge.published(device) == 2 * ["AwsThingProvisionedEvent"]
    await bridge.send_and_wait(device, device.event("Decommissioned", 9))
    resources = bridge.aws_resources(device, certificate)
    assert (resources.thing, resources.certificates) == (None, [])


async def test_a_replaced_certificate_is_erased_only_if_it_is_attached_to_this_thing_alone(
    bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """One that is not attached is kept and recorded; one that another Thing uses too is only detached."""
    device, other = Device("KEEP-1"), Device("KEEP-2")
    orphan = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
    shared = enrolment.create_aws_resources(bridge, device)
    bridge.iot.create_thing(thingName=other.thing_name)
    bridge.iot.attach_thing_principal(thingName=other.thing_name, principal=shared["certificateArn"])
    async with http_api.operator() as http:
        device_id = await enrol(http, shared | {"certificateArn": orphan})
        await enrol(http, shared, already_provisioned=True)
        last = enrolment.create_aws_resources(bridge, device)
        await enrol(http, last, already_provisioned=True)
    await wait_until_erased(enrolment, device_id)
    kept = {each.certificate_arn: each.kept_reason for each in enrolment.retired_certificates(device_id)}
    assert kept == {
        orphan: "it is not attached to this Thing",
        shared["certificateArn"]: "it is attached to other Things too, and was detached from this one",
    }
    for arn in kept:
        found = bridge.certificate(arn)
        assert found is not None
        assert found.status == "ACTIVE"
    assert certificates(bridge, device) == {last["certificateArn"]: "ACTIVE"}
    # The kept certificate can still be registered by its owner.
    async with http_api.operator() as http:
        await enrol(http, enrolment.body(Device("KEEP-3"), certificateArn=orphan))


async def test_an_interrupted_certificate_erasure_is_completed(
    faulty_bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """A detached certificate no longer shows its owner, so the confirmation is stored before the detach."""
    device = Device("MIDWAY-1")
    first = enrolment.create_aws_resources(faulty_bridge, device)
    faulty_bridge.emulator.add_fault(
        "iot:DeleteCertificate",
        resource=first["certificateArn"].rpartition("/")[2],
        code="InternalFailureException",
        status=500,
        times=1,
    )
    async with http_api.operator() as http:
        device_id = await enrol(http, first)
        await enrol(http, enrolment.create_aws_resources(faulty_bridge, device), already_provisioned=True)
    await wait_until_erased(enrolment, device_id)
    assert faulty_bridge.certificate(first["certificateArn"]) is None
    assert [each.kept_reason for each in enrolment.retired_certificates(device_id)] == [None]


async def test_a_denied_certificate_erasure_is_recorded_and_retried(
    faulty_bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """The device stays Active with the reason in its row, and its next event retries the erasure."""
    device = Device("DENY-ERASURE-1")
    first = enrolment.create_aws_resources(faulty_bridge, device)
    faulty_bridge.emulator.add_fault(
        "iot:DeleteCertificate",
        resource=first["certificateArn"].rpartition("/")[2],
        code="AccessDeniedException",
        status=403,
    )
    async with http_api.operator() as http:
        device_id = await enrol(http, first)
        await enrol(http, enrolment.create_aws_resources(faulty_bridge, device), already_provisioned=True)
    enrolled = enrolment.with_assigned_id(device)

    async def recorded() -> bool:
        binding = faulty_bridge.require_binding(enrolled)
        denied = binding.failure_code == "AccessDenied"
        return denied and (binding.failure_reason or "").startswith("DeleteCertificate")

    await until(recorded, "the denial is recorded")
    assert faulty_bridge.require_binding(enrolled).provisioning_status is ACTIVE
    faulty_bridge.emulator.clear_faults()
    await faulty_bridge.send_and_wait(enrolled, enrolled.event("Suspended", 60))
    await wait_until_erased(enrolment, device_id)
    assert faulty_bridge.certificate(first["certificateArn"]) is None
    assert faulty_bridge.require_binding(enrolled).failure_reason is None


async def test_a_secret_that_is_registered_again_is_not_erased(
    bridge: Bridge, http_api: HttpApi, engine: Engine, enrolment: EnrolmentHarness
) -> None:
    """A secret belongs to the newest certificate that names it, unless its erasure has begun."""
    device = Device("BACK-1")
    secret = enrolment.secret_arn(device)
    async with operator_without_temporal(engine) as http:
        device_id = await enrol(http, enrolment.body(device, certificateSecretArn=secret))
        await enrol(http, enrolment.body(device), already_provisioned=True)
        assert [each.secret_arn for each in enrolment.retired_certificates(device_id)] == [secret]
        await enrol(http, enrolment.body(device, certificateSecretArn=secret), already_provisioned=True)
        assert [each.secret_arn for each in enrolment.retired_certificates(device_id)] == [None, None]
        await enrol(http, enrolment.body(device), already_provisioned=True)
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE iotaws_retired_certificates SET decided_at = now() WHERE secret_arn = %s", (secret,)
            )
        with enrolment.no_rows_written(device):
            answer = await http.post(REGISTERED, json=enrolment.body(device, certificateSecretArn=secret))
    assert problem(answer)["status"] == 409


async def test_re_enrolment_does_not_reactivate_a_suspended_device(
    bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """The platform's events since the first enrolment still decide."""
    device = Device("SUSPENDED-1")
    async with http_api.operator() as http:
        await enrol(http, enrolment.create_aws_resources(bridge, device))
        enrolled = enrolment.with_assigned_id(device)
        await bridge.wait_for_end(enrolled)
        later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
        await bridge.send_and_wait(enrolled, enrolled.event("Suspended", occurredAt=later))
        await enrol(http, enrolment.create_aws_resources(bridge, device), already_provisioned=True)
    await wait_until_erased(enrolment, enrolled.device_id)
    await bridge.wait_for_end(enrolled)
    assert reported(bridge, device) == "Suspended"


# Without Temporal


async def test_enrolment_without_temporal_is_followed_up_by_the_claim_check(
    bridge: Bridge, engine: Engine, enrolment: EnrolmentHarness
) -> None:
    """Both endpoints respond as usual; the claim certificate check signals devices without a follow-up."""
    device, replaced = Device("LATER-1"), Device("LATER-2")
    first = enrolment.create_aws_resources(bridge, replaced)
    async with operator_without_temporal(engine) as http:
        assert await verdict(http, device) == ADMITTED
        await enrol(http, enrolment.create_aws_resources(bridge, device))
        device_id = await enrol(http, first)
        await enrol(http, enrolment.create_aws_resources(bridge, replaced), already_provisioned=True)
    assert bridge.published(enrolment.with_assigned_id(device)) == ["AwsThingProvisionedEvent"]
    assert reported(bridge, device) is None
    totals = await run_claim_check(bridge)
    assert totals.signalled >= 2
    await bridge.wait_for_end(enrolment.with_assigned_id(device))
    await wait_until_erased(enrolment, device_id)
    await bridge.wait_for_end(enrolment.with_assigned_id(replaced))
    assert reported(bridge, device) == "Active"
    assert bridge.certificate(first["certificateArn"]) is None


async def test_an_enrolled_device_is_followed_up_once(
    bridge: Bridge, engine: Engine, enrolment: EnrolmentHarness
) -> None:
    """A later claim certificate check does not signal a device whose follow-up has run."""
    device = Device("LATER-3")
    async with operator_without_temporal(engine) as http:
        await enrol(http, enrolment.body(device))
    await run_claim_check(bridge)
    await bridge.wait_for_end(enrolment.with_assigned_id(device))
    before = [run.run_id async for run in bridge.runs(enrolment.with_assigned_id(device).workflow_id)]
    await run_claim_check(bridge)
    assert [run.run_id async for run in bridge.runs(enrolment.with_assigned_id(device).workflow_id)] == before


async def test_a_decommission_erases_replaced_certificates(
    bridge: Bridge, engine: Engine, enrolment: EnrolmentHarness
) -> None:
    """They are erased without an earlier follow-up: one is still attached, one is partly erased."""
    device = Device("LATER-4")
    bodies = []
    async with operator_without_temporal(engine) as http:
        for number in range(3):
            bodies.append(enrolment.create_aws_resources(bridge, device))
            device_id = await enrol(http, bodies[-1], already_provisioned=number > 0)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE iotaws_retired_certificates SET decided_at = now() WHERE certificate_arn = %s",
            (bodies[1]["certificateArn"],),
        )
    bridge.iot.detach_thing_principal(thingName=device.thing_name, principal=bodies[1]["certificateArn"])
    enrolled = enrolment.with_assigned_id(device)
    await bridge.send_and_wait(enrolled, enrolled.event("Decommissioned"))
    resources = bridge.aws_resources(enrolled, *(body["certificateArn"] for body in bodies))
    assert (resources.thing, resources.certificates, resources.secret_arn) == (None, [], None)
    assert all(each.completed_at for each in enrolment.retired_certificates(device_id))


# Concurrency


async def test_a_concurrent_enrolment_and_decommission_leave_nothing_in_aws(
    bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """In either order, the device and every certificate that was bound are deleted in AWS at the end."""
    devices = [Device(f"BOTH-{number}") for number in range(4)]
    bodies = [enrolment.create_aws_resources(bridge, device) for device in devices]
    async with http_api.operator() as http:
        for body in bodies:
            await enrol(http, body)
        again = [enrolment.create_aws_resources(bridge, device) for device in devices]
        enrolled = [enrolment.with_assigned_id(device) for device in devices]
        answers = await asyncio.gather(
            *(http.post(REGISTERED, json=body) for body in again),
            *(bridge.send(device, device.event("Decommissioned")) for device in enrolled),
        )
        await asyncio.gather(*(bridge.wait_for_end(device) for device in enrolled))
        assert {answer.status_code for answer in answers if answer} <= {200, 403}
        for device, first, second in zip(enrolled, bodies, again, strict=True):
            assert enrolment.require_binding(device).provisioning_status is DECOMMISSIONED
            arns = first["certificateArn"], second["certificateArn"]
            resources = bridge.aws_resources(device, *arns)
            assert (resources.thing, resources.certificates, resources.secret_arn) == (None, [], None)
            assert (await verdict(http, device))[0] == 403


async def test_concurrent_certificates_are_each_bound_or_retired(
    http_api: HttpApi, engine: Engine, enrolment: EnrolmentHarness
) -> None:
    """There is one device, and each certificate is either bound or to be erased."""
    device = Device("DUEL-1")
    bodies = [enrolment.body(device) for _ in range(6)]
    async with operator_without_temporal(engine) as http:
        answers = await asyncio.gather(*(http.post(REGISTERED, json=body) for body in bodies))
    assert {answer.status_code for answer in answers} == {200}
    assert Counter(answer.json()["alreadyProvisioned"] for answer in answers) == {False: 1, True: 5}
    binding = enrolment.require_binding(device)
    known = [
        binding.certificate_arn,
        *(each.certificate_arn for each in enrolment.retired_certificates(binding.device_id)),
    ]
    assert sorted(map(str, known)) == sorted(body["certificateArn"] for body in bodies)


async def test_a_concurrent_enrolment_and_platform_saga_make_one_binding(
    bridge: Bridge, http_api: HttpApi, enrolment: EnrolmentHarness
) -> None:
    """The serial number belongs to one of them, and the other fails with the reason."""
    device = Device("RIVAL-1")
    async with http_api.operator() as http:
        answer, _ = await asyncio.gather(
            http.post(REGISTERED, json=enrolment.body(device)),
            bridge.send(device, device.event("Provisioned")),
        )
    if answer.status_code == 200:
        failed = await bridge.wait_for_status(device, ProvisioningStatus.FAILED)
        assert failed.failure_code == "SerialBoundToAnotherDevice"
        await bridge.send_and_wait(device, device.event("Decommissioned"))
        assert enrolment.require_binding(device).provisioning_status is ACTIVE
    else:
        assert problem(answer)["status"] == 409
        await bridge.wait_for_end(device)
        assert enrolment.require_binding(device).device_id == device.device_id


async def test_a_timed_out_registration_writes_nothing_and_blocks_no_thread(
    engine: Engine, enrolment: EnrolmentHarness
) -> None:
    """Nothing is written after the 503, and the thread serves others while the row is still locked."""
    device, other = Device("HELD-1"), Device("HELD-2")
    settings = ApiSettings.load()
    short = settings.api.model_copy(update={"request_timeout_seconds": 1.0, "max_concurrent_requests": 1})
    async with operator_without_temporal(engine) as http:
        await enrol(http, enrolment.body(device))
    app = create_app(settings.model_copy(update={"api": short}))
    async with open_http_api(engine, app) as http_api, http_api.operator() as http:

        async def served() -> bool:
            return await verdict(http, other) == ADMITTED

        with enrolment.no_rows_written(device), Session(engine) as locking:
            bound = select(AwsThingBinding).where(AwsThingBinding.thing_name == device.thing_name)
            locking.exec(bound.with_for_update()).one()
            answer = await http.post(REGISTERED, json=enrolment.body(device))
            assert problem(answer)["status"] == 503
            await until(served, "another device is admitted")


async def test_a_device_with_a_recorded_decommission_is_not_bound_again(
    http_api: HttpApi, engine: Engine, enrolment: EnrolmentHarness
) -> None:
    """A decommission counts from the moment it is recorded, before the teardown begins."""
    device = Device("DECOMMISSIONED-1")
    async with operator_without_temporal(engine) as http:
        device_id = await enrol(http, enrolment.body(device))
        with Session(engine) as session, session.begin():
            state = DeviceState(device_id=device_id, tenant_id=device.tenant_id, serial_number=None)
            desired = StatusChange(
                status=DesiredStatus.DECOMMISSIONED, occurred_at=datetime.now(UTC), event_id=uuid4()
            )
            row = lock_or_create_state(session, state)
            save_state(
                session,
                row,
                state.model_copy(update={"desired": desired, "serial_number": "DECOMMISSIONED-1"}),
            )
        with enrolment.no_rows_written(device):
            answer = await http.post(REGISTERED, json=enrolment.body(device))
    assert problem(answer)["status"] == 403


async def run_claim_check(bridge: Bridge) -> CheckTotals:
    """Run the claim certificate check, as its schedule does."""
    return await bridge.client.execute_workflow(
        ClaimCertificateCheck.run, id=f"check-{uuid4()}", task_queue=TASK_QUEUE
    )


async def wait_until_erased(enrolment: EnrolmentHarness, device_id: UUID) -> None:
    """Wait until every replaced certificate of the device is erased or kept for a reason."""

    async def completed() -> bool:
        return all(each.completed_at for each in enrolment.retired_certificates(device_id))

    await until(completed, "the replaced certificates are erased")


def certificates(bridge: Bridge, device: Device) -> dict[str, str]:
    """Return the certificates attached to the device's Thing, each with its status."""
    principals = bridge.iot.list_thing_principals(thingName=device.thing_name)["principals"]
    return {arn: found.status for arn in principals if (found := bridge.certificate(arn))}


def reported(bridge: Bridge, device: Device) -> str | None:
    """Return the reported status in the device's shadow."""
    try:
        shadow = bridge.iot_data.get_thing_shadow(thingName=device.thing_name)
    except bridge.iot_data.exceptions.ResourceNotFoundException:
        return None
    status: str | None = json.loads(shadow["payload"].read())["state"].get("reported", {}).get("status")
    return status
