"""Where in AWS the bridge is: workers find it out, and the HTTP doors, which never call AWS, go by it."""

from datetime import UTC, datetime

from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col

from db.models import AwsLocationRow
from domain.enrolment import AwsLocation


def save_location(session: Session, place: AwsLocation) -> None:
    """Remember the place; the newest that a worker found counts."""
    found = {**place.model_dump(), "found_at": datetime.now(UTC)}
    session.exec(
        insert(AwsLocationRow)
        .values(id=1, **found)
        .on_conflict_do_update(index_elements=[col(AwsLocationRow.id)], set_=found)
    )


def load_location(session: Session) -> AwsLocation | None:
    """The place, once any worker has found it out."""
    row = session.get(AwsLocationRow, 1)
    return AwsLocation(partition=row.partition, account_id=row.account_id, region=row.region) if row else None
