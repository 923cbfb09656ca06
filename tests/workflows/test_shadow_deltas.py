"""The shadow poll: it reads every active binding, publishes each delta once, and isolates bad devices."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import OperationalError
from sqlmodel import Session
from temporalio.client import WorkflowFailureError
from temporalio.testing import ActivityEnvironment

from activities.bindings import BindingActivities
from aws.clients import AwsClients
from db.shadow_deltas import PendingCommand, mark_command_started
from domain.command import delta_correlation_id
from domain.delta_poll import PollTotals
from domain.provisioning_status import ProvisioningStatus
from domain.saga import Device as SagaDevice
from domain.saga import TeardownPlan
from domain.shadow import Delta
from embedded.stack import Addresses
from tests.harness.active_fleet import Fleet, Member, fleet_in_new_database, polling_worker
from tests.harness.bridge import Bridge, until

PAGE_SIZE = 20
READ = "iot-data:GetThingShadow"


@pytest_asyncio.fixture(scope="module")
async def polled(stack: Addresses, bridge: Bridge, aws: AwsClients) -> AsyncIterator[Fleet]:
    """A fleet in a separate database, with a worker that polls small pages."""
    with fleet_in_new_database(bridge, stack.database_url, "shadow-deltas") as own:
        async with polling_worker(own, aws, PAGE_SIZE):
            yield own


@pytest.fixture
def fleet(polled: Fleet) -> Iterator[Fleet]:
    """The fleet without the bindings of the previous test; the emulator's faults are cleared afterwards."""
    polled.empty()
    polled.bridge.emulator.forget_calls()
    yield polled
    polled.bridge.emulator.clear_faults()


# --- Every binding is read


async def test_every_active_binding_is_visited_and_each_delta_found_once(fleet: Fleet) -> None:
    """Each of several pages of bindings is read once per poll, and the next poll finds nothing new."""
    members = fleet.bind(130)
    fleet.bind(3, ProvisioningStatus.SECRET_STORED)
    changed = [members[0], members[PAGE_SIZE], members[101], members[129]]
    for member in changed:
        fleet.desire(member, {"interval": 10})
    assert await fleet.poll() == PollTotals(visited=130, changed=4, commanded=4)
    assert fleet.shadow_reads() == 130
    assert await fleet.poll() == PollTotals(visited=130)
    assert [len(fleet.published(member)) for member in changed] == [1, 1, 1, 1]
    assert {row.device_id for row in fleet.deltas()} == {member.device_id for member in changed}


async def test_a_poll_of_many_pages_continues_as_new(fleet: Fleet, aws: AwsClients) -> None:
    """A long history makes the next run continue after the last page, with the counts so far."""
    members = fleet.bind(55)
    fleet.desire(members[1], {"early": True})
    fleet.desire(members[54], {"late": True})
    own = Fleet(fleet.bridge, fleet.database_url, "pages-of-one")
    async with polling_worker(own, aws, 1):
        handle = await own.start_poll()
        assert await handle.result() == PollTotals(visited=55, changed=2, commanded=2)
    last = await own.bridge.client.get_workflow_handle(handle.id).describe()
    assert last.run_id != handle.first_execution_run_id
    assert fleet.shadow_reads() == 55


async def test_a_poll_of_an_empty_fleet_reads_nothing(fleet: Fleet) -> None:
    """The poll of a fleet without bindings reads no shadow, and all its counts are zero."""
    assert await fleet.poll() == PollTotals()


# --- Each delta is published once


async def test_a_delta_becomes_an_event_and_a_command(fleet: Fleet) -> None:
    """Both contain the delta as JSON, and the correlation id made from device id and shadow version."""
    (member,) = fleet.bind(1)
    desired = {"network": {"dns": ["1.1.1.1", None], "mtu": 1500}, "on": True, "rate": 0.5, "name": "näß"}
    fleet.report(member, {"on": False, "name": "näß", "network": {"mtu": 1500}})
    fleet.desire(member, desired)
    assert await fleet.poll() == PollTotals(visited=1, changed=1, commanded=1)
    delta = {"network": {"dns": ["1.1.1.1", None]}, "on": True, "rate": 0.5}
    correlation_id = str(delta_correlation_id(member.device_id, 2))
    tenant = str(member.device.tenant_id)
    assert fleet.published(member) == [
        {
            "deviceId": str(member.device_id),
            "tenantId": tenant,
            "bindingId": str(member.binding_id),
            "thingName": member.thing_name,
            "shadowVersion": 2,
            "delta": delta,
            "correlationId": correlation_id,
            "jobId": f"granit-{correlation_id}",
        }
    ]
    assert await fleet.commands(f"granit-{correlation_id}") == [
        {
            "correlationId": correlation_id,
            "target": {"kind": "device", "value": str(member.device_id)},
            "operation": "shadow.applyDesiredState",
            "parameters": delta,
            "tenantId": tenant,
        }
    ]
    described = await fleet.bridge.client.get_workflow_handle(f"granit-{correlation_id}").describe()
    indexed = {pair.key.name: pair.value for pair in described.typed_search_attributes}
    assert indexed["TenantId"] == tenant
    assert indexed["ThingName"] == member.thing_name


def test_the_correlation_id_matches_the_test_vector_of_the_contract() -> None:
    """Other systems compute the same correlation id."""
    device_id = UUID("11111111-2222-3333-4444-555555555555")
    assert delta_correlation_id(device_id, 7) == UUID("19d74e98-b92f-d793-1ae7-1a04721fd0ec")


async def test_an_unchanged_delta_is_not_published_again(fleet: Fleet) -> None:
    """Each report of the device raises the shadow's version; the stored delta stays the same."""
    (member,) = fleet.bind(1)
    fleet.desire(member, {"interval": 10, "mode": {"a": 1, "b": 2}})
    await fleet.poll()
    first = fleet.require_delta(member)
    for reading in range(3):
        fleet.report(member, {"temperature": reading})
        assert await fleet.poll() == PollTotals(visited=1)
    assert fleet.require_delta(member) == first
    assert first.shadow_version == 1
    assert len(fleet.published(member)) == 1


async def test_a_changed_delta_is_published_again(fleet: Fleet) -> None:
    """A new desired value, or one of two values reached, gives another delta with its own command."""
    (member,) = fleet.bind(1)
    fleet.desire(member, {"interval": 10, "mode": "eco"})
    await fleet.poll()
    fleet.desire(member, {"interval": 20})
    assert await fleet.poll() == PollTotals(visited=1, changed=1, commanded=1)
    fleet.report(member, {"mode": "eco"})
    assert await fleet.poll() == PollTotals(visited=1, changed=1, commanded=1)
    assert [(each["shadowVersion"], each["delta"]) for each in fleet.published(member)] == [
        (1, {"interval": 10, "mode": "eco"}),
        (2, {"interval": 20, "mode": "eco"}),
        (3, {"interval": 20}),
    ]
    for event in fleet.published(member):
        assert [each["parameters"] for each in await fleet.commands(event["jobId"])] == [event["delta"]]


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_delta_that_returns_after_it_was_cleared_is_published_again(
    fleet: Fleet, *, deleted: bool
) -> None:
    """The stored delta is deleted when the device reports it or the shadow is deleted."""
    (member,) = fleet.bind(1)
    fleet.desire(member, {"interval": 10})
    await fleet.poll()
    if deleted:
        fleet.bridge.iot_data.delete_thing_shadow(thingName=member.thing_name)
    else:
        fleet.report(member, {"interval": 10})
    assert await fleet.poll() == PollTotals(visited=1, cleared=1)
    assert fleet.delta(member) is None
    assert await fleet.poll() == PollTotals(visited=1)
    fleet.report(member, {"interval": 5})
    fleet.desire(member, {"interval": 10})
    assert await fleet.poll() == PollTotals(visited=1, changed=1, commanded=1)
    first, second = fleet.published(member)
    assert first["delta"] == second["delta"]
    assert first["correlationId"] != second["correlationId"]


async def test_a_delta_at_a_lower_shadow_version_is_published(fleet: Fleet) -> None:
    """The versions of a deleted shadow begin again; a lower version is also a change."""
    (member,) = fleet.bind(1)
    for reading in range(3):
        fleet.report(member, {"temperature": reading})
    fleet.desire(member, {"interval": 10})
    await fleet.poll()
    fleet.bridge.emulator.forget_shadow(member.thing_name)
    fleet.desire(member, {"interval": 20})
    assert await fleet.poll() == PollTotals(visited=1, changed=1, commanded=1)
    assert [each["shadowVersion"] for each in fleet.published(member)] == [4, 1]


@pytest.mark.parametrize("state", [{"interval": 20}, {"interval": 10}], ids=["another", "the same"])
async def test_a_delta_at_a_version_published_before_is_published_too(
    fleet: Fleet, state: dict[str, Any]
) -> None:
    """A deleted shadow reaches the same version again: its delta gets ids of its own."""
    (member,) = fleet.bind(1)
    fleet.desire(member, {"interval": 10})
    await fleet.poll()
    fleet.bridge.emulator.forget_shadow(member.thing_name)
    await fleet.poll()
    fleet.desire(member, state)
    assert await fleet.poll() == PollTotals(visited=1, changed=1, commanded=1)
    assert await fleet.poll() == PollTotals(visited=1)
    first, second = fleet.published(member)
    assert [each["shadowVersion"] for each in (first, second)] == [1, 1]
    assert second["delta"] == state
    assert second["jobId"] != first["jobId"]
    assert [each["parameters"] for each in await fleet.commands(second["jobId"])] == [state]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
_STATES = st.dictionaries(st.text(), _JSON, max_size=4)


def with_reversed_members(value: Any) -> Any:
    """Return the same JSON with the members of every object in reverse order."""
    if isinstance(value, dict):
        return {key: with_reversed_members(value[key]) for key in reversed(value)}
    return [with_reversed_members(each) for each in value] if isinstance(value, list) else value


@given(_STATES, _STATES)
def test_the_digest_of_a_delta_depends_on_its_values_only(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The order of members and the shadow version do not change it; any other difference does."""
    digest = Delta(version=1, state=one).digest
    assert digest == Delta(version=2, state=with_reversed_members(one)).digest
    if one != other:
        assert digest != Delta(version=1, state=other).digest


# --- Errors of one device


def document(delta: Any = None, **members: Any) -> bytes:
    return json.dumps({"state": {"delta": delta or {"on": True}}, "version": 3, **members}).encode()


BAD_SHADOWS = {
    "not JSON": b"\x00\xffnot json",
    "empty": b"",
    "not an object": b"[1]",
    "no state": b'{"version": 3}',
    "state is null": b'{"state": null, "version": 3}',
    "delta is a list": document(delta=[1]),
    "delta is text": document(delta="on"),
    "no version": b'{"state": {"delta": {"on": true}}}',
    "version is text": document(version="3"),
    "version exceeds 64 bits": document(version=2**70),
    "null character": document(delta={"name": "a\0b"}),
    "half a surrogate pair": document(delta={"name": "\ud800"}),
    "NaN": b'{"state": {"delta": {"rate": NaN}}, "version": 3}',
    "infinity": b'{"state": {"delta": {"rate": 1e999}}, "version": 3}',
    "deeply nested": b'{"state": {"delta": {"a": ' + b"[" * 3000 + b"]" * 3000 + b'}}, "version": 3}',
}


async def test_a_bad_shadow_does_not_affect_other_devices(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is counted and logged with the Thing's name, and all other shadows are read."""
    members = fleet.bind(len(BAD_SHADOWS) + 2)
    first, *bad, last = members
    for member, payload in zip(bad, BAD_SHADOWS.values(), strict=True):
        fleet.bridge.emulator.add_fault(
            "iot-data:GetThingShadow", resource=f"/{member.thing_name}/", payload=payload
        )
    fleet.desire(first, {"on": True})
    long = {"text": "x" * 8100}  # AWS allows 8 KB
    fleet.desire(last, long)
    counted = PollTotals(visited=len(members), changed=2, failed=len(bad), commanded=2)
    assert await fleet.poll() == counted
    assert [each["delta"] for each in fleet.published(last)] == [long]
    assert {row.device_id for row in fleet.deltas()} == {first.device_id, last.device_id}
    for member in bad:
        assert f"shadow of {member.thing_name} not read" in caplog.text


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ThrottlingException", 429),
        ("InternalFailureException", 500),
        ("ForbiddenException", 403),
        ("InvalidRequestException", 400),
    ],
)
async def test_an_error_of_aws_for_one_device_does_not_affect_others(
    fleet: Fleet, code: str, status: int
) -> None:
    """The other devices of the page are read; the next poll reads this one again."""
    members = fleet.bind(6)
    fleet.desire(members[2], {"on": True})
    fleet.desire(members[5], {"on": True})
    fleet.bridge.emulator.add_fault(READ, resource=members[2].thing_name, code=code, status=status)
    assert await fleet.poll() == PollTotals(visited=6, changed=1, failed=1, commanded=1)
    fleet.bridge.emulator.clear_faults()
    assert await fleet.poll() == PollTotals(visited=6, changed=1, commanded=1)


async def test_a_page_is_retried_when_aws_throttles_every_read(fleet: Fleet) -> None:
    """After five devices in a row without an answer the page is retried, and reads these devices again."""
    members = fleet.bind(12)
    for member in members:
        fleet.desire(member, {"on": True})
    fleet.bridge.emulator.add_fault(READ, code="ThrottlingException", status=429, times=5)
    assert await fleet.poll() == PollTotals(visited=12, changed=12, commanded=12)
    assert fleet.shadow_reads() == 5 + 12


async def test_a_page_without_permission_is_left_to_the_next_poll(fleet: Fleet) -> None:
    """A page whose read AWS denies is not tried again in this poll."""
    members = fleet.bind(PAGE_SIZE + 10)
    for member in members[:PAGE_SIZE]:
        fleet.bridge.emulator.add_fault(
            READ, resource=member.thing_name, code="ForbiddenException", status=403
        )
    fleet.desire(members[PAGE_SIZE], {"on": True})
    assert await fleet.poll() == PollTotals(visited=10, changed=1, commanded=1, failed_pages=1)
    assert fleet.shadow_reads() == 5 + 10


async def test_a_page_is_retried_when_the_database_is_down(fleet: Fleet) -> None:
    """The next attempt continues from the same device."""
    members = fleet.bind(6)
    fleet.desire(members[3], {"on": True})
    pending = ["INSERT INTO iotaws_shadow_deltas"]

    def disconnect(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if pending and statement.startswith(pending[0]):
            pending.clear()
            raise OperationalError("the connection is lost", None, Exception())

    engine = fleet.bridge.engine
    sqlalchemy_event.listen(engine, "before_cursor_execute", disconnect)
    try:
        assert await fleet.poll() == PollTotals(visited=6, changed=1, commanded=1)
    finally:
        sqlalchemy_event.remove(engine, "before_cursor_execute", disconnect)
    assert not pending
    assert len(fleet.published(members[3])) == 1
    assert fleet.shadow_reads() == 6 + 1


# --- Interrupted polls


async def delay_read(fleet: Fleet, member: Member, seconds: float = 1) -> str:
    """Delay the next read of a device's shadow, and return the id of the fault."""
    return fleet.bridge.emulator.add_fault(READ, resource=member.thing_name, delay_seconds=seconds, times=1)


async def test_another_worker_continues_the_page_of_a_stopped_worker(fleet: Fleet, aws: AwsClients) -> None:
    """It continues after the last recorded device, with the counts so far."""
    members = fleet.bind(PAGE_SIZE)
    fleet.desire(members[4], {"on": True})
    fleet.desire(members[15], {"on": True})
    own = Fleet(fleet.bridge, fleet.database_url, "stopped-page")
    fault = await delay_read(fleet, members[10])
    async with polling_worker(own, aws, PAGE_SIZE):
        handle = await own.start_poll()
        await own.bridge.wait_for_fault(fault)
    async with polling_worker(own, aws, PAGE_SIZE):
        assert await handle.result() == PollTotals(visited=PAGE_SIZE, changed=2, commanded=2)
    # At most one device is read twice: the last one is not recorded when the worker stops.
    assert fleet.shadow_reads() <= PAGE_SIZE + 1


async def test_a_cancelled_poll_stops_reading_its_pages(fleet: Fleet) -> None:
    """A cancelled poll does not read the rest of its page."""
    members = fleet.bind(PAGE_SIZE)
    faults = [await delay_read(fleet, member, 0.5) for member in members]
    handle = await fleet.start_poll()
    await fleet.bridge.wait_for_fault(faults[1])
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()

    async def stopped() -> bool:
        read = fleet.shadow_reads()
        await asyncio.sleep(1.5)
        return fleet.shadow_reads() == read

    await until(stopped, "the page is no longer read")
    assert fleet.shadow_reads() < PAGE_SIZE


# --- Commands


@pytest.mark.parametrize("over", [False, True], ids=["runs", "has run"])
async def test_a_crash_after_the_start_of_a_command_starts_no_second_one(fleet: Fleet, *, over: bool) -> None:
    """The next poll starts the same command, finds that it exists, and records that."""
    (member,) = fleet.bind(1)
    fleet.desire(member, {"on": True})
    await fleet.poll()
    (event,) = fleet.published(member)
    if over:
        await fleet.bridge.client.get_workflow_handle(event["jobId"]).terminate()
    fleet.execute("UPDATE iotaws_shadow_deltas SET command_started_at = NULL")
    assert await fleet.poll() == PollTotals(visited=1, commanded=1)
    assert fleet.require_delta(member).command_started_at is not None
    runs = [run async for run in fleet.bridge.client.list_workflows(f"WorkflowId = '{event['jobId']}'")]
    assert len(runs) <= 1
    assert len(await fleet.commands(event["jobId"])) == 1


async def test_a_crash_before_the_start_of_a_command_is_recovered_by_the_next_poll(fleet: Fleet) -> None:
    """A delta that was published without a started command gets its command."""
    (member,) = fleet.bind(1)
    fleet.desire(member, {"on": True})
    await fleet.poll()
    # The state after such a crash, with another id, since a command of the first id is running.
    correlation_id = UUID(int=member.device_id.int ^ 1)
    fleet.execute(
        "UPDATE iotaws_shadow_deltas SET command_started_at = NULL, correlation_id = :id", id=correlation_id
    )
    assert await fleet.poll() == PollTotals(visited=1, commanded=1)
    assert [each["parameters"] for each in await fleet.commands(f"granit-{correlation_id}")] == [{"on": True}]


async def test_a_late_record_of_an_earlier_start_does_not_hide_a_newer_delta(fleet: Fleet) -> None:
    """Only the delta with the same correlation id is marked as started."""
    (member,) = fleet.bind(1)
    fleet.desire(member, {"on": True})
    await fleet.poll()
    fleet.execute("UPDATE iotaws_shadow_deltas SET command_started_at = NULL")
    earlier = PendingCommand(member.device_id, None, member.thing_name, UUID(int=1), {})
    with Session(fleet.bridge.engine) as session, session.begin():
        mark_command_started(session, [earlier])
    assert fleet.require_delta(member).command_started_at is None


# --- Decommissioned devices


async def test_the_delta_of_a_decommissioned_device_is_deleted(fleet: Fleet) -> None:
    """The stored delta is deleted when the binding ends."""
    (member,) = fleet.bind(1)
    fleet.desire(member, {"on": True})
    await fleet.poll()
    close(fleet, member)
    assert fleet.deltas() == []
    assert await fleet.poll() == PollTotals()


async def test_a_device_decommissioned_during_the_poll_is_not_published(fleet: Fleet) -> None:
    """A delta of a device whose decommission began after the page was listed is not published."""
    closed, decommissioned, other = members = fleet.bind(3)
    for member in members:
        fleet.desire(member, {"on": True})
    fleet.execute(
        "INSERT INTO iotaws_device_states (device_id, tenant_id, decommissioned_at)"
        " VALUES (:device, :tenant, now())",
        device=decommissioned.device_id,
        tenant=decommissioned.device.tenant_id,
    )
    fault = await delay_read(fleet, closed)
    handle = await fleet.start_poll()
    await fleet.bridge.wait_for_fault(fault)
    close(fleet, closed)
    assert await handle.result() == PollTotals(visited=3, changed=1, commanded=1)
    assert [row.device_id for row in fleet.deltas()] == [other.device_id]
    assert fleet.published(decommissioned) == []


def close(fleet: Fleet, member: Member) -> None:
    """Close the device's binding, as the last step of a decommission does."""
    device = SagaDevice(
        device_id=member.device_id, tenant_id=member.device.tenant_id, thing_name=member.thing_name
    )
    plan = TeardownPlan(
        device=device,
        thing=False,
        certificate_arns=[],
        shared_certificate_arns=[],
        secret_arns=[],
        unconfirmed_arns=[],
    )
    ActivityEnvironment().run(BindingActivities(fleet.bridge.engine).close_binding, plan)
