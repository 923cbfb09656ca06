"""Sending what stands in the outbox: at least once, and for each device in order."""

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from db.models import OutboxRow
from db.outbox import claim, delete_sent, disable_sink, disabled_sink, mark_published, record_refusal
from domain.outbox import OutboxShard, Published
from events.cloud_events import cloud_event
from events.sink import EventRejectedError, EventSink, SinkGoneError, SinkUnavailableError
from observability.context import log_context
from observability.metrics import EVENTS_SEND_FAILURES, EVENTS_SENT

logger = logging.getLogger("thingbridge.outbox")

# A batch is one transaction, which holds a connection and the shard: bounded in rows and, as a sink may be
# slow, in time.
_BATCH: Final = 100
_BATCH_SECONDS: Final = 5.0
_IDLE_SECONDS: Final = 1.0
# One between two batches, so that a table full of old events is emptied without holding up new ones.
_DELETED_AT_ONCE: Final = 1000


class EventActivities:
    """The outbox's way to a sink."""

    def __init__(
        self,
        engine: Engine,
        sink: EventSink,
        *,
        park_after: timedelta = timedelta(days=1),
        retention: timedelta = timedelta(days=30),
        round_seconds: float = 600,
        disabled_recheck_seconds: float = 30,
    ) -> None:
        """Take what is needed.

        Args:
            engine: the bridge's database.
            sink: where events go.
            park_after: for how long an event that the sink refuses is sent again.
            retention: for how long an event that was sent is kept; a day at least, for what is told daily.
            round_seconds: how long a publisher stays at work before it reports.
            disabled_recheck_seconds: how often it looks whether a sink that is gone may be sent to again.
        """
        self._engine = engine
        self._sink = sink
        self._park_after = park_after
        self._retention = retention
        self._round_seconds = round_seconds
        self._disabled_recheck = timedelta(seconds=disabled_recheck_seconds)

    @activity.defn(name="publish_outbox", no_thread_cancel_exception=True)
    def publish_outbox(self, shard: OutboxShard) -> Published:
        """Send a shard's events as they come, for some minutes or until the worker stops.

        Beside that, what was sent long ago is deleted.

        Raises:
            ApplicationError: an event could not be sent, or nothing may be; retryable.
        """
        ends = time.monotonic() + self._round_seconds
        before = datetime.now(UTC) - self._retention
        sent, expired = 0, True
        while True:
            activity.heartbeat(sent)
            if expired:
                expired = self._delete_sent(shard, before)
            batch = self._send_batch(shard, sent)
            sent += batch
            left = ends - time.monotonic()
            if left <= 0 or activity.is_cancelled() or activity.is_worker_shutdown():
                return Published(sent=sent)
            if not (batch or expired):
                activity.wait_for_worker_shutdown_sync(min(left, _IDLE_SECONDS))

    def _delete_sent(self, shard: OutboxShard, before: datetime) -> bool:
        """Delete some events that were sent long ago, and say whether there may be more."""
        with Session(self._engine) as session, session.begin():
            return delete_sent(session, shard.number, before, _DELETED_AT_ONCE) == _DELETED_AT_ONCE

    def _send_batch(self, shard: OutboxShard, before: int) -> int:
        """Send the oldest events of a shard, and mark those that were sent."""
        sent: list[OutboxRow] = []
        waiting: set[UUID] = set()
        with Session(self._engine) as session:
            if disabled := disabled_sink(session, self._sink.fingerprint):
                raise self._nothing_is_sent(disabled.reason)
            rows = claim(session, shard.number, _BATCH)
            ends = time.monotonic() + _BATCH_SECONDS
            try:
                for row in rows:
                    # A process that was stopped for long sends no more: its shard may be another's by now.
                    if time.monotonic() > ends or activity.is_worker_shutdown():
                        break
                    if row.order_key in waiting:
                        continue
                    try:
                        with log_context(tenant_id=row.tenant_id, device_id=row.device_id):
                            self._sink.send(cloud_event(row))
                    except Exception as error:
                        EVENTS_SEND_FAILURES.add(row.tenant_id, "publish_outbox", sink=self._sink.kind)
                        if isinstance(error, EventRejectedError):
                            self._note_refusal(row, str(error))
                            if row.parked_at is None:
                                waiting.add(row.order_key)
                        elif isinstance(error, SinkGoneError):
                            raise self._disable(session, str(error)) from None
                        else:
                            raise _not_sent(row, error, progress=bool(before or sent)) from error
                    else:
                        EVENTS_SENT.add(row.tenant_id, "publish_outbox", sink=self._sink.kind, type=row.type)
                        sent.append(row)
                    activity.heartbeat(before + len(sent))
            finally:
                # What went before a fault has been sent, and is not to be sent again.
                if sent:
                    mark_published(session, sent)
                session.commit()
        return len(sent)

    def _note_refusal(self, row: OutboxRow, why: str) -> None:
        is_first = row.first_refused_at is None
        record_refusal(row, why, self._park_after)
        event = {"event_id": str(row.event_id), "device_id": str(row.device_id) if row.device_id else None}
        if row.parked_at is not None:
            logger.error(
                "%s is parked, the sink refuses it: %s; see `thingbridge events`", row.type, why, extra=event
            )
        elif is_first:
            logger.warning(
                "%s is refused by the sink, and its device's later events wait: %s",
                row.type,
                why,
                extra=event,
            )

    def _disable(self, session: Session, why: str) -> ApplicationError:
        error = self._nothing_is_sent(why)
        if disable_sink(session, self._sink.fingerprint, self._sink.kind, why):
            logger.error("%s", error.message)
        return error

    def _nothing_is_sent(self, why: str) -> ApplicationError:
        return ApplicationError(
            f"nothing is sent to the {self._sink.kind} any more, and events wait: {why}. Name another in the "
            "settings, or have it sent to again with `thingbridge events enable`",
            type="EventSinkDisabled",
            next_retry_delay=self._disabled_recheck,
            # It is told once as an error; what follows is a look each time, shown in the UI.
            category=ApplicationErrorCategory.BENIGN,
        )


def _not_sent(row: OutboxRow, error: Exception, *, progress: bool) -> ApplicationError:
    """What a publisher ends its attempt with, to begin again with the same event.

    Args:
        row: the event.
        error: why.
        progress: whether any was sent before in this attempt. A fault after a success is a new one, for which
            no old one's long delay is due.
    """
    delay = error.wait if isinstance(error, SinkUnavailableError) else None
    return ApplicationError(
        f"event {row.event_id} of shard {row.shard} was not sent: {error}",
        type="EventNotSent",
        next_retry_delay=delay or (timedelta(seconds=1) if progress else None),
    )
