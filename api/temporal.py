"""The HTTP API's connection to Temporal, opened when it is first needed: the API starts without Temporal."""

import asyncio
from datetime import timedelta
from typing import Final

from temporalio.client import Client

from domain.encryption import EncryptionKeys
from orchestration.client import connect

_HEALTH_TIMEOUT: Final = timedelta(seconds=3)


class Temporal:
    """One client for all requests. While there is none, each request tries to connect."""

    def __init__(self, encryption: EncryptionKeys | None) -> None:
        self._encryption = encryption
        self._client: Client | None = None
        self._connecting = asyncio.Lock()

    async def __call__(self) -> Client:
        """Return the client.

        Raises:
            TemporalUnreachableError: no server answers.
        """
        if self._client is None:
            async with self._connecting:
                if self._client is None:
                    self._client = await connect(self._encryption)
        return self._client

    async def check_health(self) -> None:
        """Request the server's health.

        Raises:
            TemporalUnreachableError, RPCError: the server does not answer in time.
        """
        client = await self()
        await client.service_client.check_health(timeout=_HEALTH_TIMEOUT)
