"""What names a decommissioned device is erased from every row, and its serial is denied all the same."""

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
from db.outbox import put
from domain.enrolment import Denial, Registration
from domain.erasure import SerialHashing
from domain.outgoing_event import AwsThingDecommissioned
from domain.provisioning_status import ProvisioningStatus
from settings import Settings
from tests.harness.bridge import HASH_KEY, Bridge, Device, until, worker_on
from tests.harness.command_line import Result, call_beside
from tests.harness.http_api import HttpApi

HASHING = SerialHashing(HASH_KEY)
TEST = Actor("a test")


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """One transaction, of which nothing is kept."""
    with Session(engine, expire_on_commit=False) as opened:
        yield opened


async def test_nothing_in_any_table_names_an_erased_device(bridge: Bridge, http_api: HttpApi) -> None:
    """Serial, label, Thing name and ARNs are in no column, also after a late event that tells them again."""
    device = Device(f"ERASED-{uuid4().hex}")
    await fail_and_mend(bridge, device)
    label = enrolled(bridge, device)
    names = {device.serial_number, device.thing_name, label, *arns(bridge, device)}
    keep_certificate(bridge, device)
    await decommissioned(bridge, device)
    assert {name for name in names if places_of(bridge, name)} == names
    assert {"iotaws_binding_transitions", "iotaws_outbox"} <= places_of(bridge, arns(bridge, device)[1])
    assert await erase(str(device.device_id)) == Result(0, f"device {device.device_id} erased\n", "")
    await bridge.send_and_wait(device, device.event("Provisioned"), device.event("Activated", 5))
    assert {name: places_of(bridge, name) for name in names} == {name: set() for name in names}
    assert await denied(http_api, device.tenant_id, device.serial_number)
    said = await erase(str(device.device_id))
    assert said == Result(0, f"device {device.device_id} was erased before\n", "")


async def test_an_erased_serial_is_denied_to_its_tenant_alone(
    bridge: Bridge, http_api: HttpApi, session: Session
) -> None:
    """Another tenant's same serial is not, nor this one's once it is provisioned under a new device id."""
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


async def test_a_device_that_lives_or_is_unknown_is_not_erased(bridge: Bridge) -> None:
    """It is refused with what to do first, and stays as it is."""
    living, stranger = Device("LIVING-1"), Device("STRANGER-1")
    await bridge.send_and_wait(living, living.event("Provisioned"))
    for device, why in {
        living: f"device {living.device_id} is not decommissioned: decommission it first",
        stranger: f"device {stranger.device_id} is not known here",
    }.items():
        assert await erase(str(device.device_id)) == Result(2, "", f"error: {why}\n")
    assert bridge.require_binding(living).thing_name == living.thing_name


async def test_a_device_is_not_erased_before_its_teardown_is_done(faulty_bridge: Bridge) -> None:
    """What AWS still holds is found by the row's ARNs alone, so they stay until it is gone."""
    device = Device("TEARDOWN-1")
    await faulty_bridge.send_and_wait(device, device.event("Provisioned"))
    faulty_bridge.emulator.add_fault("iot:DeleteThing", resource=device.thing_name, status=500, times=1000)
    await faulty_bridge.send(device, device.event("Decommissioned", 1))
    await faulty_bridge.wait_for_activity(device, "erase_thing")
    said = await erase(str(device.device_id))
    assert (said.exit_code, "is still being decommissioned: wait until" in said.stderr) == (2, True)
    faulty_bridge.emulator.clear_faults()
    await faulty_bridge.wait_for_end(device)
    publish(faulty_bridge, device)
    assert (await erase(str(device.device_id))).exit_code == 0


async def test_what_is_still_to_be_told_is_not_erased(bridge: Bridge, session: Session) -> None:
    """An event that has not been sent yet is sent whole, and then erased."""
    device = await decommissioned(bridge, Device("UNTOLD-1"))
    last = AwsThingDecommissioned(
        device_id=device.device_id, tenant_id=device.tenant_id, binding_id=uuid4(), thing_name=None, kept=[]
    )
    put(session, last)
    with pytest.raises(NotErasableError, match="have not been sent yet: wait until they are"):
        erase_device(session, device.device_id, HASHING, TEST)


async def test_an_event_that_is_parked_holds_up_no_erasure(bridge: Bridge) -> None:
    """What no sink takes is erased as a whole, for it would never be told."""
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


async def test_a_tenants_decommissioned_devices_are_erased_together(bridge: Bridge, session: Session) -> None:
    """Those that live are left and counted, with exit code 1; another tenant's are not touched."""
    tenant = uuid4()
    gone = [Device(f"TENANT-{number}", tenant) for number in range(3)]
    living, other = Device("TENANT-3", tenant), Device("TENANT-1")
    await asyncio.gather(
        bridge.send_and_wait(living, living.event("Provisioned")),
        *(decommissioned(bridge, device) for device in [*gone, other]),
    )
    pages = [erase_some(session, HASHING, TEST, limit=2, tenant_id=tenant) for _ in range(3)]
    assert pages == [2, 1, 0]
    session.rollback()
    assert await erase("--tenant", str(tenant)) == Result(1, "3 erased, 1 left\n", "")
    assert [bridge.require_binding(device).thing_name for device in gone] == [None, None, None]
    assert bridge.require_binding(living).thing_name
    assert bridge.require_binding(other).thing_name
    await decommissioned(bridge, living)
    assert await erase("--tenant", str(tenant)) == Result(0, "1 erased, 0 left\n", "")


async def test_the_sweep_erases_what_was_decommissioned_long_enough_ago(
    bridge: Bridge, settings: Settings, aws: AwsClients
) -> None:
    """It erases all whose days are over and no other, and a worker without a retention erases nothing."""
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
    actor = {"device": old[0].device_id}
    with Session(bridge.engine) as session:
        statement = text("SELECT workflow_id, run_id FROM iotaws_erasures WHERE device_id = :device")
        workflow_id, run_id = session.execute(statement, actor).one()
    assert (workflow_id, bool(run_id)) == (queue, True)


async def test_a_decommissioning_dated_in_the_future_is_over_like_any_other(
    bridge: Bridge, session: Session
) -> None:
    """How long ago it was done counts, and no clock of the platform's."""
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


async def test_who_erased_stands_for_ever(bridge: Bridge, session: Session) -> None:
    """The record of an erasure cannot be changed, and of the audit an erasure takes the reasons alone."""
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


async def test_without_the_key_nothing_is_erased_and_no_denial_lost(bridge: Bridge, session: Session) -> None:
    """No key, a lost one or another is refused before it can admit what was denied."""
    device, next_one = [await decommissioned(bridge, Device(f"KEYED-{number}")) for number in range(2)]
    await erase(str(device.device_id))
    said = await call_beside("erase", str(next_one.device_id), IOT_AWS_ERASURE__HASH_KEY=None)
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr.startswith("error: IOT_AWS_ERASURE__HASH_KEY: is required to erase")
    said = await call_beside("erase", str(next_one.device_id), IOT_AWS_ERASURE__HASH_KEY=HASH_KEY[::-1])
    assert said.exit_code == 2
    assert "is not the key that serial numbers erased here were hashed with" in said.stderr
    assert bridge.require_binding(next_one).thing_name
    require_hash_key(session, HASHING)
    with pytest.raises(WrongHashKeyError, match="not denied without IOT_AWS_ERASURE__HASH_KEY"):
        require_hash_key(session, None)


async def test_serial_numbers_are_never_hashed_with_two_keys(bridge: Bridge, session: Session) -> None:
    """A sweep that was begun with another key stops, for then no key could deny them all."""
    device, next_one = [await decommissioned(bridge, Device(f"TWO-KEYS-{number}")) for number in range(2)]
    await erase(str(device.device_id))
    other = SerialHashing(HASH_KEY[::-1])
    with pytest.raises(WrongHashKeyError):
        erase_device(session, next_one.device_id, other, TEST)
    session.rollback()
    with pytest.raises(WrongHashKeyError):
        erase_some(session, other, TEST, limit=1, tenant_id=next_one.tenant_id)


async def test_an_enrolment_and_an_erasure_at_once_do_not_wait_for_each_other(
    bridge: Bridge, session: Session
) -> None:
    """The serial number is denied, and the device erased, in whatever order they take its rows."""
    device = await decommissioned(bridge, Device("ERASED-AT-ONCE"))
    registration = registration_of(bridge, device)

    def erased(own: Session) -> bool:
        return erase_device(own, device.device_id, HASHING, TEST)

    def denied_too(own: Session) -> bool:
        with pytest.raises(EnrolmentDeniedError):
            enrol(own, registration, device.thing_name, TEST, allow_reprovision=True, hashing=HASHING)
        return True

    lock_state(session, device.device_id)
    begun = [await begin(bridge.engine, work) for work in (erased, denied_too)]
    session.rollback()
    assert await asyncio.gather(*begun) == [True, True]


async def begin(engine: Engine, work: Callable[[Session], bool]) -> asyncio.Task[bool]:
    """Have some work done in a transaction of its own, which by now waits for another or has ended."""
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


async def test_a_device_or_a_tenant_is_named(bridge: Bridge) -> None:
    """Neither and both are refused."""
    for arguments in ((), (str(uuid4()), "--tenant", str(uuid4()))):
        said = await erase(*arguments)
        assert said.exit_code == 2
        assert "name either a device or a --tenant" in said.stderr


def test_every_table_that_knows_devices_has_its_line_in_the_erasure() -> None:
    """A table made later is not forgotten."""
    source = inspect.getsource(db.erasure)
    known = {
        table.__name__
        for table in Table.__subclasses__()
        if "device_id" in table.model_fields or table is DeviceRow
    } - {Erasure.__name__}
    assert {name for name in known if f"({name}" not in source} == set()


async def erase(*arguments: str) -> Result:
    return await call_beside("erase", *arguments)


async def decommissioned(bridge: Bridge, device: Device) -> Device:
    """A device whose life is over, and told of."""
    # One after the other: of two that wait together the decommission comes first, with nothing to tell of.
    await bridge.send_and_wait(device, device.event("Provisioned"))
    await bridge.send_and_wait(device, device.event("Decommissioned", 1))
    publish(bridge, device)
    return device


async def fail_and_mend(bridge: Bridge, device: Device) -> None:
    """Make it Active by way of a failure whose reason, in several rows, names the Thing."""
    bridge.iot.create_thing(
        thingName=device.thing_name, attributePayload={"attributes": {"deviceId": str(uuid4())}}
    )
    await bridge.send(device, device.event("Provisioned"))
    await bridge.wait_for_status(device, ProvisioningStatus.FAILED)
    bridge.iot.delete_thing(thingName=device.thing_name)
    await bridge.signal(device, signal="retry")
    await bridge.wait_for_end(device)


def registration_of(bridge: Bridge, device: Device) -> Registration:
    """What a device's fleet provisioning would tell of it."""
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
    """Have the certificate serve another Thing too, so that audit and event say that it is left."""
    other = f"other-{device.device_id}"
    bridge.iot.create_thing(thingName=other)
    bridge.iot.attach_thing_principal(
        thingName=other, principal=bridge.require_binding(device).certificate_arn
    )


def enrolled(bridge: Bridge, device: Device) -> str:
    """The label of the core's own row of the device."""
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
    """Have the device's events sent."""
    with bridge.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE iotaws_outbox SET published_at = now() WHERE device_id = :id AND published_at IS NULL"
            ),
            {"id": device.device_id},
        )


def age(bridge: Bridge, device: Device) -> None:
    """Have it decommissioned three days earlier."""
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
    """Whether `/verify` denies the serial number to a tenant."""
    asked = {"serialNumber": serial_number, "tenantId": str(tenant_id) if tenant_id else None}
    async with http_api.operator() as client:
        answer = await client.post("/api/iot/fleet-provisioning/verify", json=asked)
    assert answer.json()["reason"] == (Denial.DECOMMISSIONED if answer.status_code == 403 else None)
    return answer.status_code == 403


def places_of(bridge: Bridge, name: str) -> set[str]:
    """The tables in which a name stands, whatever the column."""
    with bridge.engine.connect() as connection:
        return {
            table.name
            for table in Table.metadata.sorted_tables
            if connection.execute(
                text(f"SELECT 1 FROM {table.name} t WHERE strpos(row_to_json(t)::text, :name) > 0 LIMIT 1"),  # noqa: S608
                {"name": name},
            ).first()
        }
