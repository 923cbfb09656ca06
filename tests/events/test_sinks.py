"""Event sinks: delivery through each of them, refused events, disabled sinks, and retention."""

import asyncio
import io
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from uuid import UUID, uuid4

import boto3
import pytest
from cloudevents.core.v1.event import CloudEvent
from pydantic import SecretStr
from sqlalchemy import Engine, text
from sqlmodel import Session, col, select
from standardwebhooks import Webhook
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client

from activities.events import EventActivities
from aws.clients import AwsClients
from composition import open_sink
from db.engine import open_engine
from db.migrate import upgrade
from db.models import OutboxRow
from db.outbox import enqueue, list_refused, resend
from domain.names import outbox_publisher_id
from domain.outgoing_event import DeviceDesiredStateChanged
from embedded.emulator_control import EmulatorControl
from embedded.stack import Addresses
from events.cloud_events import cloud_event
from events.publisher import Publisher
from events.sink import EventRefusedError, EventSink, SinkGoneError, SinkUnavailableError
from events.sinks.eventbridge import EventBridgeSink
from events.sinks.webhook import open_webhook
from observability import telemetry
from observability.logging import silence_request_logging
from orchestration.requests import start_publishers
from settings import Events, Settings
from tests.events.test_publishing import failed_event, with_task_queue, without_duplicates, write_events
from tests.harness.bridge import Bridge, Device, until
from tests.harness.command_line import call_in_thread, empty_database, restored_logging
from tests.harness.endpoint import Answer, Endpoint, running_endpoint
from worker import compose_event_worker

SECRET = "whsec_" + 32 * "A"
OLD_SECRET = "whsec_" + 32 * "B"
REGION = "eu-west-1"


@pytest.fixture(scope="module")
def outbox_url(engine: Engine, stack: Addresses) -> str:
    """A database for this file only, because events of other tests must not be refused here."""
    return empty_database(engine, stack.database_url)


@pytest.fixture(scope="module")
def outbox(outbox_url: str) -> Iterator[Engine]:
    opened = open_engine(outbox_url, pool_size=20)
    upgrade(opened)
    yield opened
    opened.dispose()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with running_endpoint() as opened:
        yield opened


@pytest.fixture
def webhook(endpoint: Endpoint, aws: AwsClients) -> Iterator[EventSink]:
    """The sink that the settings create for the endpoint, during a rotation of its secret."""
    chosen = Events(
        sink="webhook",
        webhook_url=SecretStr(endpoint.url),
        webhook_secret=SecretStr(f"{SECRET} {OLD_SECRET}"),
    )
    with open_sink(chosen, aws) as sink:
        yield sink


class Publishing:
    """Running publishers on a task queue of their own."""

    def __init__(self, client: Client, queue: str) -> None:
        self._client = client
        self._queue = queue

    async def pending(self, shard: int) -> list[PendingActivityInfo]:
        handle = self._client.get_workflow_handle(outbox_publisher_id(self._queue, shard))
        return list((await handle.describe()).raw_description.pending_activities)

    async def wait_for_failure(self, shard: int, text: str) -> PendingActivityInfo:
        """Wait until the publisher of a shard shows a failure that contains a text."""
        found: list[PendingActivityInfo] = []

        async def shown() -> bool:
            found[:] = [each for each in await self.pending(shard) if text in each.last_failure.message]
            return bool(found)

        await until(shown, f"the publisher of shard {shard} shows {text!r}")
        return found[0]


@asynccontextmanager
async def publishing(
    client: Client,
    settings: Settings,
    engine: Engine,
    sink: EventSink,
    *,
    park_after: timedelta = timedelta(days=1),
    retention: timedelta = timedelta(days=30),
) -> AsyncIterator[Publishing]:
    queue = f"sink-{uuid4()}"
    publisher = Publisher(engine, sink, park_after=park_after, retention=retention)
    events = EventActivities(publisher, disabled_recheck_seconds=0.2)
    async with compose_event_worker(with_task_queue(settings, queue), client, events):
        await start_publishers(client, queue)
        yield Publishing(client, queue)


def device_of(shard: int) -> UUID:
    return UUID(int=uuid4().int // 4 * 4 + shard)


def example(device: UUID | None = None) -> CloudEvent:
    """Return an event that is in no outbox."""
    device = device or uuid4()
    event = failed_event(device)
    return cloud_event(
        OutboxRow(
            event_id=event.event_id(1),
            type=event.event_type,
            device_id=device,
            sequence=1,
            data=event.model_dump(mode="json", by_alias=True),
        )
    )


def rows_of(engine: Engine, device: UUID) -> list[OutboxRow]:
    with Session(engine) as session:
        query = select(OutboxRow).where(OutboxRow.device_id == device).order_by(col(OutboxRow.id))
        return list(session.exec(query).all())


def refusing(device: UUID, number: int, status: int = 422) -> Callable[[dict[str, Any]], Answer]:
    """Return a handler that answers one event with a status, and accepts all others."""

    def answer(event: dict[str, Any]) -> Answer:
        matches = event.get("subject") == str(device) and int(event["sequence"]) == number
        return Answer(status) if matches else Answer()

    return answer


async def wait_for_events(endpoint: Endpoint, device: UUID, sequences: list[int]) -> None:
    """Wait until exactly these events of a device have arrived, in this order."""

    async def arrived() -> bool:
        return without_duplicates(endpoint.arrived(device)) == sequences

    await until(arrived, f"events {sequences} of device {device} arrive, in that order")


# --- Webhook


async def test_webhook_is_signed_by_the_standard_webhooks_spec(
    client: Client, settings: Settings, outbox: Engine, endpoint: Endpoint, webhook: EventSink
) -> None:
    """The spec's library verifies it with either secret; the body is the CloudEvent, `webhook-id` its id."""
    device = uuid4()
    async with publishing(client, settings, outbox, webhook):
        write_events(outbox, device, 1)
        await wait_for_events(endpoint, device, [1])
    (row,) = rows_of(outbox, device)
    (request,) = (each for each in endpoint.requests if each.event.get("subject") == str(device))
    for secret in (SECRET, OLD_SECRET):
        sent = Webhook(secret).verify(request.body, request.headers)
        assert (sent["id"], sent["data"]) == (str(row.event_id), row.data)
    assert request.headers["webhook-id"] == str(row.event_id)
    assert request.headers["content-type"] == "application/cloudevents+json"


@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
def test_log_does_not_contain_the_webhook_url(endpoint: Endpoint, webhook: EventSink, level: str) -> None:
    """The URL may contain a token, and HTTP libraries log URLs."""
    with restored_logging():
        log = io.StringIO()
        telemetry.configure(level, "json", log)
        webhook.send(example())
        logging.getLogger("thingbridge.test").info("test line")
    assert len(endpoint.requests) == 1
    assert "test line" in log.getvalue()
    assert "url-token" not in log.getvalue()


def test_log_of_a_host_does_not_contain_the_webhook_url(
    endpoint: Endpoint, webhook: EventSink, caplog: pytest.LogCaptureFixture
) -> None:
    """A host application configures logging itself, so the levels of the HTTP libraries are raised."""
    for library in ("httpx2", "httpcore2"):
        caplog.set_level(logging.NOTSET, library)
    with caplog.at_level(logging.DEBUG):
        silence_request_logging()
        webhook.send(example())
    assert len(endpoint.requests) == 1
    assert "url-token" not in caplog.text


@pytest.mark.parametrize("status", [200, 202, 204])
def test_any_2xx_confirms_the_event(endpoint: Endpoint, webhook: EventSink, status: int) -> None:
    """An event counts as sent with every 2xx status."""
    endpoint.answer = lambda _: Answer(status)
    webhook.send(example())
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, EventRefusedError) for status in (400, 413, 422)),
        *(
            (status, SinkUnavailableError)
            for status in (302, 307, 401, 403, 404, 408, 409, 425, 429, 500, 503, 599)
        ),
        (410, SinkGoneError),
    ],
)
def test_status_decides_whether_event_or_sink_is_refused(
    endpoint: Endpoint, webhook: EventSink, status: int, error: type[Exception]
) -> None:
    """400, 413 and 422 refuse the event, 410 the sink; others are retried, and no redirect is followed."""
    endpoint.answer = lambda _: Answer(status, {"location": endpoint.url}, b"url-token")
    with pytest.raises(error, match=rf"^127\.0\.0\.1 answered {status}\b") as raised:
        webhook.send(example())
    assert len(endpoint.requests) == 1
    assert "url-token" not in str(raised.value)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("120", timedelta(minutes=2)),
        ("0", timedelta(seconds=1)),
        (99 * "9", timedelta(minutes=10)),
        (format_datetime(datetime(2999, 1, 1, tzinfo=UTC), usegmt=True), timedelta(minutes=10)),
        (format_datetime(datetime(2001, 1, 1, tzinfo=UTC), usegmt=True), timedelta(seconds=1)),
        ("soon", None),
        ("-1", None),
        (None, None),
    ],
)
def test_retry_after_gives_the_wait(
    endpoint: Endpoint, webhook: EventSink, header: str | None, wait: timedelta | None
) -> None:
    """`Retry-After` is read as seconds or as a date, and limited to between one second and ten minutes."""
    endpoint.answer = lambda _: Answer(503, {"retry-after": header} if header else {})
    with pytest.raises(SinkUnavailableError) as raised:
        webhook.send(example())
    assert raised.value.wait == wait


async def test_retry_after_delays_the_next_attempt(
    client: Client, settings: Settings, outbox: Engine, endpoint: Endpoint, webhook: EventSink
) -> None:
    """Temporal schedules the next attempt of the publisher after that time."""
    endpoint.answer = lambda _: Answer(429, {"retry-after": "300"})
    device = device_of(2)
    async with publishing(client, settings, outbox, webhook) as publishers:
        write_events(outbox, device, 1)
        shown = await publishers.wait_for_failure(2, "answered 429 Too Many Requests")
    assert shown.current_retry_interval.ToSeconds() == pytest.approx(300, abs=5)


def test_slow_response_times_out_as_a_whole(endpoint: Endpoint) -> None:
    """The timeout covers the whole call, also if the response arrives one byte at a time."""
    stopped = threading.Event()

    def answer_slowly(listening: socket.socket) -> None:
        with listening.accept()[0] as connection, suppress(OSError):
            while not stopped.wait(0.05):
                connection.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer_slowly, args=[listening])
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        with (
            open_webhook(url, [SECRET], call_seconds=0.5) as sink,
            pytest.raises(SinkUnavailableError, match="did not answer within"),
        ):
            sink.send(example())
        stopped.set()
        thread.join()


async def test_410_disables_the_sink_until_an_operator_enables_it(
    client: Client,
    settings: Settings,
    outbox: Engine,
    outbox_url: str,
    endpoint: Endpoint,
    webhook: EventSink,
    aws: AwsClients,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Events wait while the sink is disabled, which the log and the pending activities show."""
    first, second = device_of(0), device_of(1)
    endpoint.answer = lambda _: Answer(410)
    async with publishing(client, settings, outbox, webhook) as publishers:
        write_events(outbox, first, 2)
        shown = await publishers.wait_for_failure(0, "127.0.0.1 answered 410 Gone")
        assert shown.last_failure.application_failure_info.type == "EventSinkDisabled"
        errors = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
        assert any("the event sink webhook is disabled" in each for each in errors)
        endpoint.answer = lambda _: Answer()
        write_events(outbox, second, 2)
        attempts = (await publishers.wait_for_failure(1, "410 Gone")).attempt

        async def checked_again() -> bool:
            return (await publishers.wait_for_failure(1, "410 Gone")).attempt > attempts + 1

        await until(checked_again, "the publisher has checked again")
        assert str(second) not in {request.event.get("subject") for request in endpoint.requests}
        listed = await call_in_thread("events", "list", DATABASE_URL=outbox_url)
        assert "the webhook is disabled since" in listed.stdout
        assert "url-token" not in listed.stdout
        with running_endpoint() as moved:
            changed = Events(
                sink="webhook", webhook_url=SecretStr(moved.url), webhook_secret=SecretStr(SECRET)
            )
            with open_sink(changed, aws) as sink:
                async with publishing(client, settings, outbox, sink):
                    await wait_for_events(moved, first, [1, 2])
                    await wait_for_events(moved, second, [1, 2])
        write_events(outbox, first, 1, since=2)
        enabled = await call_in_thread("events", "enable", DATABASE_URL=outbox_url)
        assert enabled.stdout == "enabled: 1\n"
        await wait_for_events(endpoint, first, [3])


# --- Refused events


async def test_refused_event_delays_only_its_own_device(
    client: Client, settings: Settings, outbox: Engine, endpoint: Endpoint, webhook: EventSink
) -> None:
    """Other devices of the shard continue, later events of the device wait; finally all arrive in order."""
    held, other = device_of(3), device_of(3)
    endpoint.answer = refusing(held, 2)
    async with publishing(client, settings, outbox, webhook):
        write_events(outbox, held, 3)

        async def refused() -> bool:
            return rows_of(outbox, held)[1].first_refused_at is not None

        await until(refused, "the event is refused")
        write_events(outbox, other, 3)
        await wait_for_events(endpoint, other, [1, 2, 3])
        assert endpoint.arrived(held) == [1]
        endpoint.answer = lambda _: Answer()
        await wait_for_events(endpoint, held, [1, 2, 3])
    assert all(row.published_at and not row.parked_at for row in rows_of(outbox, held))


async def test_event_refused_for_too_long_is_parked(
    client: Client,
    settings: Settings,
    outbox: Engine,
    outbox_url: str,
    endpoint: Endpoint,
    webhook: EventSink,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is retried until then; then later events of its device are sent; `events resend` sends it again."""
    device = uuid4()
    endpoint.answer = refusing(device, 2)
    async with publishing(client, settings, outbox, webhook, park_after=timedelta(seconds=1)):
        write_events(outbox, device, 3)
        await wait_for_events(endpoint, device, [1, 3])

        # The batch commits after the later events have been sent.
        async def is_parked() -> bool:
            return rows_of(outbox, device)[1].parked_at is not None

        await until(is_parked, "the event is parked")
        (_, parked, _) = rows_of(outbox, device)
        assert not parked.published_at
        assert [request.status for request in endpoint.requests].count(422) >= 2
        assert any(
            each.levelno == logging.ERROR and "is parked, the sink refuses it" in each.getMessage()
            for each in caplog.records
        )
        listed = await call_in_thread("events", "list", DATABASE_URL=outbox_url)
        (line,) = (each for each in listed.stdout.splitlines() if each.startswith(str(parked.event_id)))
        assert line.split()[1] == "parked"
        assert line.endswith(f"{parked.type}: 127.0.0.1 answered 422 Unprocessable {line.split()[-1]}")
        endpoint.answer = lambda _: Answer()
        sent = await call_in_thread("events", "resend", str(parked.event_id), DATABASE_URL=outbox_url)
        assert sent.stdout == "sent again: 1\n"
        await wait_for_events(endpoint, device, [1, 3, 2])
    again = await call_in_thread("events", "resend", str(parked.event_id), DATABASE_URL=outbox_url)
    assert (again.exit_code, "is refused: see `thingbridge events list`" in again.stderr) == (2, True)


async def test_event_parked_during_a_resend_is_not_lost(
    client: Client, settings: Settings, outbox: Engine, endpoint: Endpoint, webhook: EventSink
) -> None:
    """An event whose last refusal coincides with `events resend` is parked and listed."""
    device, park_after = uuid4(), timedelta(seconds=1)
    resent: list[int] = []

    def refuse(event: dict[str, Any]) -> Answer:
        if event.get("subject") != str(device):
            return Answer()
        (row,) = rows_of(outbox, device)
        if row.first_refused_at and datetime.now(UTC) >= row.first_refused_at + park_after:
            with Session(outbox) as session, session.begin():
                resent.append(resend(session, row.event_id))
        return Answer(422)

    endpoint.answer = refuse
    async with publishing(client, settings, outbox, webhook, park_after=park_after):
        write_events(outbox, device, 1)

        async def parked() -> bool:
            return rows_of(outbox, device)[0].parked_at is not None

        await until(parked, "the event is parked")
    (row,) = rows_of(outbox, device)
    with Session(outbox) as session:
        listed = {each.event_id: each.refused_because for each in list_refused(session, 1000)}
    assert resent == [1]
    assert "answered 422" in (listed[row.event_id] or "")


async def test_only_refused_events_are_parked(
    client: Client, settings: Settings, outbox: Engine, endpoint: Endpoint, webhook: EventSink
) -> None:
    """With no time limit at all a refused event is parked at once; one that failed otherwise is kept."""
    refused, kept = device_of(1), device_of(2)
    endpoint.answer = lambda event: Answer(400 if event.get("subject") == str(refused) else 500)
    async with publishing(client, settings, outbox, webhook, park_after=timedelta(0)) as publishers:
        write_events(outbox, kept, 2)
        write_events(outbox, refused, 2)
        await publishers.wait_for_failure(2, "answered 500")

        async def parked() -> bool:
            return all(row.parked_at for row in rows_of(outbox, refused))

        await until(parked, "the refused events are parked")
        assert not any(row.parked_at or row.first_refused_at for row in rows_of(outbox, kept))
        endpoint.answer = lambda _: Answer()
        await wait_for_events(endpoint, kept, [1, 2])
    assert endpoint.arrived(refused) == []


@pytest.mark.parametrize("arguments", [("resend",), ("resend", str(uuid4()), "--all")])
async def test_resend_requires_one_event_or_all(outbox_url: str, arguments: tuple[str, ...]) -> None:
    """`events resend` with neither an event nor `--all`, or with both, is refused."""
    result = await call_in_thread("events", *arguments, DATABASE_URL=outbox_url)
    assert result.exit_code == 2
    assert "--all" in result.stderr


# --- Retention


async def test_only_events_sent_before_the_retention_time_are_deleted(
    client: Client, settings: Settings, outbox: Engine, endpoint: Endpoint, webhook: EventSink
) -> None:
    """Waiting and parked events are kept at any age, and the sequence of a device continues."""
    old, new, parked = uuid4(), uuid4(), uuid4()
    for device in (old, new, parked):
        write_events(outbox, device, 2)
    ages = "UPDATE iotaws_outbox SET occurred_at = now() - interval '40 days'"
    with outbox.begin() as connection:
        for change, device in (
            (f"{ages}, published_at = now() - interval '31 days'", old),
            (f"{ages}, published_at = now() - interval '29 days'", new),
            (f"{ages}, first_refused_at = now(), parked_at = now() - interval '31 days'", parked),
        ):
            connection.execute(text(f"{change} WHERE device_id = :device"), {"device": device})
    async with publishing(client, settings, outbox, webhook, retention=timedelta(days=30)):

        async def deleted() -> bool:
            return not rows_of(outbox, old)

        await until(deleted, "the old events are deleted")
        write_events(outbox, old, 1, since=2)
        await wait_for_events(endpoint, old, [3])
    assert [len(rows_of(outbox, device)) for device in (new, parked)] == [2, 2]


# --- EventBridge and SNS


class Queue:
    """An SQS queue that shows what arrived."""

    def __init__(self, name: str, **attributes: str) -> None:
        self._sqs = boto3.client("sqs")
        self.url = self._sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        found = self._sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])
        self.arn = found["Attributes"]["QueueArn"]
        senders = {"Service": ["sns.amazonaws.com", "events.amazonaws.com"]}
        allowed = {"Effect": "Allow", "Principal": senders, "Action": "sqs:SendMessage", "Resource": self.arn}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        self._sqs.set_queue_attributes(QueueUrl=self.url, Attributes={"Policy": policy})

    async def receive(self, count: int) -> list[Any]:
        """Wait for a number of messages, and return them."""
        received: list[Any] = []

        async def arrived() -> bool:
            answer = await asyncio.to_thread(
                self._sqs.receive_message,
                QueueUrl=self.url,
                MaxNumberOfMessages=10,
                AttributeNames=["All"],
                MessageAttributeNames=["All"],
            )
            for message in answer.get("Messages", []):
                received.append(message)
                self._sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
            return len(received) >= count

        await until(arrived, f"{count} messages arrive")
        return received


async def test_eventbridge_receives_the_cloud_event_as_detail(
    client: Client, settings: Settings, outbox: Engine, stack: Addresses, aws: AwsClients
) -> None:
    """A rule matches it by source and type; an event that the bus refuses because of its size is parked."""
    name = f"bus-{uuid4()}"
    queue, events = Queue(name), boto3.client("events")
    events.create_event_bus(Name=name)
    pattern = {"source": ["/thingbridge"], "detail-type": ["AwsThingProvisioningFailedEvent"]}
    events.put_rule(Name=name, EventBusName=name, EventPattern=json.dumps(pattern))
    events.put_targets(Rule=name, EventBusName=name, Targets=[{"Id": "1", "Arn": queue.arn}])
    device, large = uuid4(), uuid4()
    emulator = EmulatorControl(stack.aws_endpoint_url)
    emulator.add_fault("events:PutEvents", resource=str(large), code="ValidationException")
    chosen = Events(sink="eventbridge", event_bus_name=name)
    try:
        with open_sink(chosen, aws) as sink:
            async with publishing(client, settings, outbox, sink, park_after=timedelta(0)):
                write_events(outbox, large, 1)
                write_events(outbox, device, 2)
                messages = [json.loads(message["Body"]) for message in await queue.receive(2)]

                async def parked() -> bool:
                    return rows_of(outbox, large)[0].parked_at is not None

                await until(parked, "the refused event is parked")
    finally:
        emulator.clear_faults()
    rows = rows_of(outbox, device)
    messages.sort(key=lambda message: str(message["detail"]["sequence"]))
    assert [message["detail"]["id"] for message in messages] == [str(row.event_id) for row in rows]
    assert [message["detail"]["data"] for message in messages] == [row.data for row in rows]
    assert {message["detail-type"] for message in messages} == {"AwsThingProvisioningFailedEvent"}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("MalformedDetail", EventRefusedError),
        ("InternalFailure", SinkUnavailableError),
        ("AccessDeniedException", SinkUnavailableError),
    ],
)
def test_failed_entry_of_a_successful_call_is_an_error(
    stack: Addresses,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    error: type[Exception],
) -> None:
    """A 200 response of PutEvents with a failed entry is an error, by the code of the entry."""
    failure = {"FailedEntryCount": 1, "Entries": [{"ErrorCode": code, "ErrorMessage": "no"}]}
    endpoint.answer = lambda _: Answer(200, body=json.dumps(failure).encode())
    monkeypatch.setenv("AWS_ENDPOINT_URL_EVENTBRIDGE", f"http://127.0.0.1:{endpoint.port}")
    with pytest.raises(error, match=f"^PutEvents: {code}: no$"):
        EventBridgeSink(AwsClients(1), "bus").send(example())


async def test_sns_receives_the_cloud_event_as_message(
    client: Client, settings: Settings, outbox: Engine, aws: AwsClients
) -> None:
    """Type and tenant are message attributes; a message that is too long is parked, the next one is sent."""
    queue, sns = Queue(f"sns-{uuid4()}"), boto3.client("sns")
    topic = sns.create_topic(Name=f"topic-{uuid4()}")["TopicArn"]
    sns.subscribe(
        TopicArn=topic, Protocol="sqs", Endpoint=queue.arn, Attributes={"RawMessageDelivery": "true"}
    )
    device, tenant = uuid4(), uuid4()
    with Session(outbox) as session:
        for version, delta in enumerate(("x" * 300_000, "on")):
            event = DeviceDesiredStateChanged(
                device_id=device,
                tenant_id=tenant,
                binding_id=uuid4(),
                thing_name="t-1",
                shadow_version=version,
                delta={"led": delta},
                correlation_id=uuid4(),
                job_id="granit-1",
            )
            enqueue(session, event, version)
        session.commit()
    with open_sink(Events(sink="sns", topic_arn=topic), aws) as sink:
        async with publishing(client, settings, outbox, sink, park_after=timedelta(0)):
            (message,) = await queue.receive(1)
    large, small = rows_of(outbox, device)
    assert (json.loads(message["Body"])["id"], json.loads(message["Body"])["data"]) == (
        str(small.event_id),
        small.data,
    )
    attributes = {name: each["StringValue"] for name, each in message["MessageAttributes"].items()}
    assert attributes == {"type": "DeviceDesiredStateChangedEvent", "tenantId": str(tenant)}
    assert large.parked_at
    assert "Publish: InvalidParameter" in (large.refused_because or "")


async def test_fifo_topic_keeps_the_order_of_a_device(
    client: Client, settings: Settings, outbox: Engine, aws: AwsClients
) -> None:
    """The device is the message group, and the event id is the deduplication id."""
    name = f"fifo-{uuid4()}.fifo"
    queue, sns = Queue(name, FifoQueue="true"), boto3.client("sns")
    topic = sns.create_topic(Name=name, Attributes={"FifoTopic": "true"})["TopicArn"]
    sns.subscribe(
        TopicArn=topic, Protocol="sqs", Endpoint=queue.arn, Attributes={"RawMessageDelivery": "true"}
    )
    device = uuid4()
    with open_sink(Events(sink="sns", topic_arn=topic), aws) as sink:
        async with publishing(client, settings, outbox, sink):
            write_events(outbox, device, 3)
            received = [message["Attributes"] for message in await queue.receive(3)]
    rows = rows_of(outbox, device)
    assert {each["MessageGroupId"] for each in received} == {str(device)}
    assert [each["MessageDeduplicationId"] for each in received] == [str(row.event_id) for row in rows]


# --- Unavailable sink


async def test_unavailable_sink_delays_no_saga_and_loses_no_event(
    bridge: Bridge, settings: Settings, engine: Engine, endpoint: Endpoint, webhook: EventSink
) -> None:
    """Sagas end while the endpoint is down, and after another outage all events arrive in order."""
    devices = [Device(f"UNAVAILABLE-{number}") for number in range(3)]
    busy = [device_of(shard) for shard in range(4)]
    publishing_engine = open_engine(settings.database_url.get_secret_value(), pool_size=10)
    endpoint.stop()
    async with publishing(bridge.client, settings, publishing_engine, webhook) as publishers:
        for device in busy:
            write_events(engine, device, 20)
        await publishers.wait_for_failure(0, "no answer from 127.0.0.1")
        await asyncio.gather(*(bridge.send_and_wait(each, each.event("Provisioned")) for each in devices))
        assert endpoint.requests == []
        endpoint.start()

        async def some_arrived() -> bool:
            return any(len(endpoint.arrived(device)) > 5 for device in busy)

        await until(some_arrived, "some events arrive")
        endpoint.stop()
        for device in busy:
            write_events(engine, device, 10, since=20)
        endpoint.start()
        for device in busy:
            await wait_for_events(endpoint, device, list(range(1, 31)))
        for each in devices:
            await wait_for_events(endpoint, each.device_id, [1])
    publishing_engine.dispose()
    assert all(bridge.published(each) == ["AwsThingProvisionedEvent"] for each in devices)
