"""The loop that reads the secret with the bridge's AWS keys again at every interval."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from aws.credentials import FleetCredentials

logger = logging.getLogger("thingbridge.worker")

# The longest wait after a failure: missing keys delay all work, and old keys may soon be revoked.
_LONGEST_RETRY_SECONDS: Final = 30


@asynccontextmanager
async def refresh_in_background(
    credentials: FleetCredentials, store: Callable[[], bool], *, interval: timedelta, first_within: timedelta
) -> AsyncIterator[None]:
    """Refresh the keys in the background until the block ends.

    Args:
        credentials: the keys.
        store: stores the result of the newest read, and returns whether that succeeded. It runs in a thread.
        interval: the time from a successful read to the next one. A failed read, or one whose result was not
            stored, is repeated sooner.
        first_within: how long to wait for the first read, successful or not, before the block begins anyway.
    """
    first_read = asyncio.Event()

    async def refresh() -> None:
        failures = 0
        while True:
            succeeded = await asyncio.to_thread(credentials.refresh)
            first_read.set()
            succeeded = await asyncio.to_thread(store) and succeeded
            failures = 0 if succeeded else failures + 1
            backoff = timedelta(seconds=min(2.0**failures, _LONGEST_RETRY_SECONDS))
            await asyncio.sleep((interval if succeeded else min(backoff, interval)).total_seconds())

    refreshing = asyncio.create_task(refresh())
    try:
        await asyncio.wait_for(first_read.wait(), first_within.total_seconds())
    except TimeoutError:
        logger.warning("the secret with the AWS keys was not read in time: AWS is not called until it is")
    try:
        yield
    finally:
        refreshing.cancel()
