"""Publishing of the outbox: content and order of the events, and that no failure loses one."""

import asyncio
import json
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
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
from composition import compose_events
from db.engine import open_engine
from db.migrate import upgrade
from db.models import OutboxRow
from db.outbox import claim, enqueue, oldest_unsent
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
from events.publisher import Publisher
from orchestration.requests import start_publishers
from settings import Settings
from tests import ROOT
from tests.harness.bridge import NOON, Bridge, Device, until
from tests.harness.command_line import empty_database, running
from worker import compose_event_worker

SCHEMAS = ROOT / "docs" / "events"
KILLED = "killed-publisher"
NO_DEVICE = str(UUID(int=0))
_STARTED = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED


@dataclass
class Receiver:
    """A sink that stores the events it receives, and fails as a test configures it."""

    events: list[dict[str, Any]] = field(default_factory=list)
    failures: Counter[tuple[UUID, int]] = field(default_factory=Counter)
    """How many attempts to send an event, by device and sequence, fail."""
    after_arrival: dict[UUID, Callable[[], None]] = field(default_factory=dict)
    """Called once for a device, after an event has arrived and before it is marked as published."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    kind: str = "receiver"
    fingerprint: str = "receiver"

    def send(self, event: CloudEvent) -> None:
        sent = json.loads(JSONFormat().write(event))
        device, number = UUID(sent.get("subject", NO_DEVICE)), int(sent.get("sequence", 0))
        with self.lock:
            if self.failures[device, number]:
                self.failures[device, number] -= 1
                raise ConnectionError("the receiver is unavailable")
            self.events.append(sent)
            action = self.after_arrival.pop(device, None)
        if action is not None:
            action()

    def of(self, device: UUID) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("subject") == str(device)]

    async def wait_for(self, device: UUID, number: int) -> list[int]:
        """Wait for an event of a device; return the sequences of all its events in order of arrival."""

        async def arrived() -> bool:
            return number in sequences(self.of(device))

        await until(arrived, f"event {number} of device {device} arrives")
        return sequences(self.of(device))


@dataclass
class KilledPublisher:
    """A device whose publisher was killed, and what that publisher had sent before."""

    device: UUID
    events: int
    sent: list[int]


def sequences(events: list[dict[str, Any]]) -> list[int]:
    return [int(event["sequence"]) for event in events]


def without_duplicates(arrived: list[int]) -> list[int]:
    """Return the sequences without repetitions, as a receiver that drops duplicates has them."""
    return list(dict.fromkeys(arrived))


def failed_event(device: UUID) -> AwsThingProvisioningFailed:
    return AwsThingProvisioningFailed(
        device_id=device,
        tenant_id=None,
        binding_id=uuid4(),
        thing_name=None,
        failed_at="Pending",
        code="AccessDenied",
        reason="…",
    )


def write_events(engine: Engine, device: UUID, events: int, *, since: int = 0) -> None:
    """Write events of a device to the outbox in one transaction, numbered from `since`."""
    with Session(engine) as session:
        for number in range(since, since + events):
            enqueue(session, failed_event(device), number)
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
async def killed(engine: Engine, bridge: Bridge) -> KilledPublisher:
    """A publisher killed during a batch, before all tests: its heartbeat timeout must pass meanwhile."""
    device, events = uuid4(), 600
    async with running("worker", IOT_AWS_WORKER__TASK_QUEUE=KILLED) as process:
        assert process.stderr is not None
        # More than fit in the pipe of its log, so that it blocks between two events when it is killed.
        write_events(engine, device, events)
        sent: list[dict[str, Any]] = []
        while not any(event.get("subject") == str(device) for event in sent):
            line = await process.stderr.readline()
            assert line, "the worker has ended"
            sent += events_in(line)
        process.send_signal(signal.SIGKILL)
        rest = await process.stderr.read()
        await process.wait()
    sent += [event for line in rest.splitlines() for event in events_in(line)]
    of_device = [event for event in sent if event.get("subject") == str(device)]
    return KilledPublisher(device, events, sequences(of_device))


def events_in(line: bytes) -> list[dict[str, Any]]:
    """Return the event in a line of the worker's log, or None if the line has no complete event."""
    try:
        record = json.loads(line)
    except ValueError:
        return []
    return [record["event"]] if record["logger"] == "thingbridge.events" else []


@pytest_asyncio.fixture(scope="module", autouse=True)
async def publishing(
    killed: KilledPublisher,
    bridge: Bridge,
    settings: Settings,
    publishing_engine: Engine,
    receiver: Receiver,
) -> AsyncIterator[None]:
    """Two publishers for every shard, as during an upgrade, and a worker for the killed publisher's queue."""
    events = compose_events(settings.events, publishing_engine, receiver)
    async with AsyncExitStack() as workers:
        for queue in ("publisher-1", "publisher-2", KILLED):
            worker = compose_event_worker(with_task_queue(settings, queue), bridge.client, events)
            await workers.enter_async_context(worker)
            await start_publishers(bridge.client, queue)
        yield


def with_task_queue(settings: Settings, queue: str) -> Settings:
    return settings.model_copy(update={"worker": settings.worker.model_copy(update={"task_queue": queue})})


async def running_activities(bridge: Bridge, workflow_id: str) -> list[PendingActivityInfo]:
    """Return the activity that a publisher workflow runs, if it has sent a heartbeat."""
    described = await bridge.client.get_workflow_handle(workflow_id).describe()
    return [
        each
        for each in described.raw_description.pending_activities
        # Temporal reports an activity as started before a worker has received it.
        if each.state == _STARTED and each.HasField("heartbeat_details")
    ]


# --- Content of the events


async def test_events_of_a_device_arrive_as_cloud_events_in_order(bridge: Bridge, receiver: Receiver) -> None:
    """Events of the saga reach the sink as CloudEvents, with sequences and with the ids of the outbox."""
    device = Device("PUBLISHED-1")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    await bridge.send_and_wait(device, device.event("Decommissioned", 1))
    await receiver.wait_for(device.device_id, 2)
    rows = bridge.outbox(device)
    first, second = receiver.of(device.device_id)
    assert [(event["type"], event["id"], event["data"]) for event in (first, second)] == [
        (row.type, str(row.event_id), row.data) for row in rows
    ]
    assert (first["type"], second["type"]) == ("AwsThingProvisionedEvent", "AwsThingDecommissionedEvent")
    assert (first["source"], first["specversion"], first["sequence"]) == ("/thingbridge", "1.0", f"{1:019}")
    assert first["data"]["thingName"] == device.thing_name


DEVICE, BINDING, CORRELATION = UUID(32 * "1"), UUID(32 * "2"), UUID(32 * "3")
BINDING_FIELDS: dict[str, Any] = {
    "device_id": DEVICE,
    "tenant_id": None,
    "binding_id": BINDING,
    "thing_name": "t-1",
}
COMMAND_FIELDS: dict[str, Any] = {
    "tenant_id": None,
    "job_id": "granit-1",
    "correlation_id": CORRELATION,
    "operation": "reboot",
}
EXAMPLES: list[tuple[OutgoingEvent, tuple[object, ...], str]] = [
    (
        AwsThingProvisioned(
            **BINDING_FIELDS,
            thing_arn="arn:aws:iot:eu-west-1:0:thing/t-1",
            certificate_arn="arn:aws:iot:eu-west-1:0:cert/1",
            certificate_secret_arn=None,
            provisioned_via_jitp=True,
        ),
        (BINDING,),
        "4c1a5030-2894-59e2-bf08-d9c042890a76",
    ),
    (
        AwsThingDecommissioned(**BINDING_FIELDS, kept=["arn:aws:iot:eu-west-1:0:cert/1"]),
        (BINDING,),
        "c668046c-9c31-514b-8878-c61f2880429e",
    ),
    (
        AwsThingProvisioningFailed(
            **BINDING_FIELDS | {"thing_name": None}, failed_at="Pending", code="AccessDenied", reason="…"
        ),
        (BINDING, 3),
        "980cf1ea-83da-569e-b9a1-9916dafe4748",
    ),
    (
        DeviceDesiredStateChanged(
            **BINDING_FIELDS,
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
            **COMMAND_FIELDS,
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
            **COMMAND_FIELDS,
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
            **BINDING_FIELDS, claim_certificate_expires_at=NOON, day=NOON.date(), days_left=0
        ),
        (BINDING, NOON.date()),
        "dfd9609a-b60e-598b-a40b-923cd7931ee9",
    ),
]


@pytest.mark.parametrize(("event", "distinction", "event_id"), EXAMPLES)
def test_event_ids_never_change(event: OutgoingEvent, distinction: tuple[object, ...], event_id: str) -> None:
    """The id is derived from type, device and occurrence, because receivers recognise duplicates by it."""
    assert str(event.event_id(*distinction)) == event_id


async def test_every_event_type_conforms_to_its_schema(engine: Engine, receiver: Receiver) -> None:
    """An event is valid by the published schema of its type, and has no field that the schema lacks."""
    with Session(engine) as session:
        for event, distinction, _ in EXAMPLES:
            enqueue(session, event, *distinction)
        session.commit()

    async def all_types() -> bool:
        return {event["type"] for event in receiver.events} == set(OutgoingEventType)

    await until(all_types, "one event of each type arrives")
    for sent in receiver.events.copy():
        schema = json.loads((SCHEMAS / f"{sent['type']}.schema.json").read_text())
        Draft202012Validator.check_schema(schema)
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(sent)
        data = schema["$defs"][schema["properties"]["data"]["$ref"].rpartition("/")[2]]
        assert sent.keys() <= schema["properties"].keys()
        assert sent["data"].keys() == data["properties"].keys()
        assert not Draft202012Validator(schema).is_valid(sent | {"data": {}})
    (desired,) = (sent for sent in receiver.events if sent["type"] == "DeviceDesiredStateChangedEvent")
    assert desired["data"]["delta"] == {"led": {"on": True, "colour": [1, 2.5, None]}, "name": "ü"}


async def test_command_event_of_a_group_has_no_subject_and_no_sequence(
    engine: Engine, receiver: Receiver
) -> None:
    """It belongs to no device, and is sent once even if it is written twice."""
    event = DeviceCommandCompleted(
        **COMMAND_FIELDS | {"job_id": f"granit-{uuid4()}"},
        device_id=None,
        thing_name=None,
        target=CommandTarget(kind="group", value="pumps"),
        outcome="windowClosed",
        status_details={},
        counts={"SUCCEEDED": 2},
    )
    for _ in range(2):
        with Session(engine) as session:
            enqueue(session, event, event.job_id)
            session.commit()
    with Session(engine) as session:
        (row,) = session.exec(select(OutboxRow).where(OutboxRow.event_id == event.event_id(event.job_id)))
    assert (row.device_id, row.sequence) == (None, None)

    async def arrived() -> bool:
        return str(row.event_id) in {event["id"] for event in receiver.events}

    await until(arrived, "the command's event arrives")
    (sent,) = (event for event in receiver.events if event["id"] == str(row.event_id))
    assert not sent.keys() & {"subject", "sequence"}


# --- No loss, and order for each device


async def test_unavailable_sink_receives_everything_in_order_later(
    engine: Engine, receiver: Receiver
) -> None:
    """An event that failed is sent again before later ones, and earlier ones are not repeated."""
    device = uuid4()
    receiver.failures[device, 4] = 2
    write_events(engine, device, 8)
    assert await receiver.wait_for(device, 8) == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_pending_activity_shows_the_event_that_cannot_be_sent(
    bridge: Bridge, engine: Engine, receiver: Receiver
) -> None:
    """Its last failure names the event and the reason, so that an operator sees both in Temporal."""
    device = uuid4()
    receiver.failures[device, 1] = 1_000_000
    write_events(engine, device, 1)
    with Session(engine) as session:
        (row,) = session.exec(select(OutboxRow).where(OutboxRow.device_id == device))
    message = f"event {row.event_id} of shard {row.shard} was not sent: the receiver is unavailable"

    async def shown() -> bool:
        publisher = outbox_publisher_id("publisher-1", row.shard or 0)
        described = await bridge.client.get_workflow_handle(publisher).describe()
        return any(
            each.last_failure.message == message for each in described.raw_description.pending_activities
        )

    await until(shown, "the failure shows")
    receiver.failures[device, 1] = 0
    await receiver.wait_for(device, 1)


def end_connection(engine: Engine, device: UUID) -> Callable[[], None]:
    """Return a function that ends the connection of the publisher of a device, as a database restart does."""

    def terminate() -> None:
        with engine.begin() as connection:
            connection.execute(
                text("""
                    SELECT pg_terminate_backend(pid) FROM pg_locks
                    WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND objid::int IN
                        (SELECT shard FROM iotaws_outbox WHERE device_id = :device)
                """),
                {"device": device},
            )

    return terminate


async def test_crash_before_marking_repeats_events_in_order(engine: Engine, receiver: Receiver) -> None:
    """Events that were sent and not marked as published are sent once more, none before its predecessor."""
    device = uuid4()
    receiver.after_arrival[device] = end_connection(engine, device)
    write_events(engine, device, 10)
    await receiver.wait_for(device, 10)

    async def repeated() -> bool:
        return sequences(receiver.of(device)).count(10) == 2

    await until(repeated, "the whole batch arrives again")
    assert without_duplicates(sequences(receiver.of(device))) == list(range(1, 11))


async def test_event_that_arrived_without_confirmation_is_repeated(
    engine: Engine, receiver: Receiver
) -> None:
    """A sink that fails after an event arrived receives it again, in order."""

    def time_out() -> None:
        raise TimeoutError("no answer")

    device = uuid4()
    receiver.after_arrival[device] = time_out
    write_events(engine, device, 10)
    assert await receiver.wait_for(device, 10) == [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


async def test_concurrent_writers_and_publishers_keep_the_order_of_a_device(
    engine: Engine, receiver: Receiver
) -> None:
    """With several writers and publishers at the same time, each event is sent once and in order."""
    devices = [uuid4() for _ in range(4)]

    def write(since: int) -> None:
        for number in range(since, since + 10):
            for device in devices:
                # Two writers write each of these events, which must stay one event.
                write_events(engine, device, 1, since=number)

    await asyncio.gather(*(asyncio.to_thread(write, since) for since in (0, 0, 10, 10, 20)))
    for device in devices:
        assert await receiver.wait_for(device, 30) == list(range(1, 31))
        with Session(engine) as session:
            rows = session.exec(
                select(OutboxRow).where(OutboxRow.device_id == device).order_by(col(OutboxRow.id))
            ).all()
        assert [row.sequence for row in rows] == list(range(1, 31))
        assert len({row.shard for row in rows}) == 1


def test_claiming_a_backlog_reads_no_sent_events(engine: Engine, stack: Addresses) -> None:
    """The rows read are those to send, however many were sent before and however many wait."""
    unpublished = open_engine(empty_database(engine, stack.database_url))
    upgrade(unpublished)
    with Session(unpublished) as session:
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
    unpublished.dispose()


async def test_events_of_every_shard_are_published(engine: Engine, receiver: Receiver) -> None:
    """Devices are distributed over all shards, and the events of each shard arrive."""
    devices = [UUID(int=uuid4().int // OUTBOX_SHARDS * OUTBOX_SHARDS + n) for n in range(OUTBOX_SHARDS)]
    for device in devices:
        write_events(engine, device, 1)
    with Session(engine) as session:
        rows = session.exec(select(OutboxRow).where(col(OutboxRow.device_id).in_(devices))).all()
    assert {row.device_id: row.shard for row in rows} == {device: n for n, device in enumerate(devices)}
    for device in devices:
        await receiver.wait_for(device, 1)


# --- Workers and runs change


async def test_publisher_continues_when_its_worker_is_replaced(
    bridge: Bridge, settings: Settings, publishing_engine: Engine, receiver: Receiver
) -> None:
    """A worker that stops completes its activity, and the next worker runs another one."""
    queue = "replaced-publisher"
    events = compose_events(settings.events, publishing_engine, receiver)
    publisher = outbox_publisher_id(queue, 0)

    async def is_running() -> bool:
        return bool(await running_activities(bridge, publisher))

    async with compose_event_worker(with_task_queue(settings, queue), bridge.client, events):
        await start_publishers(bridge.client, queue)
        await until(is_running, "the first worker publishes")
    history = await bridge.client.get_workflow_handle(publisher).fetch_history()
    assert any(event.HasField("activity_task_completed_event_attributes") for event in history.events)
    async with compose_event_worker(with_task_queue(settings, queue), bridge.client, events):
        await start_publishers(bridge.client, queue)
        await until(is_running, "the second worker publishes")


async def test_publisher_continues_as_new_before_its_history_is_long(
    bridge: Bridge, settings: Settings, publishing_engine: Engine, receiver: Receiver
) -> None:
    """The new run has the same shard."""
    queue = "short-rounds"
    publisher = Publisher(
        publishing_engine, receiver, park_after=timedelta(days=1), retention=timedelta(days=30)
    )
    events = EventActivities(publisher, round_seconds=0.02)
    async with compose_event_worker(with_task_queue(settings, queue), bridge.client, events):
        handle = await bridge.client.start_workflow(
            OUTBOX_PUBLISHER,
            OutboxShard(number=1),
            id=outbox_publisher_id(queue, 1),
            task_queue=event_queue(queue),
        )
        first = bridge.client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id)

        async def continued() -> bool:
            return (await first.describe()).status is WorkflowExecutionStatus.CONTINUED_AS_NEW

        await until(continued, "the publisher continues as new")
    described = await handle.describe()
    assert described.status is WorkflowExecutionStatus.RUNNING
    # The tests' server suggests to continue as new after 200 events.
    assert (await first.describe()).history_length < 220
    await handle.terminate()


# --- The killed publisher. These tests are last, because its heartbeat timeout must have passed


async def test_events_of_a_killed_publisher_are_sent_by_another(
    killed: KilledPublisher, receiver: Receiver
) -> None:
    """SIGKILL during a batch loses no event: the next publisher begins with the unmarked ones."""
    assert 0 < len(killed.sent) < killed.events
    arrived = await receiver.wait_for(killed.device, killed.events)
    assert without_duplicates(killed.sent + arrived) == list(range(1, killed.events + 1))


async def test_activity_of_a_killed_worker_is_retried_by_another(
    bridge: Bridge, engine: Engine, killed: KilledPublisher
) -> None:
    """Another worker of the queue runs it again after the heartbeat timeout."""
    with Session(engine) as session:
        (shard,) = session.exec(
            select(OutboxRow.shard).where(OutboxRow.device_id == killed.device).distinct()
        )

    async def is_retried() -> bool:
        return any(
            each.attempt > 1
            for each in await running_activities(bridge, outbox_publisher_id(KILLED, shard or 0))
        )

    await until(is_retried, "the killed publisher's activity runs again")
