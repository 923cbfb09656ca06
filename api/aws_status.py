"""The readiness of the bridge's AWS credentials, as its workers record it: the HTTP API never calls AWS."""

from datetime import UTC, datetime

from api.database import Database
from api.errors import unavailable
from db.aws_credentials import fetched_at


class AwsCredentials:
    """The workers' AWS credentials.

    Args:
        database: holds the workers' record of reading the credentials.
        secret_arn: the secret that they read; None for boto3's default chain, which is always ready.
    """

    def __init__(self, database: Database, secret_arn: str | None) -> None:
        self._database = database
        self._secret_arn = secret_arn
        # A worker keeps credentials that it has read once, so this never becomes False again.
        self._ready = secret_arn is None

    async def require(self) -> None:
        """Check that a worker has credentials.

        Raises:
            ApiError: 503, no worker has read any yet.
        """
        if not self._ready:
            self._ready = await self._fetched_at() is not None
        if not self._ready:
            raise unavailable("the AWS credentials are not ready: no worker has read their secret yet")

    async def age(self) -> str:
        """Return how long ago a worker last read the secret, in words; empty without a secret.

        Raises:
            LookupError: no worker has read it yet.
        """
        if self._secret_arn is None:
            return ""
        at = await self._fetched_at()
        if at is None:
            raise LookupError("no worker has read their secret yet: see a worker's log")
        return f"read {max(0, round((datetime.now(UTC) - at).total_seconds()))} s ago"

    async def _fetched_at(self) -> datetime | None:
        arn = self._secret_arn
        return await self._database.read(lambda connection: fetched_at(connection, arn)) if arn else None
