"""The discovery of this process's location in AWS: partition, account and region."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, TypeVar

from aws.clients import AwsClients
from aws.errors import AwsError
from domain.enrolment import AwsLocation

logger = logging.getLogger("thingbridge.worker")

RETRY_SECONDS: Final = 30.0
"""The wait after AWS or the database did not answer."""

Argument = TypeVar("Argument")
Result = TypeVar("Result")


async def discover(
    aws: AwsClients, account_id: str | None, store: Callable[[AwsLocation], bool], retry_seconds: float
) -> None:
    """Find the location of the AWS clients and store it, with retries until both have succeeded.

    Args:
        aws: the clients.
        account_id: the account of the settings; None to request it from AWS.
        store: stores the location, and returns whether that succeeded. It runs in its own thread.
        retry_seconds: how long to wait between attempts.
    """
    while True:
        try:
            location = await asyncio.to_thread(aws.find_location, account_id)
        except AwsError as error:
            logger.warning("AWS location not found, no device can enrol until it is: %s", error)
        else:
            if await _run_to_completion(store, location):
                logger.info("AWS location found", extra=location.model_dump())
                return
        await asyncio.sleep(retry_seconds)


async def _run_to_completion(work: Callable[[Argument], Result], argument: Argument) -> Result:
    """Run work in a thread. A cancellation waits for its end, so that its database connection is free."""
    running = asyncio.ensure_future(asyncio.to_thread(work, argument))
    try:
        return await asyncio.shield(running)
    finally:
        await asyncio.wait([running])
