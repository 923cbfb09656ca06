"""Events out: what a receiver gets, in which order, and that nothing on the way costs it an event."""

import asyncio
import json
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from jsonschema import Draft202012Validator
from sqlalchemy import Engine, text
from sqlmodel import Session, col, select
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import WorkflowExecutionStatus

from activities.events import EventActivities
from db.engine import open_engine
from db.migrate import upgrade
from db.models import OutboxRow
from db.outbox import claim, oldest_unsent, put
from domain.command import CommandTarget
from domain.names import OUTBOX_PUBLISHER, event_queue, outbox_publisher_id
from domain.outbox import OUTBOX_SHARDS, OutboxShard
from domain.outgoing_event import (
    AwsThingDecommissioned,
    AwsThingProvisioned,
    AwsThingProvisioningFailed,
    ClaimCertificateExpiring,
    DeviceCommandCompleted,
    DeviceCommandFailed,
    DeviceDesiredStateChanged,
    OutgoingEvent,
    OutgoingEventType,
)
from embedded.stack import Addresses
from orchestration.requests import start_publishers
from settings import Settings
from tests import ROOT
from tests.harness.bridge import NOON, Bridge, Device, until
from tests.harness.command_line import empty_database, running
from worker import compose_event_worker

SCHEMAS = ROOT / "docs" / "events"
KILLED = "killed-publisher"
NOBODY = str(UUID(int=0))
_STARTED = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED


@dataclass
class Receiver:
    """A sink that keeps what it gets, and fails as it is told to."""

    got: list[dict[str, Any]] = field(default_factory=list)
    refusals: Counter[tuple[UUID, int]] = field(default_factory=Counter)
    """How often an event, by device and number, is refused."""
    accidents: dict[UUID, Callable[[], None]] = field(default_factory=dict)
    """What befalls the publisher of a device's next event when that has arrived and is not marked yet."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    kind: str = "receiver"
    fingerprint: str = "receiver"

    def send(self, event: CloudEvent) -> None:
        sent = json.loads(JSONFormat().write(event))
        device, number = UUID(sent.get("subject", NOBODY)), int(sent.get("sequence", 0))
        with self.lock:
            if self.refusals[device, number]:
                self.refusals[device, number] -= 1
                raise ConnectionError("the receiver is away")
            self.got.append(sent)
            accident = self.accidents.pop(device, None)
        if accident is not None:
            accident()

    def of(self, device: UUID) -> list[dict[str, Any]]:
        return [event for event in self.got if event.get("subject") == str(device)]

    async def has(self, device: UUID, number: int) -> list[int]:
        """Wait for the device's event of that number; then all numbers, as they came."""

        async def arrived() -> bool:
            return number in numbers(self.of(device))

        await until(arrived, f"event {number} of device {device} arrives")
        return numbers(self.of(device))


@dataclass
class Orphan:
    """The outbox of a device whose publisher was killed, and what that had said before."""

    device: UUID
    events: int
    said: list[int]


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [int(event["sequence"]) for event in events]


def without_repeats(arrived: list[int]) -> list[int]:
    """As a receiver has it that drops what it has seen."""
    return list(dict.fromkeys(arrived))


def failed(device: UUID) -> AwsThingProvisioningFailed:
    return AwsThingProvisioningFailed(
        device_id=device,
        tenant_id=None,
        binding_id=uuid4(),
        thing_name=None,
        failed_at="Pending",
        code="AccessDenied",
        reason="…",
    )


def tell(engine: Engine, device: UUID, events: int, *, since: int = 0) -> None:
    """Put events into a device's outbox, numbered from `since`, in one transaction."""
    with Session(engine) as session:
        for number in range(since, since + events):
            put(session, failed(device), number)
        session.commit()


@pytest.fixture(scope="module")
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture(scope="module")
def publishing_engine(settings: Settings) -> Iterator[Engine]:
    opened = open_engine(settings.database_url.get_secret_value(), pool_size=20)
    yield opened
    opened.dispose()


@pytest_asyncio.fixture(scope="module")
async def orphan(engine: Engine, bridge: Bridge) -> Orphan:
    """A publisher killed in the middle of a batch; first of all, for Temporal misses it a while later."""
    device, events = uuid4(), 600
    async with running("worker", IOT_AWS_WORKER__TASK_QUEUE=KILLED) as process:
        assert process.stderr is not None
        # More than its log's reader takes: it stands still between two events when it is killed.
        tell(engine, device, events)
        said: list[dict[str, Any]] = []
        while not any(event.get("subject") == str(device) for event in said):
            line = await process.stderr.readline()
            assert line, "the worker has ended"
            said += events_in(line)
        process.send_signal(signal.SIGKILL)
        rest = await process.stderr.read()
        await process.wait()
    said += [event for line in rest.splitlines() for event in events_in(line)]
    return Orphan(device, events, numbers([event for event in said if event.get("subject") == str(device)]))


def events_in(line: bytes) -> list[dict[str, Any]]:
    """The event in a line of the worker's log, if it is one and the worker lived to end it."""
    try:
        said = json.loads(line)
    except ValueError:
        return []
    return [said["event"]] if said["logger"] == "thingbridge.events" else []


@pytest_asyncio.fixture(scope="module", autouse=True)
async def publishing(
    orphan: Orphan, bridge: Bridge, settings: Settings, publishing_engine: Engine, receiver: Receiver
) -> AsyncIterator[None]:
    """Two publishers for every shard, as during an upgrade, and the successors of the one killed."""
    events = EventActivities(publishing_engine, receiver)
    async with AsyncExitStack() as at_work:
        for queue in ("publisher-1", "publisher-2", KILLED):
            worker = compose_event_worker(on(queue, settings), bridge.client, events)
            await at_work.enter_async_context(worker)
            await start_publishers(bridge.client, queue)
        yield


def on(queue: str, settings: Settings) -> Settings:
    return settings.model_copy(update={"worker": settings.worker.model_copy(update={"task_queue": queue})})


async def rounds(bridge: Bridge, workflow_id: str) -> list[PendingActivityInfo]:
    """The round that a publisher has at work, if it has said that it is."""
    described = await bridge.client.get_workflow_handle(workflow_id).describe()
    return [
        each
        for each in described.raw_description.pending_activities
        # Temporal calls it started before the worker has it in its hands.
        if each.state == _STARTED and each.HasField("heartbeat_details")
    ]


# --- What a receiver gets


async def test_a_devices_life_arrives_in_order(bridge: Bridge, receiver: Receiver) -> None:
    """What the saga tells of a device reaches the sink as CloudEvents, numbered, under the outbox's ids."""
    device = Device("TOLD-1")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    await bridge.send_and_wait(device, device.event("Decommissioned", 1))
    await receiver.has(device.device_id, 2)
    rows = bridge.outbox(device)
    first, second = receiver.of(device.device_id)
    assert [(event["type"], event["id"], event["data"]) for event in (first, second)] == [
        (row.type, str(row.event_id), row.data) for row in rows
    ]
    assert (first["type"], second["type"]) == ("AwsThingProvisionedEvent", "AwsThingDecommissionedEvent")
    assert (first["source"], first["specversion"], first["sequence"]) == ("/thingbridge", "1.0", f"{1:019}")
    assert first["data"]["thingName"] == device.thing_name


DEVICE, BINDING, CORRELATION = UUID(32 * "1"), UUID(32 * "2"), UUID(32 * "3")
OF_THE_BINDING: dict[str, Any] = {
    "device_id": DEVICE,
    "tenant_id": None,
    "binding_id": BINDING,
    "thing_name": "t-1",
}
OF_THE_COMMAND: dict[str, Any] = {
    "tenant_id": None,
    "job_id": "granit-1",
    "correlation_id": CORRELATION,
    "operation": "reboot",
}
EXAMPLES: list[tuple[OutgoingEvent, tuple[object, ...], str]] = [
    (
        AwsThingProvisioned(
            **OF_THE_BINDING,
            thing_arn="arn:aws:iot:eu-west-1:0:thing/t-1",
            certificate_arn="arn:aws:iot:eu-west-1:0:cert/1",
            certificate_secret_arn=None,
            provisioned_via_jitp=True,
        ),
        (BINDING,),
        "4c1a5030-2894-59e2-bf08-d9c042890a76",
    ),
    (
        AwsThingDecommissioned(**OF_THE_BINDING, kept=["arn:aws:iot:eu-west-1:0:cert/1"]),
        (BINDING,),
        "c668046c-9c31-514b-8878-c61f2880429e",
    ),
    (
        AwsThingProvisioningFailed(
            **OF_THE_BINDING | {"thing_name": None}, failed_at="Pending", code="AccessDenied", reason="…"
        ),
        (BINDING, 3),
        "980cf1ea-83da-569e-b9a1-9916dafe4748",
    ),
    (
        DeviceDesiredStateChanged(
            **OF_THE_BINDING,
            shadow_version=7,
            delta={"led": {"on": True, "colour": [1, 2.5, None]}, "name": "ü"},
            correlation_id=CORRELATION,
            job_id="granit-1",
        ),
        (7,),
        "823405fd-a54f-5f06-ac1b-013cc4f13fa9",
    ),
    (
        DeviceCommandCompleted(
            **OF_THE_COMMAND,
            device_id=DEVICE,
            thing_name="t-1",
            target=CommandTarget(kind="device", value=str(DEVICE)),
            outcome="succeeded",
            status_details={"step": "done"},
            counts=None,
        ),
        ("granit-1",),
        "671925c2-312a-5c22-a2f4-5b4b9cae1649",
    ),
    (
        DeviceCommandFailed(
            **OF_THE_COMMAND,
            device_id=None,
            thing_name=None,
            target=CommandTarget(kind="query", value="thingName:t-*"),
            status="TIMED_OUT",
            reason="…",
            status_details={},
            counts={"FAILED": 1, "SUCCEEDED": 2},
        ),
        ("granit-1",),
        "878215b6-3a7a-5f2c-94b6-3cb6b1e4a9de",
    ),
    (
        ClaimCertificateExpiring(
            **OF_THE_BINDING, claim_certificate_expires_at=NOON, day=NOON.date(), days_left=0
        ),
        (BINDING, NOON.date()),
        "dfd9609a-b60e-598b-a40b-923cd7931ee9",
    ),
]


@pytest.mark.parametrize(("event", "distinction", "event_id"), EXAMPLES)
def test_an_events_id_is_the_same_for_ever(
    event: OutgoingEvent, distinction: tuple[object, ...], event_id: str
) -> None:
    """Type, device and what makes the event one give its id: receivers keep it."""
    assert str(event.event_id(*distinction)) == event_id


async def test_every_type_of_event_is_as_its_schema_says(engine: Engine, receiver: Receiver) -> None:
    """What arrives fits the published schema of its type, and holds nothing that the schema does not name."""
    with Session(engine) as session:
        for event, distinction, _ in EXAMPLES:
            put(session, event, *distinction)
        session.commit()

    async def all_types() -> bool:
        return {event["type"] for event in receiver.got} == set(OutgoingEventType)

    await until(all_types, "one event of each type arrives")
    for sent in receiver.got.copy():
        schema = json.loads((SCHEMAS / f"{sent['type']}.schema.json").read_text())
        Draft202012Validator.check_schema(schema)
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(sent)
        data = schema["$defs"][schema["properties"]["data"]["$ref"].rpartition("/")[2]]
        assert sent.keys() <= schema["properties"].keys()
        assert sent["data"].keys() == data["properties"].keys()
        assert not Draft202012Validator(schema).is_valid(sent | {"data": {}})
    (desired,) = (sent for sent in receiver.got if sent["type"] == "DeviceDesiredStateChangedEvent")
    assert desired["data"]["delta"] == {"led": {"on": True, "colour": [1, 2.5, None]}, "name": "ü"}


async def test_a_command_to_a_group_is_an_event_of_no_device(engine: Engine, receiver: Receiver) -> None:
    """It has neither subject nor number, is sent once all the same, and put twice it is one."""
    event = DeviceCommandCompleted(
        **OF_THE_COMMAND | {"job_id": f"granit-{uuid4()}"},
        device_id=None,
        thing_name=None,
        target=CommandTarget(kind="group", value="pumps"),
        outcome="windowClosed",
        status_details={},
        counts={"SUCCEEDED": 2},
    )
    for _ in range(2):
        with Session(engine) as session:
            put(session, event, event.job_id)
            session.commit()
    with Session(engine) as session:
        (row,) = session.exec(select(OutboxRow).where(OutboxRow.event_id == event.event_id(event.job_id)))
    assert (row.device_id, row.sequence) == (None, None)

    async def arrived() -> bool:
        return str(row.event_id) in {event["id"] for event in receiver.got}

    await until(arrived, "the command's event arrives")
    (sent,) = (event for event in receiver.got if event["id"] == str(row.event_id))
    assert not sent.keys() & {"subject", "sequence"}


# --- Nothing is lost, and nothing overtakes


async def test_a_sink_that_is_away_for_a_while_gets_everything_in_order(
    engine: Engine, receiver: Receiver
) -> None:
    """What is refused is sent again, before what comes after it; what had been sent before is not."""
    device = uuid4()
    receiver.refusals[device, 4] = 2
    tell(engine, device, 8)
    assert await receiver.has(device, 8) == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_an_operator_sees_what_cannot_be_sent(
    bridge: Bridge, engine: Engine, receiver: Receiver
) -> None:
    """The publisher's pending activity names the event and says why."""
    device = uuid4()
    receiver.refusals[device, 1] = 1_000_000
    tell(engine, device, 1)
    with Session(engine) as session:
        (row,) = session.exec(select(OutboxRow).where(OutboxRow.device_id == device))
    said = f"event {row.event_id} of shard {row.shard} was not sent: the receiver is away"

    async def shown() -> bool:
        publisher = outbox_publisher_id("publisher-1", row.shard or 0)
        described = await bridge.client.get_workflow_handle(publisher).describe()
        return any(each.last_failure.message == said for each in described.raw_description.pending_activities)

    await until(shown, "the failure shows")
    receiver.refusals[device, 1] = 0
    await receiver.has(device, 1)


def cut_off(engine: Engine, device: UUID) -> Callable[[], None]:
    """End the connection of the publisher that has the device's shard, as the database's restart would."""

    def accident() -> None:
        with engine.begin() as connection:
            connection.execute(
                text("""
                    SELECT pg_terminate_backend(pid) FROM pg_locks
                    WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND objid::int IN
                        (SELECT shard FROM iotaws_outbox WHERE device_id = :device)
                """),
                {"device": device},
            )

    return accident


async def test_a_crash_between_sending_and_marking_repeats_and_reorders_nothing(
    engine: Engine, receiver: Receiver
) -> None:
    """What was sent and could not be marked is sent once more; nothing arrives before what precedes it."""
    device = uuid4()
    receiver.accidents[device] = cut_off(engine, device)
    tell(engine, device, 10)
    await receiver.has(device, 10)

    async def repeated() -> bool:
        return numbers(receiver.of(device)).count(10) == 2

    await until(repeated, "all of the batch arrives again")
    assert without_repeats(numbers(receiver.of(device))) == list(range(1, 11))


async def test_an_event_that_arrived_and_was_refused_all_the_same_comes_again(
    engine: Engine, receiver: Receiver
) -> None:
    """A sink that fails after the event arrived gets a repeat, and keeps the order."""

    def accident() -> None:
        raise TimeoutError("no answer")

    device = uuid4()
    receiver.accidents[device] = accident
    tell(engine, device, 10)
    assert await receiver.has(device, 10) == [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


async def test_writers_and_publishers_at_once_keep_each_devices_order(
    engine: Engine, receiver: Receiver
) -> None:
    """While many write for some devices and several send, each event goes out once, in its order."""
    devices = [uuid4() for _ in range(4)]

    def write(since: int) -> None:
        for number in range(since, since + 10):
            for device in devices:
                # By two writers: it is one event all the same.
                tell(engine, device, 1, since=number)

    await asyncio.gather(*(asyncio.to_thread(write, since) for since in (0, 0, 10, 10, 20)))
    for device in devices:
        assert await receiver.has(device, 30) == list(range(1, 31))
        with Session(engine) as session:
            rows = session.exec(
                select(OutboxRow).where(OutboxRow.device_id == device).order_by(col(OutboxRow.id))
            ).all()
        assert [row.sequence for row in rows] == list(range(1, 31))
        assert len({row.shard for row in rows}) == 1


def test_a_backlog_is_taken_without_a_look_at_what_was_sent(engine: Engine, stack: Addresses) -> None:
    """What a publisher reads is what it sends, however much was sent before and however much waits."""
    nobody_publishes = open_engine(empty_database(engine, stack.database_url))
    upgrade(nobody_publishes)
    with Session(nobody_publishes) as session:
        session.execute(
            text(
                "INSERT INTO iotaws_outbox (event_id, type, data, published_at) "
                "SELECT gen_random_uuid(), 'AwsThingProvisionedEvent', '{}', "
                "CASE WHEN n <= 40000 THEN now() END FROM generate_series(1, 50000) n"
            )
        )
        session.execute(text("ANALYZE iotaws_outbox"))
        read = text(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables "
            "WHERE relname = 'iotaws_outbox'"
        )
        before = session.execute(read).scalar_one()
        for shard in range(OUTBOX_SHARDS):
            assert len(claim(session, shard, 100)) == 100
        assert set(oldest_unsent(session)) == set(range(OUTBOX_SHARDS))
        assert session.execute(read).scalar_one() - before < 1000
    nobody_publishes.dispose()


async def test_every_shard_has_a_publisher(engine: Engine, receiver: Receiver) -> None:
    """Devices are shared out among all shards, and what any of them tells arrives."""
    devices = [UUID(int=uuid4().int // OUTBOX_SHARDS * OUTBOX_SHARDS + n) for n in range(OUTBOX_SHARDS)]
    for device in devices:
        tell(engine, device, 1)
    with Session(engine) as session:
        rows = session.exec(select(OutboxRow).where(col(OutboxRow.device_id).in_(devices))).all()
    assert {row.device_id: row.shard for row in rows} == {device: n for n, device in enumerate(devices)}
    for device in devices:
        await receiver.has(device, 1)


# --- For ever


async def test_a_publisher_goes_on_when_its_worker_is_replaced(
    bridge: Bridge, settings: Settings, publishing_engine: Engine, receiver: Receiver
) -> None:
    """A worker that is told to stop ends its round in good order, and the next one takes up another."""
    queue = "replaced-publisher"
    events = EventActivities(publishing_engine, receiver)
    publisher = outbox_publisher_id(queue, 0)

    async def at_work() -> bool:
        return bool(await rounds(bridge, publisher))

    async with compose_event_worker(on(queue, settings), bridge.client, events):
        await start_publishers(bridge.client, queue)
        await until(at_work, "the first worker publishes")
    history = await bridge.client.get_workflow_handle(publisher).fetch_history()
    assert any(event.HasField("activity_task_completed_event_attributes") for event in history.events)
    async with compose_event_worker(on(queue, settings), bridge.client, events):
        await start_publishers(bridge.client, queue)
        await until(at_work, "the second worker publishes")


async def test_a_publishers_history_stays_short(
    bridge: Bridge, settings: Settings, publishing_engine: Engine, receiver: Receiver
) -> None:
    """It goes on in a new run before its history is long, for the same shard."""
    queue = "patient-publisher"
    events = EventActivities(publishing_engine, receiver, round_seconds=0.02)
    async with compose_event_worker(on(queue, settings), bridge.client, events):
        handle = await bridge.client.start_workflow(
            OUTBOX_PUBLISHER,
            OutboxShard(number=1),
            id=outbox_publisher_id(queue, 1),
            task_queue=event_queue(queue),
        )
        first = bridge.client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id)

        async def continued() -> bool:
            return (await first.describe()).status is WorkflowExecutionStatus.CONTINUED_AS_NEW

        await until(continued, "the publisher goes on in a new run")
    described = await handle.describe()
    assert described.status is WorkflowExecutionStatus.RUNNING
    # The tests' server calls a history of 200 events long.
    assert (await first.describe()).history_length < 220
    await handle.terminate()


# --- Who takes over, last: by now Temporal has mostly missed the one killed


async def test_a_killed_publishers_events_are_sent_by_another(orphan: Orphan, receiver: Receiver) -> None:
    """SIGKILL in the middle of a batch loses nothing: the next publisher begins with what was not marked."""
    assert 0 < len(orphan.said) < orphan.events
    arrived = await receiver.has(orphan.device, orphan.events)
    assert without_repeats(orphan.said + arrived) == list(range(1, orphan.events + 1))


async def test_a_killed_workers_publisher_is_taken_over(
    bridge: Bridge, engine: Engine, orphan: Orphan
) -> None:
    """Another worker of its queue takes up the round that it left, without anybody's doing."""
    with Session(engine) as session:
        (shard,) = session.exec(
            select(OutboxRow.shard).where(OutboxRow.device_id == orphan.device).distinct()
        )

    async def taken_over() -> bool:
        return any(each.attempt > 1 for each in await rounds(bridge, outbox_publisher_id(KILLED, shard or 0)))

    await until(taken_over, "the killed publisher's round is at work again")
