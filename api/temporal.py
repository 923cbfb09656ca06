"""Temporal, as the doors use it: sought when it is needed, so that they serve while it is away."""

import asyncio

from temporalio.client import Client

from domain.encryption import EncryptionKeys
from orchestration.client import connect


class Temporal:
    """One client for all requests; until it is had, each request tries again."""

    def __init__(self, encryption: EncryptionKeys | None) -> None:
        self._encryption = encryption
        self._client: Client | None = None
        self._connecting = asyncio.Lock()

    async def __call__(self) -> Client:
        """The client.

        Raises:
            TemporalUnreachableError: no server answers.
        """
        if self._client is None:
            async with self._connecting:
                if self._client is None:
                    self._client = await connect(self._encryption)
        return self._client
