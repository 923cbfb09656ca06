"""Events to be sent: written in the transaction of the change they tell of, taken by shards."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import and_, delete, func, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm.attributes import flag_modified
from sqlmodel import Session, col, select

from db.models import DeviceStateRow, EventSinkRow, OutboxRow, age_in_outbox
from domain.outbox import OUTBOX_SHARDS
from domain.outgoing_event import OutgoingEvent

# With the shard's number it names an advisory lock; any number will do, if it is always the same one.
_SHARD_LOCKS: Final = 0x6F757462

_LONGEST_BACKOFF: Final = timedelta(minutes=10)
_SHORTEST_BACKOFF: Final = timedelta(seconds=1)

_waiting: Final = and_(col(OutboxRow.published_at).is_(None), col(OutboxRow.parked_at).is_(None))
_refused: Final = and_(col(OutboxRow.published_at).is_(None), col(OutboxRow.first_refused_at).is_not(None))
_order_key: Final = func.coalesce(OutboxRow.device_id, OutboxRow.event_id)
# An order that only the index of what waits is in. By the plain id PostgreSQL takes the primary key once it
# has counted a backlog, and so passes every event ever sent to come to those that wait.
_oldest_first: Final = age_in_outbox.asc()


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

    Those of a device whose next event is refused wait until that is due again. None at all where another
    transaction has the shard: two at once could overtake each other within a device.
    """
    # The server ends a holder it has not heard of for a minute, as one whose machine is gone: else the shard
    # would wait until TCP gives that connection up, hours later.
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '1min'"))
    if not session.scalar(select(func.pg_try_advisory_xact_lock(_SHARD_LOCKS, shard))):
        return []
    held = select(_order_key).where(
        OutboxRow.shard == shard, _refused, _waiting, col(OutboxRow.send_again_at) > datetime.now(UTC)
    )
    return session.exec(
        select(OutboxRow)
        .where(OutboxRow.shard == shard, _waiting, _order_key.not_in(held))
        .order_by(_oldest_first)
        .limit(at_most)
    ).all()


def oldest_unsent(session: Session) -> Mapping[int, datetime]:
    """Since when the oldest unsent event of each shard waits; none of a shard whose events are all sent."""
    waiting = {
        shard: session.exec(
            select(OutboxRow.occurred_at)
            .where(OutboxRow.shard == shard, _waiting)
            .order_by(_oldest_first)
            .limit(1)
        ).first()
        for shard in range(OUTBOX_SHARDS)
    }
    return {shard: since for shard, since in waiting.items() if since is not None}


def count_parked(session: Session) -> int:
    """How many events wait for an operator to have them sent again."""
    parked = (
        select(func.count()).select_from(OutboxRow).where(_refused, col(OutboxRow.parked_at).is_not(None))
    )
    return session.exec(parked).one()


def mark_published(session: Session, rows: Sequence[OutboxRow]) -> None:
    """Note that events have been sent."""
    session.exec(
        update(OutboxRow)
        .where(col(OutboxRow.id).in_([row.id for row in rows]))
        .values(published_at=datetime.now(UTC))
        .execution_options(synchronize_session=False)
    )


def record_refusal(row: OutboxRow, why: str, park_after: timedelta) -> None:
    """Note that the sink refuses an event: it is sent again later, or parked where that went on for too long.

    The longer it has been refused the longer it waits, twice as long each time.
    """
    now = datetime.now(UTC)
    row.first_refused_at = row.first_refused_at or now
    row.refused_because = why
    gives_up_at = row.first_refused_at + park_after
    if now >= gives_up_at:
        row.parked_at, row.send_again_at = now, None
    else:
        backoff = min(max(now - row.first_refused_at, _SHORTEST_BACKOFF), _LONGEST_BACKOFF)
        row.send_again_at = min(now + backoff, gives_up_at)
    # Written also where they are what they were when the row was read: `resend` may have emptied them since,
    # and an event that is parked and not known to be refused is one that nobody finds.
    flag_modified(row, "first_refused_at")
    flag_modified(row, "refused_because")


def list_refused(session: Session, at_most: int) -> Sequence[OutboxRow]:
    """The events that the sink refuses, parked or not, the oldest first."""
    return session.exec(select(OutboxRow).where(_refused).order_by(col(OutboxRow.id)).limit(at_most)).all()


def resend(session: Session, event_id: UUID | None) -> int:
    """Have refused events sent again at once, as if they never had been; returns how many there were.

    Args:
        session: a transaction.
        event_id: the one event, parked or not; None for all.
    """
    wanted = _refused if event_id is None else and_(_refused, col(OutboxRow.event_id) == event_id)
    return session.exec(
        update(OutboxRow)
        .where(wanted)
        .values(first_refused_at=None, refused_because=None, send_again_at=None, parked_at=None)
        .execution_options(synchronize_session=False)
    ).rowcount


def delete_sent(session: Session, shard: int, before: datetime, at_most: int) -> int:
    """Delete some of a shard's events that had been sent by then; returns how many.

    Neither a device's numbers nor what is told once rest on them: the numbers are counted in the device's
    state, and whoever tells goes by the row that it changes. Only what is told once a day has nothing but
    its event's row to go by, for that day.
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
    """Have nothing more sent to a sink; False where that was so before."""
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
    """Why a sink is sent nothing, if it is so."""
    return session.get(EventSinkRow, fingerprint)


def list_disabled_sinks(session: Session) -> Sequence[EventSinkRow]:
    """The sinks that are sent nothing, the oldest first."""
    return session.exec(select(EventSinkRow).order_by(col(EventSinkRow.disabled_at))).all()


def enable_sinks(session: Session) -> int:
    """Have every sink sent events again; returns how many were sent none."""
    return session.exec(delete(EventSinkRow)).rowcount


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
