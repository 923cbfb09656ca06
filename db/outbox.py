"""The outbox: events are written in the transaction of the change that they report, and sent by shard."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import and_, delete, func, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm.attributes import flag_modified
from sqlmodel import Session, col, select

from db.models import DeviceStateRow, EventSinkRow, OutboxRow, outbox_order
from domain.outbox import OUTBOX_SHARDS
from domain.outgoing_event import OutgoingEvent

# The first key of the advisory lock of a shard: any number, but the same in every version.
_SHARD_LOCKS: Final = 0x6F757462

_LONGEST_BACKOFF: Final = timedelta(minutes=10)
_SHORTEST_BACKOFF: Final = timedelta(seconds=1)

_unsent: Final = and_(col(OutboxRow.published_at).is_(None), col(OutboxRow.parked_at).is_(None))
_rejected: Final = and_(col(OutboxRow.published_at).is_(None), col(OutboxRow.first_refused_at).is_not(None))
_order_key: Final = func.coalesce(OutboxRow.device_id, OutboxRow.event_id)
# An order that only the index of unsent events has. With `ORDER BY id` PostgreSQL may choose the primary key
# after a backlog, and read all events ever sent before the first unsent one.
_oldest_first: Final = outbox_order.asc()


def enqueue(session: Session, event: OutgoingEvent, *distinction: object) -> bool:
    """Enqueue an event after all earlier ones of its device, unless it has been enqueued before.

    Args:
        session: the transaction of the change that the event reports.
        event: the event.
        distinction: values that distinguish this event from others of its type and device.

    Returns:
        True if the event was added.
    """
    sequence = _next_number(session, event)
    added = session.exec(
        insert(OutboxRow)
        .values(
            event_id=event.event_id(*distinction),
            type=event.event_type,
            device_id=event.device_id,
            tenant_id=event.tenant_id,
            sequence=sequence,
            occurred_at=datetime.now(UTC),
            data=event.model_dump(mode="json", by_alias=True),
        )
        .on_conflict_do_nothing(index_elements=[col(OutboxRow.event_id)])
        .returning(col(OutboxRow.id))
    ).one_or_none()
    if added is None and sequence is not None:
        session.exec(
            update(DeviceStateRow)
            .where(col(DeviceStateRow.device_id) == event.device_id)
            .values(outbox_sequence=sequence - 1)
        )
    return added is not None


def claim(session: Session, shard: int, at_most: int) -> Sequence[OutboxRow]:
    """Lock a shard for this transaction, and return its oldest unsent events.

    Events of a device whose next event was rejected are left out until it is due again. The result is empty
    if another transaction has the lock: two of them could send the events of a device out of order.
    """
    # PostgreSQL ends the session of a lock holder whose machine is lost after a minute. Without this timeout
    # the shard would stay locked until TCP closes the connection, hours later.
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '1min'"))
    if not session.scalar(select(func.pg_try_advisory_xact_lock(_SHARD_LOCKS, shard))):
        return []
    delayed = select(_order_key).where(
        OutboxRow.shard == shard, _rejected, _unsent, col(OutboxRow.send_again_at) > datetime.now(UTC)
    )
    return session.exec(
        select(OutboxRow)
        .where(OutboxRow.shard == shard, _unsent, _order_key.not_in(delayed))
        .order_by(_oldest_first)
        .limit(at_most)
    ).all()


def oldest_unsent(session: Session) -> Mapping[int, datetime]:
    """Return the time of the oldest unsent event of each shard that has one."""
    oldest = {
        shard: session.exec(
            select(OutboxRow.occurred_at)
            .where(OutboxRow.shard == shard, _unsent)
            .order_by(_oldest_first)
            .limit(1)
        ).first()
        for shard in range(OUTBOX_SHARDS)
    }
    return {shard: since for shard, since in oldest.items() if since is not None}


def count_parked(session: Session) -> int:
    """Return the number of parked events, which wait for an operator to resend them."""
    parked = (
        select(func.count()).select_from(OutboxRow).where(_rejected, col(OutboxRow.parked_at).is_not(None))
    )
    return session.exec(parked).one()


def mark_published(session: Session, rows: Sequence[OutboxRow]) -> None:
    """Record that events have been sent."""
    session.exec(
        update(OutboxRow)
        .where(col(OutboxRow.id).in_([row.id for row in rows]))
        .values(published_at=datetime.now(UTC))
        .execution_options(synchronize_session=False)
    )


def record_refusal(row: OutboxRow, reason: str, park_after: timedelta) -> None:
    """Record that the sink rejected an event, and when to send it again or that it is parked.

    Args:
        row: the event.
        reason: why the sink rejected it.
        park_after: time since the first rejection after which the event is parked. Until then the backoff
            is the time since the first rejection, so that it doubles, within a second and ten minutes.
    """
    now = datetime.now(UTC)
    row.first_refused_at = row.first_refused_at or now
    row.refused_because = reason
    park_at = row.first_refused_at + park_after
    if now >= park_at:
        row.parked_at, row.send_again_at = now, None
    else:
        backoff = min(max(now - row.first_refused_at, _SHORTEST_BACKOFF), _LONGEST_BACKOFF)
        row.send_again_at = min(now + backoff, park_at)
    # Written even if unchanged since the row was read: `resend` may have cleared them in the meantime, and a
    # parked event without a rejection would not be listed.
    flag_modified(row, "first_refused_at")
    flag_modified(row, "refused_because")


def list_refused(session: Session, at_most: int) -> Sequence[OutboxRow]:
    """Return the events that the sink rejected, parked or not, the oldest first."""
    return session.exec(select(OutboxRow).where(_rejected).order_by(col(OutboxRow.id)).limit(at_most)).all()


def resend(session: Session, event_id: UUID | None) -> int:
    """Clear the rejections of events, so that they are sent at once. Returns the number of events.

    Args:
        session: in a transaction.
        event_id: the event, parked or not. None for all rejected events.
    """
    selected = _rejected if event_id is None else and_(_rejected, col(OutboxRow.event_id) == event_id)
    return session.exec(
        update(OutboxRow)
        .where(selected)
        .values(first_refused_at=None, refused_because=None, send_again_at=None, parked_at=None)
        .execution_options(synchronize_session=False)
    ).rowcount


def delete_sent(session: Session, shard: int, before: datetime, at_most: int) -> int:
    """Delete a batch of a shard's events that were sent before a time, and return their number.

    Sent events may be deleted: sequence numbers are counted in the device's state, and an event is enqueued
    with a change of another row, which happens once. Only a repeat of the daily warning of an expiring claim
    certificate is recognised by the event's own row, on the same day.
    """
    expired = (
        select(OutboxRow.id)
        .where(OutboxRow.shard == shard, col(OutboxRow.published_at) < before)
        .order_by(col(OutboxRow.published_at))
        .limit(at_most)
        .with_for_update(skip_locked=True)
    )
    return session.exec(
        delete(OutboxRow).where(col(OutboxRow.id).in_(expired)).execution_options(synchronize_session=False)
    ).rowcount


def disable_sink(session: Session, fingerprint: str, kind: str, reason: str) -> bool:
    """Stop sending events to a sink. False if it was disabled before."""
    return (
        session.exec(
            insert(EventSinkRow)
            .values(fingerprint=fingerprint, kind=kind, reason=reason)
            .on_conflict_do_nothing()
            .returning(col(EventSinkRow.fingerprint))
        ).one_or_none()
        is not None
    )


def disabled_sink(session: Session, fingerprint: str) -> EventSinkRow | None:
    """Return the row of a disabled sink, or None if the sink is enabled."""
    return session.get(EventSinkRow, fingerprint)


def list_disabled_sinks(session: Session) -> Sequence[EventSinkRow]:
    """Return the disabled sinks, the first disabled first."""
    return session.exec(select(EventSinkRow).order_by(col(EventSinkRow.disabled_at))).all()


def enable_sinks(session: Session) -> int:
    """Enable all sinks, and return the number of those that were disabled."""
    return session.exec(delete(EventSinkRow)).rowcount


def _next_number(session: Session, event: OutgoingEvent) -> int | None:
    """Return the next sequence number of the event's device, or None for an event without a device.

    The device's state stays locked until the commit, so that the order of sequence numbers and row ids is the
    order of the changes.
    """
    if event.device_id is None:
        return None
    counted: int = session.exec(
        insert(DeviceStateRow)
        .values(device_id=event.device_id, tenant_id=event.tenant_id, outbox_sequence=1)
        .on_conflict_do_update(
            index_elements=[col(DeviceStateRow.device_id)],
            set_={"outbox_sequence": col(DeviceStateRow.outbox_sequence) + 1},
        )
        .returning(col(DeviceStateRow.outbox_sequence))
    ).scalar_one()
    return counted
