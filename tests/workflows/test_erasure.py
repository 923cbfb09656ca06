"""Erasure removes the data that identifies a decommissioned device. Its serial number stays denied."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text, update
from sqlalchemy.exc import ProgrammingError
from sqlmodel import Session, col

import db.erasure
from aws.clients import AwsClients
from db.bindings import Actor
from db.device_states import lock_state
from db.enrolment import EnrolmentDeniedError, enrol
from db.erasure import NotErasableError, WrongHashKeyError, erase_device, erase_some, require_hash_key
from db.models import AwsThingBinding, DeviceRow, Erasure, Table
from db.outbox import enqueue
from domain.enrolment import Denial, Registration
from domain.erasure import SerialHashing
from domain.outgoing_event import AwsThingDecommissioned
from domain.provisioning_status import ProvisioningStatus
from settings import Settings
from tests.harness.bridge import HASH_KEY, Bridge, Device, until, worker_on
from tests.harness.command_line import Result, call_in_thread
from tests.harness.http_api import HttpApi

HASHING = SerialHashing(HASH_KEY)
TEST = Actor("a test")


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session whose changes are rolled back."""
    with Session(engine, expire_on_commit=False) as opened:
        yield opened


async def test_no_table_identifies_an_erased_device(bridge: Bridge, http_api: HttpApi) -> None:
    """Serial number, label, Thing name and ARNs are in no column, also after a late event that has them."""
    device = Device(f"ERASED-{uuid4().hex}")
    await fail_and_retry(bridge, device)
    label = insert_platform_row(bridge, device)
    names = {device.serial_number, device.thing_name, label, *arns(bridge, device)}
    keep_certificate(bridge, device)
    await decommissioned(bridge, device)
    assert {name for name in names if tables_with(bridge, name)} == names
    assert {"iotaws_binding_transitions", "iotaws_outbox"} <= tables_with(bridge, arns(bridge, device)[1])
    assert await erase(str(device.device_id)) == Result(0, f"device {device.device_id} erased\n", "")
    await bridge.send_and_wait(device, device.event("Provisioned"), device.event("Activated", 5))
    assert {name: tables_with(bridge, name) for name in names} == {name: set() for name in names}
    assert await denied(http_api, device.tenant_id, device.serial_number)
    result = await erase(str(device.device_id))
    assert result == Result(0, f"device {device.device_id} was erased before\n", "")


async def test_erased_serial_number_is_denied_to_its_tenant_only(
    bridge: Bridge, http_api: HttpApi, session: Session
) -> None:
    """Another tenant may enrol it, and the same tenant after provisioning it under a new device id."""
    device, again = (first := Device("DENIED-1")), Device("DENIED-1", first.tenant_id)
    await decommissioned(bridge, device)
    assert await denied(http_api, device.tenant_id, "DENIED-1")
    registration = registration_of(bridge, device)
    assert (await erase(str(device.device_id))).exit_code == 0
    with pytest.raises(EnrolmentDeniedError):
        enrol(session, registration, device.thing_name, TEST, allow_reprovision=True, hashing=HASHING)
    session.rollback()
    assert await denied(http_api, device.tenant_id, "DENIED-1")
    assert not await denied(http_api, uuid4(), "DENIED-1")
    assert not await denied(http_api, None, "DENIED-1")
    await bridge.send_and_wait(again, again.event("Provisioned"))
    assert bridge.require_binding(again).provisioning_status is ProvisioningStatus.ACTIVE
    assert not await denied(http_api, device.tenant_id, "DENIED-1")
    await decommissioned(bridge, again)
    assert await denied(http_api, device.tenant_id, "DENIED-1")


async def test_live_or_unknown_device_is_not_erased(bridge: Bridge) -> None:
    """The command is rejected with the reason, and the device is not changed."""
    live, unknown = Device("LIVE-1"), Device("UNKNOWN-1")
    await bridge.send_and_wait(live, live.event("Provisioned"))
    for device, reason in {
        live: f"device {live.device_id} is not decommissioned: decommission it first",
        unknown: f"device {unknown.device_id} is unknown",
    }.items():
        assert await erase(str(device.device_id)) == Result(2, "", f"error: {reason}\n")
    assert bridge.require_binding(live).thing_name == live.thing_name


async def test_device_is_not_erased_before_its_teardown_is_complete(faulty_bridge: Bridge) -> None:
    """The row's ARNs are needed to delete the resources in AWS, and are kept until that is done."""
    device = Device("TEARDOWN-1")
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    faulty_bridge.emulator.add_fault(
        "iot:DeleteThing", resource=device.thing_name, code="InternalFailure", status=500
    )
    await faulty_bridge.send(device, device.event("Decommissioned", 1))
    await faulty_bridge.wait_for_activity(device, "erase_thing")
    result = await erase(str(device.device_id))
    assert (result.exit_code, "is still being decommissioned: wait until" in result.stderr) == (2, True)
    faulty_bridge.emulator.clear_faults()
    await faulty_bridge.wait_for_end(device)
    publish(faulty_bridge, device)
    assert (await erase(str(device.device_id))).exit_code == 0


async def test_device_with_unsent_events_is_not_erased(bridge: Bridge, session: Session) -> None:
    """An event is sent with all of its data before it is erased."""
    device = await decommissioned(bridge, Device("UNSENT-1"))
    last = AwsThingDecommissioned(
        device_id=device.device_id, tenant_id=device.tenant_id, binding_id=uuid4(), thing_name=None, kept=[]
    )
    enqueue(session, last)
    with pytest.raises(NotErasableError, match="have not been sent yet: wait until they are"):
        erase_device(session, device.device_id, HASHING, TEST)


async def test_parked_event_does_not_delay_the_erasure(bridge: Bridge) -> None:
    """A parked event is deleted as a whole, because it may never be sent."""
    device = await decommissioned(bridge, Device("PARKED-1"))
    with bridge.engine.begin() as connection:
        connection.execute(
            text("""
                UPDATE iotaws_outbox SET published_at = NULL, first_refused_at = now(), parked_at = now()
                WHERE device_id = :device AND sequence = 1
            """),
            {"device": device.device_id},
        )
    first, *rest = bridge.outbox(device)
    assert (await erase(str(device.device_id))).exit_code == 0
    assert [row.id for row in bridge.outbox(device)] == [row.id for row in rest]
    assert first.id


async def test_erasure_of_a_tenant_erases_its_decommissioned_devices(
    bridge: Bridge, session: Session
) -> None:
    """Live devices are counted, with exit code 1. Devices of other tenants are not changed."""
    tenant = uuid4()
    gone = [Device(f"TENANT-{number}", tenant) for number in range(3)]
    live, other = Device("TENANT-3", tenant), Device("TENANT-1")
    await asyncio.gather(
        bridge.send_and_wait(live, live.event("Provisioned")),
        *(decommissioned(bridge, device) for device in [*gone, other]),
    )
    pages = [erase_some(session, HASHING, TEST, limit=2, tenant_id=tenant) for _ in range(3)]
    assert pages == [2, 1, 0]
    session.rollback()
    assert await erase("--tenant", str(tenant)) == Result(1, "3 erased, 1 left\n", "")
    assert [bridge.require_binding(device).thing_name for device in gone] == [None, None, None]
    assert bridge.require_binding(live).thing_name
    assert bridge.require_binding(other).thing_name
    await decommissioned(bridge, live)
    assert await erase("--tenant", str(tenant)) == Result(0, "1 erased, 0 left\n", "")


async def test_sweep_erases_devices_after_the_retention(
    bridge: Bridge, settings: Settings, aws: AwsClients
) -> None:
    """The sweep erases the devices whose retention is over. A worker without a retention erases none."""
    old = [await decommissioned(bridge, Device(f"SWEPT-{number}")) for number in range(2)]
    recent = await decommissioned(bridge, Device("SWEPT-2"))
    for device in old:
        age(bridge, device)
    retention = settings.erasure.model_copy(update={"retention_days": 2})
    queue = f"erasure-{uuid4()}"
    for kept, erased in ((settings, 0), (settings.model_copy(update={"erasure": retention}), 2)):
        async with worker_on(queue, kept, bridge, aws, bridge.engine):
            run = await bridge.client.execute_workflow("ErasureSweep", id=queue, task_queue=queue)
        assert run == {"count": erased}
    assert [bridge.require_binding(device).thing_name for device in old] == [None, None]
    assert bridge.require_binding(recent).thing_name
    row = {"device": old[0].device_id}
    with Session(bridge.engine) as session:
        statement = text("SELECT workflow_id, run_id FROM iotaws_erasures WHERE device_id = :device")
        workflow_id, run_id = session.execute(statement, row).one()
    assert (workflow_id, bool(run_id)) == (queue, True)


async def test_retention_starts_when_the_decommissioning_is_complete(
    bridge: Bridge, session: Session
) -> None:
    """The time of the event, by the platform's clock, has no influence, also if it is in the future."""
    device = Device("AHEAD-1")
    await bridge.send_and_wait(device, device.event("Provisioned"), device.event("Decommissioned", 10**9))
    publish(bridge, device)
    with bridge.engine.begin() as connection:
        connection.execute(
            update(AwsThingBinding)
            .where(col(AwsThingBinding.device_id) == device.device_id)
            .values(deleted_at=datetime.now(UTC) - timedelta(days=3))
        )
    before = datetime.now(UTC) - timedelta(days=2)
    assert erase_some(session, HASHING, TEST, limit=1, tenant_id=device.tenant_id, before=before) == 1


async def test_record_of_an_erasure_cannot_be_changed(bridge: Bridge, session: Session) -> None:
    """The record is append-only, and an erasure removes only the reasons from the transitions."""
    device = await decommissioned(bridge, Device("AUDITED-1"))
    before = bridge.transitions(device)
    row = {"device": device.device_id}
    statement = "UPDATE iotaws_binding_transitions SET {} WHERE device_id = :device"
    with pytest.raises(ProgrammingError, match="append-only"):
        session.execute(text(statement.format("reason = NULL")), row)
    session.rollback()
    await erase(str(device.device_id))
    assert session.execute(
        text("SELECT actor, tenant_id FROM iotaws_erasures WHERE device_id = :device"), row
    ).one() == ("thingbridge erase", device.tenant_id)
    assert bridge.transitions(device) == before
    for change in ("reason = 'x'", "reason = NULL, actor = 'another'"):
        with pytest.raises(ProgrammingError, match="append-only"):
            session.execute(text(statement.format(change)), row)
        session.rollback()
    with pytest.raises(ProgrammingError, match="append-only"):
        session.execute(text("DELETE FROM iotaws_erasures"))


async def test_missing_or_changed_hash_key_is_rejected(bridge: Bridge, session: Session) -> None:
    """Without the hash key, or with another one, nothing is erased and no denied number is admitted."""
    device, next_one = [await decommissioned(bridge, Device(f"KEYED-{number}")) for number in range(2)]
    await erase(str(device.device_id))
    result = await call_in_thread("erase", str(next_one.device_id), IOT_AWS_ERASURE__HASH_KEY=None)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: IOT_AWS_ERASURE__HASH_KEY: is required to erase")
    result = await call_in_thread("erase", str(next_one.device_id), IOT_AWS_ERASURE__HASH_KEY=HASH_KEY[::-1])
    assert result.exit_code == 2
    assert "is not the key with which erased serial numbers of this database were hashed" in result.stderr
    assert bridge.require_binding(next_one).thing_name
    require_hash_key(session, HASHING)
    with pytest.raises(WrongHashKeyError, match="not denied without IOT_AWS_ERASURE__HASH_KEY"):
        require_hash_key(session, None)


async def test_serial_numbers_are_not_hashed_with_two_keys(bridge: Bridge, session: Session) -> None:
    """An erasure in progress with another key fails, because no single key could deny all serial numbers."""
    device, next_one = [await decommissioned(bridge, Device(f"TWO-KEYS-{number}")) for number in range(2)]
    await erase(str(device.device_id))
    other = SerialHashing(HASH_KEY[::-1])
    with pytest.raises(WrongHashKeyError):
        erase_device(session, next_one.device_id, other, TEST)
    session.rollback()
    with pytest.raises(WrongHashKeyError):
        erase_some(session, other, TEST, limit=1, tenant_id=next_one.tenant_id)


async def test_concurrent_enrolment_and_erasure_do_not_deadlock(bridge: Bridge, session: Session) -> None:
    """The serial number is denied and the device is erased, in whichever order they lock the rows."""
    device = await decommissioned(bridge, Device("ERASED-AT-ONCE"))
    registration = registration_of(bridge, device)

    def erase_in(own: Session) -> bool:
        return erase_device(own, device.device_id, HASHING, TEST)

    def enrol_in(own: Session) -> bool:
        with pytest.raises(EnrolmentDeniedError):
            enrol(own, registration, device.thing_name, TEST, allow_reprovision=True, hashing=HASHING)
        return True

    lock_state(session, device.device_id)
    begun = [await begin(bridge.engine, work) for work in (erase_in, enrol_in)]
    session.rollback()
    assert await asyncio.gather(*begun) == [True, True]


async def begin(engine: Engine, work: Callable[[Session], bool]) -> asyncio.Task[bool]:
    """Start work in its own transaction, and return once it waits for a lock or has ended."""
    pids: list[int] = []

    def transaction() -> bool:
        with Session(engine) as own, own.begin():
            pids.append(own.execute(text("SELECT pg_backend_pid()")).scalar_one())
            return work(own)

    task = asyncio.create_task(asyncio.to_thread(transaction))

    async def waits() -> bool:
        with engine.connect() as connection:
            waiting = text("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = ANY(:pids)")
            return task.done() or bool(connection.execute(waiting, {"pids": pids}).scalar())

    await until(waits, "it waits for a lock or has ended")
    return task


async def test_command_requires_either_a_device_or_a_tenant(bridge: Bridge) -> None:
    """Neither and both are rejected."""
    for arguments in ((), (str(uuid4()), "--tenant", str(uuid4()))):
        result = await erase(*arguments)
        assert result.exit_code == 2
        assert "name either a device or a --tenant" in result.stderr


def test_erasure_covers_every_table_with_a_device_id() -> None:
    """A new table must be part of the erasure."""
    source = inspect.getsource(db.erasure)
    known = {
        table.__name__
        for table in Table.__subclasses__()
        if "device_id" in table.model_fields or table is DeviceRow
    } - {Erasure.__name__}
    assert {name for name in known if f"({name}" not in source} == set()


async def erase(*arguments: str) -> Result:
    return await call_in_thread("erase", *arguments)


async def decommissioned(bridge: Bridge, device: Device) -> Device:
    """Provision and decommission a device, and mark its events as sent."""
    # One after the other: if both signals wait, the decommission is handled first, and creates no events.
    await bridge.send_and_wait(device, device.event("Provisioned"))
    await bridge.send_and_wait(device, device.event("Decommissioned", 1))
    publish(bridge, device)
    return device


async def fail_and_retry(bridge: Bridge, device: Device) -> None:
    """Make a device Active after a failure whose reason, stored in several rows, contains the Thing name."""
    bridge.iot.create_thing(
        thingName=device.thing_name, attributePayload={"attributes": {"deviceId": str(uuid4())}}
    )
    await bridge.send(device, device.event("Provisioned"))
    await bridge.wait_for_status(device, ProvisioningStatus.FAILED)
    bridge.iot.delete_thing(thingName=device.thing_name)
    await bridge.signal(device, signal="retry")
    await bridge.wait_for_end(device)


def registration_of(bridge: Bridge, device: Device) -> Registration:
    """Return the registration that fleet provisioning would send for a device."""
    binding = bridge.require_binding(device)
    return Registration(
        tenant_id=device.tenant_id,
        serial_number=device.serial_number,
        thing_name=device.thing_name,
        thing_arn=binding.thing_arn or "",
        certificate_arn=binding.certificate_arn or "",
        certificate_secret_arn=None,
        model="P-1",
        firmware_version="1.0",
        label=None,
        claim_certificate_expires_at=None,
    )


def keep_certificate(bridge: Bridge, device: Device) -> None:
    """Attach the certificate to another Thing too, so that audit and event name it as kept."""
    other = f"other-{device.device_id}"
    bridge.iot.create_thing(thingName=other)
    bridge.iot.attach_thing_principal(
        thingName=other, principal=bridge.require_binding(device).certificate_arn
    )


def insert_platform_row(bridge: Bridge, device: Device) -> str:
    """Insert the platform's row of the device, and return its label."""
    label = f"the pump of {device.device_id}"
    with bridge.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO iot_devices"
                " (id, tenant_id, serial_number, model, firmware_version, label, status)"
                " VALUES (:id, :tenant, :serial, 'P-1', '1.0', :label, 'Active')"
            ),
            {
                "id": device.device_id,
                "tenant": device.tenant_id,
                "serial": device.serial_number,
                "label": label,
            },
        )
    return label


def arns(bridge: Bridge, device: Device) -> list[str]:
    binding = bridge.require_binding(device)
    return [
        arn for arn in (binding.thing_arn, binding.certificate_arn, binding.certificate_secret_arn) if arn
    ]


def publish(bridge: Bridge, device: Device) -> None:
    """Mark the device's events as sent."""
    with bridge.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE iotaws_outbox SET published_at = now() WHERE device_id = :id AND published_at IS NULL"
            ),
            {"id": device.device_id},
        )


def age(bridge: Bridge, device: Device) -> None:
    """Move the decommissioning of a device three days into the past."""
    with bridge.engine.begin() as connection:
        for change in (
            "iotaws_thing_bindings SET deleted_at = now() - interval '3 days'",
            "iotaws_device_states SET decommissioned_at = now() - interval '3 days'",
        ):
            connection.execute(
                text(f"UPDATE {change} WHERE device_id = :device"),
                {"device": device.device_id},
            )


async def denied(http_api: HttpApi, tenant_id: UUID | None, serial_number: str) -> bool:
    """Return whether `/verify` denies the serial number to a tenant."""
    body = {"serialNumber": serial_number, "tenantId": str(tenant_id) if tenant_id else None}
    async with http_api.operator() as client:
        answer = await client.post("/api/iot/fleet-provisioning/verify", json=body)
    assert answer.json()["reason"] == (Denial.DECOMMISSIONED if answer.status_code == 403 else None)
    return answer.status_code == 403


def tables_with(bridge: Bridge, name: str) -> set[str]:
    """Return the tables that contain a name in any column."""
    with bridge.engine.connect() as connection:
        return {
            table.name
            for table in Table.metadata.sorted_tables
            if connection.execute(
                text(f"SELECT 1 FROM {table.name} t WHERE strpos(row_to_json(t)::text, :name) > 0 LIMIT 1"),  # noqa: S608
                {"name": name},
            ).first()
        }
