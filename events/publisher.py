"""Publish the events of the outbox: at least once, and in order for each device.

Exception
├── EventNotSentError     an event could not be sent, and nothing after it was
└── SinkDisabledError     the sink is disabled, so nothing is sent
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from db.models import OutboxRow
from db.outbox import claim, delete_sent, disable_sink, disabled_sink, mark_published, record_refusal
from events.cloud_events import cloud_event
from events.sink import EventRefusedError, EventSink, SinkGoneError, SinkUnavailableError
from observability.context import log_context
from observability.metrics import EVENTS_SEND_FAILURES, EVENTS_SENT

logger = logging.getLogger("thingbridge.outbox")

# A batch is one transaction, which holds a connection and the lock of the shard. So it is limited in rows
# and, because a sink may be slow, in time.
_BATCH_ROWS: Final = 100
_BATCH_SECONDS: Final = 5.0
# Old events are deleted in small portions, so that deleting many of them does not delay new events.
_DELETED_ROWS: Final = 1000
# The label `operation` of the metrics of events.
_OPERATION: Final = "publish_outbox"


class EventNotSentError(Exception):
    """An event could not be sent, for a reason that is unrelated to its content.

    Args:
        row: the event.
        reason: the sink's error.
        sent: how many events of the batch were sent before it.
    """

    def __init__(self, row: OutboxRow, reason: Exception, sent: int) -> None:
        super().__init__(f"event {row.event_id} of shard {row.shard} was not sent: {reason}")
        self.wait = reason.wait if isinstance(reason, SinkUnavailableError) else None
        self.sent = sent


class SinkDisabledError(Exception):
    """The sink is disabled until an operator enables it.

    Args:
        kind: the kind of sink, as the settings name it.
        reason: why it was disabled.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(
            f"the event sink {kind} is disabled and events wait in the outbox: {reason}. Set another sink in "
            "the settings, or enable this one with `thingbridge events enable`"
        )


class Publisher:
    """Sends the events of the outbox's shards to a sink.

    Args:
        engine: the bridge's database.
        sink: the destination of the events.
        park_after: how long an event that the sink refuses is sent again before it is parked.
        retention: how long a sent event is kept. At least a day, because only the row of its event shows that
            a daily warning is a repeat.
    """

    def __init__(
        self, engine: Engine, sink: EventSink, *, park_after: timedelta, retention: timedelta
    ) -> None:
        self._engine = engine
        self._sink = sink
        self._park_after = park_after
        self._retention = retention

    def delete_expired(self, shard: int) -> bool:
        """Delete some of a shard's events that were sent before the retention time.

        Returns:
            True if there may be more to delete.
        """
        before = datetime.now(UTC) - self._retention
        with Session(self._engine) as session, session.begin():
            return delete_sent(session, shard, before, _DELETED_ROWS) == _DELETED_ROWS

    def send_batch(
        self, shard: int, *, heartbeat: Callable[[int], None], should_stop: Callable[[], bool]
    ) -> int:
        """Send the oldest unsent events of a shard, and mark them as published.

        An event that the sink refuses is kept to be sent again, and later events of its device wait for it.

        Args:
            shard: number of the shard.
            heartbeat: called after each event with the number of events sent in this batch.
            should_stop: called before each event; True ends the batch early.

        Returns:
            The number of events sent; 0 if there is nothing to send, or another publisher has the shard.

        Raises:
            EventNotSentError: an event could not be sent; those before it are marked as published.
            SinkDisabledError: nothing may be sent to this sink.
        """
        sent: list[OutboxRow] = []
        waiting: set[UUID] = set()
        with Session(self._engine) as session:
            if disabled := disabled_sink(session, self._sink.fingerprint):
                raise SinkDisabledError(self._sink.kind, disabled.reason)
            rows = claim(session, shard, _BATCH_ROWS)
            deadline = time.monotonic() + _BATCH_SECONDS
            try:
                for row in rows:
                    # A process that was suspended for long must stop: another one may have its shard by now.
                    if time.monotonic() > deadline or should_stop():
                        break
                    if row.order_key in waiting:
                        continue
                    if self._send(session, row, len(sent)):
                        sent.append(row)
                    elif row.parked_at is None:
                        waiting.add(row.order_key)
                    heartbeat(len(sent))
            finally:
                # After an error too: the events before it have arrived, and must not be sent again.
                if sent:
                    mark_published(session, sent)
                session.commit()
        return len(sent)

    def _send(self, session: Session, row: OutboxRow, sent: int) -> bool:
        """Send one event; return False if the sink refuses it."""
        try:
            with log_context(tenant_id=row.tenant_id, device_id=row.device_id):
                self._sink.send(cloud_event(row))
        except Exception as error:
            EVENTS_SEND_FAILURES.add(row.tenant_id, _OPERATION, sink=self._sink.kind)
            if isinstance(error, EventRefusedError):
                self._record_refusal(row, str(error))
                return False
            if isinstance(error, SinkGoneError):
                raise self._disable(session, str(error)) from None
            raise EventNotSentError(row, error, sent) from error
        EVENTS_SENT.add(row.tenant_id, _OPERATION, sink=self._sink.kind, type=row.type)
        return True

    def _record_refusal(self, row: OutboxRow, reason: str) -> None:
        is_first = row.first_refused_at is None
        record_refusal(row, reason, self._park_after)
        event = {"event_id": str(row.event_id), "device_id": str(row.device_id) if row.device_id else None}
        if row.parked_at is not None:
            logger.error(
                "%s is parked, the sink refuses it: %s; see `thingbridge events list`",
                row.type,
                reason,
                extra=event,
            )
        elif is_first:
            logger.warning(
                "%s is refused by the sink, later events of its device wait: %s",
                row.type,
                reason,
                extra=event,
            )

    def _disable(self, session: Session, reason: str) -> SinkDisabledError:
        error = SinkDisabledError(self._sink.kind, reason)
        # Several shards may find this at the same time, and it is logged once.
        if disable_sink(session, self._sink.fingerprint, self._sink.kind, reason):
            logger.error("%s", error)
        return error
