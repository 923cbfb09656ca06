"""Which dynamic thing groups were made for commands, and when each was last used."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select

from db.models import CommandGroupRow


def use_group(session: Session, name: str, query: str) -> None:
    """Note, before anything is done in AWS, that a group is about to be used.

    Where the group is just being deleted this waits until that is done: see `lock_unused_group`.
    """
    now = datetime.now(UTC)
    session.exec(
        insert(CommandGroupRow)
        .values(name=name, query=query, last_used_at=now)
        .on_conflict_do_update(index_elements=[col(CommandGroupRow.name)], set_={"last_used_at": now})
    )


def mark_group_used(session: Session, name: str) -> None:
    """Note that a group was in use until now, if it is still there."""
    session.exec(
        update(CommandGroupRow)
        .where(col(CommandGroupRow.name) == name)
        .values(last_used_at=datetime.now(UTC))
    )


def unused_groups(session: Session, since: datetime) -> Sequence[str]:
    """The names of the groups not used since then, the longest unused first."""
    return session.exec(
        select(CommandGroupRow.name)
        .where(col(CommandGroupRow.last_used_at) < since)
        .order_by(col(CommandGroupRow.last_used_at))
    ).all()


def lock_unused_group(session: Session, name: str, since: datetime) -> CommandGroupRow | None:
    """The group's row, held against a command that is about to use it; None where one has used it since."""
    return session.exec(
        select(CommandGroupRow)
        .where(col(CommandGroupRow.name) == name, col(CommandGroupRow.last_used_at) < since)
        .with_for_update()
    ).first()
