"""Whether the bridge has keys for AWS, as its workers have written it down: the doors never call AWS."""

from datetime import UTC, datetime

from api.database import Database
from api.errors import unavailable
from db.aws_credentials import fetched_at


class AwsCredentials:
    """The workers' keys for AWS.

    Args:
        database: where the workers write down how reading them went.
        secret_arn: the secret they read; None where boto3's default chain has them, which is always ready.
    """

    def __init__(self, database: Database, secret_arn: str | None) -> None:
        self._database = database
        self._secret_arn = secret_arn
        # Once read they are kept for good, so this never becomes untrue again.
        self._ready = secret_arn is None

    async def require(self) -> None:
        """Let pass what needs keys for AWS.

        Raises:
            Refused: 503, no worker has read any yet.
        """
        if not self._ready:
            self._ready = await self._fetched_at() is not None
        if not self._ready:
            raise unavailable("the AWS credentials are not ready: no worker has read their secret yet")

    async def age(self) -> str:
        """How long ago a worker last read them, in words; nothing where they are not read from a secret.

        Raises:
            LookupError: no worker ever did.
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
