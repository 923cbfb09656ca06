"""Dynamic thing groups created for commands, and the time of their last use."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select

from db.models import CommandGroupRow


def use_group(session: Session, name: str, query: str) -> None:
    """Record a use of the group, before the calls to AWS that use it.

    Waits for a deletion of the group in progress to complete (see `lock_unused_group`).
    """
    now = datetime.now(UTC)
    session.exec(
        insert(CommandGroupRow)
        .values(name=name, query=query, last_used_at=now)
        .on_conflict_do_update(index_elements=[col(CommandGroupRow.name)], set_={"last_used_at": now})
    )


def mark_group_used(session: Session, name: str) -> None:
    """Record that a group was in use until now, if its row still exists."""
    session.exec(
        update(CommandGroupRow)
        .where(col(CommandGroupRow.name) == name)
        .values(last_used_at=datetime.now(UTC))
    )


def unused_groups(session: Session, since: datetime) -> Sequence[str]:
    """Return the names of the groups that were not used since a time, the longest unused first."""
    return session.exec(
        select(CommandGroupRow.name)
        .where(col(CommandGroupRow.last_used_at) < since)
        .order_by(col(CommandGroupRow.last_used_at))
    ).all()


def lock_unused_group(session: Session, name: str, since: datetime) -> CommandGroupRow | None:
    """Lock a group's row against commands that are about to use it; None if one used it since that time."""
    return session.exec(
        select(CommandGroupRow)
        .where(col(CommandGroupRow.name) == name, col(CommandGroupRow.last_used_at) < since)
        .with_for_update()
    ).first()
