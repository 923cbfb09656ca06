"""Sending what stands in the outbox: at least once, and for each device in order."""

import time
from datetime import timedelta
from typing import Final

from sqlalchemy import Engine
from sqlmodel import Session
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.cloud_events import cloud_event
from activities.event_sinks import EventSink
from db.models import OutboxRow
from db.outbox import claim, mark_published
from domain.outbox import OutboxShard, Published
from instruments import EVENTS_SEND_FAILURES, EVENTS_SENT, speaking_of

# A batch is one transaction, which holds a connection and the shard: bounded in rows and, as a sink may be
# slow, in time.
_BATCH: Final = 100
_BATCH_SECONDS: Final = 5.0
_IDLE_SECONDS: Final = 1.0


class EventActivities:
    """The outbox's way to a sink."""

    def __init__(self, engine: Engine, sink: EventSink, *, round_seconds: float = 600) -> None:
        """Take what is needed.

        Args:
            engine: the bridge's database.
            sink: where events go.
            round_seconds: how long a publisher stays at work before it reports.
        """
        self._engine = engine
        self._sink = sink
        self._sink_name = type(sink).__name__.removesuffix("Sink").lower()
        self._round_seconds = round_seconds

    @activity.defn(name="publish_outbox", no_thread_cancel_exception=True)
    def publish_outbox(self, shard: OutboxShard) -> Published:
        """Send a shard's events as they come, for some minutes or until the worker stops.

        Raises:
            ApplicationError: an event could not be sent; retryable.
        """
        ends = time.monotonic() + self._round_seconds
        sent = 0
        while True:
            activity.heartbeat(sent)
            batch = self._send_batch(shard, sent)
            sent += batch
            left = ends - time.monotonic()
            if left <= 0 or activity.is_cancelled() or activity.is_worker_shutdown():
                return Published(sent=sent)
            if not batch:
                activity.wait_for_worker_shutdown_sync(min(left, _IDLE_SECONDS))

    def _send_batch(self, shard: OutboxShard, before: int) -> int:
        """Send the oldest events of a shard, and mark those that were sent."""
        sent: list[OutboxRow] = []
        with Session(self._engine) as session:
            rows = claim(session, shard.number, _BATCH)
            ends = time.monotonic() + _BATCH_SECONDS
            try:
                for row in rows:
                    # A process that was stopped for long sends no more: its shard may be another's by now.
                    if time.monotonic() > ends or activity.is_worker_shutdown():
                        break
                    try:
                        with speaking_of(tenant_id=row.tenant_id, device_id=row.device_id):
                            self._sink.send(cloud_event(row))
                    except Exception as error:
                        EVENTS_SEND_FAILURES.add(row.tenant_id, "publish_outbox", sink=self._sink_name)
                        raise ApplicationError(
                            f"event {row.event_id} of shard {shard.number} was not sent: {error}",
                            type="EventNotSent",
                            # A fault after a success is a new one, for which no old one's long delay is due.
                            next_retry_delay=timedelta(seconds=1) if before or sent else None,
                        ) from error
                    EVENTS_SENT.add(row.tenant_id, "publish_outbox", sink=self._sink_name, type=row.type)
                    sent.append(row)
                    activity.heartbeat(before + len(sent))
            finally:
                # What went before a fault has been sent, and is not to be sent again.
                if sent:
                    mark_published(session, sent)
                session.commit()
        return len(sent)
