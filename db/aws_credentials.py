"""Results of reading the AWS credentials, written by workers and read by the readiness of the HTTP API."""

from datetime import datetime

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col

from db.models import AwsCredentialsRow


def record_check(
    session: Session, secret_arn: str, *, checked_at: datetime, fetched_at: datetime | None, error: str | None
) -> None:
    """Store the result of the newest check of a secret by any worker.

    Args:
        session: in a transaction.
        secret_arn: the secret's ARN.
        checked_at: time of the check, successful or not.
        fetched_at: time of the last successful read by this worker, None if there was none. The newest
            success of all workers is kept.
        error: the error code of the check, None if it succeeded.
    """
    new = insert(AwsCredentialsRow).values(
        secret_arn=secret_arn, checked_at=checked_at, fetched_at=fetched_at, error=error
    )
    session.exec(
        new.on_conflict_do_update(
            index_elements=[col(AwsCredentialsRow.secret_arn)],
            set_={
                "checked_at": new.excluded.checked_at,
                # greatest() ignores nulls.
                "fetched_at": func.greatest(col(AwsCredentialsRow.fetched_at), new.excluded.fetched_at),
                "error": new.excluded.error,
            },
        )
    )


def fetched_at(connection: Connection, secret_arn: str) -> datetime | None:
    """Return when a worker last read the secret successfully, or None if none has."""
    return connection.scalar(
        select(col(AwsCredentialsRow.fetched_at)).where(col(AwsCredentialsRow.secret_arn) == secret_arn)
    )
