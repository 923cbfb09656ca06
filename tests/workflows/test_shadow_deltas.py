"""The poll of the fleet's shadows: every binding, each delta told once, no bad device in another's way."""

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
from tests.harness.active_fleet import Fleet, Member, fleet_of_its_own, polling_worker
from tests.harness.bridge import Bridge, until

PAGE_SIZE = 20
READ = "iot-data:GetThingShadow"


@pytest_asyncio.fixture(scope="module")
async def polled(stack: Addresses, bridge: Bridge, aws: AwsClients) -> AsyncIterator[Fleet]:
    """A worker on a database of its own, with small pages."""
    with fleet_of_its_own(bridge, stack.database_url, "shadow-deltas") as own:
        async with polling_worker(own, aws, PAGE_SIZE):
            yield own


@pytest.fixture
def fleet(polled: Fleet) -> Iterator[Fleet]:
    """The fleet, without the bindings of the test before; afterwards the emulator fails nobody."""
    polled.empty()
    polled.bridge.emulator.forget_calls()
    yield polled
    polled.bridge.emulator.clear_faults()


# --- Every binding


async def test_every_active_binding_is_visited_and_each_delta_found_once(fleet: Fleet) -> None:
    """Of more bindings than any page holds each is read once a poll, and the next poll finds nothing new."""
    members = fleet.bind(130)
    fleet.bind(3, ProvisioningStatus.SECRET_STORED)
    wanting = [members[0], members[PAGE_SIZE], members[101], members[129]]
    for member in wanting:
        fleet.desire(member, {"interval": 10})
    assert await fleet.poll() == PollTotals(visited=130, changed=4, commanded=4)
    assert fleet.shadow_reads() == 130
    assert await fleet.poll() == PollTotals(visited=130)
    assert [len(fleet.published(member)) for member in wanting] == [1, 1, 1, 1]
    assert {row.device_id for row in fleet.deltas()} == {member.device_id for member in wanting}


async def test_a_fleet_of_many_pages_goes_on_in_new_runs(fleet: Fleet, aws: AwsClients) -> None:
    """Where the pages would make the history long, another run goes on behind them, with what was counted."""
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


async def test_an_empty_fleet_is_polled_in_peace(fleet: Fleet) -> None:
    """Without bindings there is nothing to read."""
    assert await fleet.poll() == PollTotals()


# --- Each delta once


async def test_a_delta_becomes_an_event_and_a_command(fleet: Fleet) -> None:
    """Both say what the shadow wants, nested values as JSON, under the id made of device and version."""
    (member,) = fleet.bind(1)
    wanted = {"network": {"dns": ["1.1.1.1", None], "mtu": 1500}, "on": True, "rate": 0.5, "name": "näß"}
    fleet.report(member, {"on": False, "name": "näß", "network": {"mtu": 1500}})
    fleet.desire(member, wanted)
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


def test_the_correlation_id_is_the_one_other_systems_work_out() -> None:
    """The contract's test vector."""
    device_id = UUID("11111111-2222-3333-4444-555555555555")
    assert delta_correlation_id(device_id, 7) == UUID("19d74e98-b92f-d793-1ae7-1a04721fd0ec")


async def test_an_unchanged_delta_is_not_told_again_however_often_the_device_reports(fleet: Fleet) -> None:
    """The shadow's version rises with every report; the delta, and what was made of it, stay the same."""
    (member,) = fleet.bind(1)
    fleet.desire(member, {"interval": 10, "mode": {"a": 1, "b": 2}})
    await fleet.poll()
    first = fleet.known_delta(member)
    for reading in range(3):
        fleet.report(member, {"temperature": reading})
        assert await fleet.poll() == PollTotals(visited=1)
    assert fleet.known_delta(member) == first
    assert first.shadow_version == 1
    assert len(fleet.published(member)) == 1


async def test_a_changed_delta_is_told_again(fleet: Fleet) -> None:
    """Another desired value, or one of two reached, is another delta, with a command of its own."""
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
    for told in fleet.published(member):
        assert [each["parameters"] for each in await fleet.commands(told["jobId"])] == [told["delta"]]


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_delta_that_was_gone_is_told_anew(fleet: Fleet, *, deleted: bool) -> None:
    """Reported as desired, or deleted with its shadow, it is forgotten; the same one later is a new one."""
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


async def test_a_shadow_whose_versions_begin_again_is_told_of(fleet: Fleet) -> None:
    """A version below the one last seen is as good as one above it."""
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
async def test_a_delta_at_a_version_that_was_told_before_is_told_too(
    fleet: Fleet, state: dict[str, Any]
) -> None:
    """A shadow that was deleted and begins again comes to that version: its delta is news all the same."""
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


def turned(value: Any) -> Any:
    """The same JSON, the members of every object the other way round."""
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(value)}
    return [turned(each) for each in value] if isinstance(value, list) else value


@given(_STATES, _STATES)
def test_a_delta_is_known_by_its_values_whatever_their_order(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """The order of members, and the version, do not count; any other difference does."""
    digest = Delta(version=1, state=one).digest
    assert digest == Delta(version=2, state=turned(one)).digest
    if one != other:
        assert digest != Delta(version=1, state=other).digest


# --- No device in another's way


def document(delta: Any = None, **members: Any) -> bytes:
    return json.dumps({"state": {"delta": delta or {"on": True}}, "version": 3, **members}).encode()


BAD_SHADOWS = {
    "no JSON": b"\x00\xffnot json",
    "nothing": b"",
    "no object": b"[1]",
    "no state": b'{"version": 3}',
    "a state of null": b'{"state": null, "version": 3}',
    "a delta that is a list": document(delta=[1]),
    "a delta that is a text": document(delta="on"),
    "no version": b'{"state": {"delta": {"on": true}}}',
    "a version that is a text": document(version="3"),
    "a version beyond 64 bits": document(version=2**70),
    "a character that is no text": document(delta={"name": "a\0b"}),
    "half a surrogate pair": document(delta={"name": "\ud800"}),
    "a number that is none": b'{"state": {"delta": {"rate": NaN}}, "version": 3}',
    "a number without end": b'{"state": {"delta": {"rate": 1e999}}, "version": 3}',
    "nested beyond reason": b'{"state": {"delta": {"a": ' + b"[" * 3000 + b"]" * 3000 + b'}}, "version": 3}',
}


async def test_a_bad_shadow_is_one_devices_error(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a shadow holds, it is counted and logged under its Thing's name, and every other is read."""
    members = fleet.bind(len(BAD_SHADOWS) + 2)
    first, *bad, last = members
    for member, payload in zip(bad, BAD_SHADOWS.values(), strict=True):
        fleet.bridge.emulator.put_raw_shadow(member.thing_name, payload)
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
async def test_what_aws_refuses_for_one_device_is_that_devices_error(
    fleet: Fleet, code: str, status: int
) -> None:
    """The others of its page are read, and it is read again by the next poll."""
    members = fleet.bind(6)
    fleet.desire(members[2], {"on": True})
    fleet.desire(members[5], {"on": True})
    fleet.bridge.emulator.add_fault(READ, resource=members[2].thing_name, code=code, status=status)
    assert await fleet.poll() == PollTotals(visited=6, changed=1, failed=1, commanded=1)
    fleet.bridge.emulator.clear_faults()
    assert await fleet.poll() == PollTotals(visited=6, changed=1, commanded=1)


async def test_a_poll_waits_for_aws_where_it_answers_nobody(fleet: Fleet) -> None:
    """A few devices in a row without an answer are AWS's matter: the page pauses, and loses none of them."""
    members = fleet.bind(12)
    for member in members:
        fleet.desire(member, {"on": True})
    fleet.bridge.emulator.add_fault(READ, code="ThrottlingException", status=429, times=5)
    assert await fleet.poll() == PollTotals(visited=12, changed=12, commanded=12)
    assert fleet.shadow_reads() == 5 + 12


async def test_a_page_that_cannot_be_read_is_left_to_the_next_poll(fleet: Fleet) -> None:
    """Without the permission, nothing is gained by asking for each device, nor by asking again."""
    members = fleet.bind(PAGE_SIZE + 10)
    for member in members[:PAGE_SIZE]:
        fleet.bridge.emulator.add_fault(
            READ, resource=member.thing_name, code="ForbiddenException", status=403
        )
    fleet.desire(members[PAGE_SIZE], {"on": True})
    assert await fleet.poll() == PollTotals(visited=10, changed=1, commanded=1, failed_pages=1)
    assert fleet.shadow_reads() == 5 + 10


async def test_a_database_that_is_away_is_no_devices_error(fleet: Fleet) -> None:
    """The page is read on from there once it is back."""
    members = fleet.bind(6)
    fleet.desire(members[3], {"on": True})
    due = ["INSERT INTO iotaws_shadow_deltas"]

    def go_away(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if due and statement.startswith(due[0]):
            due.clear()
            raise OperationalError("the connection is lost", None, Exception())

    engine = fleet.bridge.engine
    sqlalchemy_event.listen(engine, "before_cursor_execute", go_away)
    try:
        assert await fleet.poll() == PollTotals(visited=6, changed=1, commanded=1)
    finally:
        sqlalchemy_event.remove(engine, "before_cursor_execute", go_away)
    assert not due
    assert len(fleet.published(members[3])) == 1
    assert fleet.shadow_reads() == 6 + 1


# --- Whoever stops


async def held(fleet: Fleet, member: Member, seconds: float = 1) -> str:
    """Have the reading of a device's shadow take its time, once."""
    return fleet.bridge.emulator.add_fault(READ, resource=member.thing_name, delay_seconds=seconds, times=1)


async def test_a_worker_that_stops_hands_its_page_on(fleet: Fleet, aws: AwsClients) -> None:
    """Another goes on where it was, with what it had counted."""
    members = fleet.bind(PAGE_SIZE)
    fleet.desire(members[4], {"on": True})
    fleet.desire(members[15], {"on": True})
    own = Fleet(fleet.bridge, fleet.database_url, "stopped-page")
    fault = await held(fleet, members[10])
    async with polling_worker(own, aws, PAGE_SIZE):
        handle = await own.start_poll()
        await own.bridge.wait_for_fault(fault)
    async with polling_worker(own, aws, PAGE_SIZE):
        assert await handle.result() == PollTotals(visited=PAGE_SIZE, changed=2, commanded=2)
    # One twice: what was read last is not yet said when the worker lets go.
    assert fleet.shadow_reads() <= PAGE_SIZE + 1


async def test_a_cancelled_poll_lets_its_pages_go(fleet: Fleet) -> None:
    """It reads no further."""
    members = fleet.bind(PAGE_SIZE)
    faults = [await held(fleet, member, 0.5) for member in members]
    handle = await fleet.start_poll()
    await fleet.bridge.wait_for_fault(faults[1])
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()

    async def let_go() -> bool:
        read = fleet.shadow_reads()
        await asyncio.sleep(1.5)
        return fleet.shadow_reads() == read

    await until(let_go, "the page is no longer read")
    assert fleet.shadow_reads() < PAGE_SIZE


# --- Commands


@pytest.mark.parametrize("over", [False, True], ids=["runs", "has run"])
async def test_a_crash_before_it_is_noted_starts_no_second_command(fleet: Fleet, *, over: bool) -> None:
    """The poll after it asks for the same command, which is there already, and notes that."""
    (member,) = fleet.bind(1)
    fleet.desire(member, {"on": True})
    await fleet.poll()
    (told,) = fleet.published(member)
    if over:
        await fleet.bridge.client.get_workflow_handle(told["jobId"]).terminate()
    fleet.execute("UPDATE iotaws_shadow_deltas SET command_started_at = NULL")
    assert await fleet.poll() == PollTotals(visited=1, commanded=1)
    assert fleet.known_delta(member).command_started_at is not None
    runs = [run async for run in fleet.bridge.client.list_workflows(f"WorkflowId = '{told['jobId']}'")]
    assert len(runs) <= 1
    assert len(await fleet.commands(told["jobId"])) == 1


async def test_a_crash_before_the_start_is_healed_by_the_next_poll(fleet: Fleet) -> None:
    """A delta that was told and whose command was not started gets it, though it is no news any more."""
    (member,) = fleet.bind(1)
    fleet.desire(member, {"on": True})
    await fleet.poll()
    # As it stands between the two: of another id, so that no command of that id runs.
    found = UUID(int=member.device_id.int ^ 1)
    fleet.execute(
        "UPDATE iotaws_shadow_deltas SET command_started_at = NULL, correlation_id = :found", found=found
    )
    assert await fleet.poll() == PollTotals(visited=1, commanded=1)
    assert [each["parameters"] for each in await fleet.commands(f"granit-{found}")] == [{"on": True}]


async def test_a_late_note_does_not_hide_a_newer_delta(fleet: Fleet) -> None:
    """That the command of an earlier delta is started says nothing of the one that took its place."""
    (member,) = fleet.bind(1)
    fleet.desire(member, {"on": True})
    await fleet.poll()
    fleet.execute("UPDATE iotaws_shadow_deltas SET command_started_at = NULL")
    earlier = PendingCommand(member.device_id, None, member.thing_name, UUID(int=1), {})
    with Session(fleet.bridge.engine) as session, session.begin():
        mark_command_started(session, [earlier])
    assert fleet.known_delta(member).command_started_at is None


# --- Decommissioned


async def test_a_decommissioned_devices_delta_is_forgotten(fleet: Fleet) -> None:
    """With the end of its binding the bridge remembers nothing of what was desired of the device."""
    (member,) = fleet.bind(1)
    fleet.desire(member, {"on": True})
    await fleet.poll()
    close(fleet, member)
    assert fleet.deltas() == []
    assert await fleet.poll() == PollTotals()


async def test_a_device_that_ends_while_it_is_read_is_not_told_of(fleet: Fleet) -> None:
    """Neither one whose binding ends between the listing and the reading, nor one that is being torn down."""
    closed, doomed, other = members = fleet.bind(3)
    for member in members:
        fleet.desire(member, {"on": True})
    fleet.execute(
        "INSERT INTO iotaws_device_states (device_id, tenant_id, decommissioned_at)"
        " VALUES (:device, :tenant, now())",
        device=doomed.device_id,
        tenant=doomed.device.tenant_id,
    )
    fault = await held(fleet, closed)
    handle = await fleet.start_poll()
    await fleet.bridge.wait_for_fault(fault)
    close(fleet, closed)
    assert await handle.result() == PollTotals(visited=3, changed=1, commanded=1)
    assert [row.device_id for row in fleet.deltas()] == [other.device_id]
    assert fleet.published(doomed) == []


def close(fleet: Fleet, member: Member) -> None:
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
