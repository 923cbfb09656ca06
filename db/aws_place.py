"""Where in AWS the bridge is: workers find it out, and the HTTP doors, which never call AWS, go by it."""

from datetime import UTC, datetime

from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col

from db.models import AwsPlaceRow
from domain.enrolment import AwsPlace


def keep_place(session: Session, place: AwsPlace) -> None:
    """Remember the place; the newest that a worker found counts."""
    found = {**place.model_dump(), "found_at": datetime.now(UTC)}
    session.exec(
        insert(AwsPlaceRow)
        .values(id=1, **found)
        .on_conflict_do_update(index_elements=[col(AwsPlaceRow.id)], set_=found)
    )


def known_place(session: Session) -> AwsPlace | None:
    """The place, once any worker has found it out."""
    row = session.get(AwsPlaceRow, 1)
    return AwsPlace(partition=row.partition, account_id=row.account_id, region=row.region) if row else None
