"""Partition, account and region of the bridge: workers store them for the HTTP API, which never calls AWS."""

from datetime import UTC, datetime

from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col

from db.models import AwsLocationRow
from domain.enrolment import AwsLocation


def save_location(session: Session, location: AwsLocation) -> None:
    """Store the location in place of an earlier one."""
    found = {**location.model_dump(), "found_at": datetime.now(UTC)}
    session.exec(
        insert(AwsLocationRow)
        .values(id=1, **found)
        .on_conflict_do_update(index_elements=[col(AwsLocationRow.id)], set_=found)
    )


def load_location(session: Session) -> AwsLocation | None:
    """Return the location, or None if no worker has stored it yet."""
    row = session.get(AwsLocationRow, 1)
    return AwsLocation(partition=row.partition, account_id=row.account_id, region=row.region) if row else None
