"""How reading the keys for AWS went: workers write it down, and the HTTP doors, which have none, go by it."""

from datetime import datetime

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col

from db.models import AwsCredentialsRow


def record_check(
    session: Session, secret_arn: str, *, checked_at: datetime, fetched_at: datetime | None, error: str | None
) -> None:
    """Remember the newest check of a secret by any worker, and when one last read it well.

    Args:
        session: in a transaction.
        secret_arn: the secret's ARN.
        checked_at: when it was last read, well or not.
        fetched_at: when it was last read well; None where it never was, which undoes no other's success.
        error: what went wrong at the check, as a code.
    """
    new = insert(AwsCredentialsRow).values(
        secret_arn=secret_arn, checked_at=checked_at, fetched_at=fetched_at, error=error
    )
    session.exec(
        new.on_conflict_do_update(
            index_elements=[col(AwsCredentialsRow.secret_arn)],
            set_={
                "checked_at": new.excluded.checked_at,
                # It ignores a null.
                "fetched_at": func.greatest(col(AwsCredentialsRow.fetched_at), new.excluded.fetched_at),
                "error": new.excluded.error,
            },
        )
    )


def fetched_at(connection: Connection, secret_arn: str) -> datetime | None:
    """When any worker last read the secret well."""
    return connection.scalar(
        select(col(AwsCredentialsRow.fetched_at)).where(col(AwsCredentialsRow.secret_arn) == secret_arn)
    )
