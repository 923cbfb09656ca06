"""Events to be sent: written in the transaction of the change they tell of, taken by shards."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import func, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select

from db.models import DeviceStateRow, OutboxRow
from domain.outbox import OUTBOX_SHARDS
from domain.outgoing_event import OutgoingEvent

# With the shard's number it names an advisory lock; any number will do, if it is always the same one.
_SHARD_LOCKS: Final = 0x6F757462


def put(session: Session, event: OutgoingEvent, *distinction: object) -> bool:
    """Add an event behind all earlier ones of its device; one that is there already is not added again.

    Args:
        session: the transaction of the change the event tells of.
        event: what to tell.
        distinction: what makes this event one among those of its type and device.

    Returns:
        Whether it was added.
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
    """The oldest unsent events of a shard, for this transaction alone to send.

    None where another transaction has the shard: two at once could overtake each other within a device.
    """
    # The server ends a holder it has not heard of for a minute, as one whose machine is gone: else the shard
    # would wait until TCP gives that connection up, hours later.
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '1min'"))
    if not session.scalar(select(func.pg_try_advisory_xact_lock(_SHARD_LOCKS, shard))):
        return []
    return session.exec(
        select(OutboxRow)
        .where(OutboxRow.shard == shard, col(OutboxRow.published_at).is_(None))
        .order_by(col(OutboxRow.id))
        .limit(at_most)
    ).all()


def oldest_unsent(session: Session) -> Mapping[int, datetime]:
    """Since when the oldest unsent event of each shard waits; none of a shard whose events are all sent."""
    waiting = {
        shard: session.exec(
            select(OutboxRow.occurred_at)
            .where(OutboxRow.shard == shard, col(OutboxRow.published_at).is_(None))
            .order_by(col(OutboxRow.id))
            .limit(1)
        ).first()
        for shard in range(OUTBOX_SHARDS)
    }
    return {shard: since for shard, since in waiting.items() if since is not None}


def mark_published(session: Session, rows: Sequence[OutboxRow]) -> None:
    """Note that events have been sent."""
    session.exec(
        update(OutboxRow)
        .where(col(OutboxRow.id).in_([row.id for row in rows]))
        .values(published_at=datetime.now(UTC))
        .execution_options(synchronize_session=False)
    )


def _next_number(session: Session, event: OutgoingEvent) -> int | None:
    """Count in the device's own row, if it is an event of one device.

    That holds other writers of the device off until the commit, so that the order of the numbers, and of the
    ids, is the order of the changes.
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
