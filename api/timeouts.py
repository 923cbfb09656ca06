"""The time limit of a request's work, and the errors of the dependencies it waits for."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from temporalio.service import RPCError

from api.errors import unavailable
from orchestration.client import TemporalUnreachableError

logger = logging.getLogger("thingbridge.api")

T = TypeVar("T")


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Return the result of some work that must complete within a time limit.

    Raises:
        ApiError: 503, the time limit is exceeded, or the database or Temporal is unavailable.
    """
    try:
        async with asyncio.timeout(seconds):
            return await work
    except (TimeoutError, PoolTimeoutError):
        raise unavailable("the request was not completed in time") from None
    except (OperationalError, InterfaceError) as error:
        logger.warning("database unavailable", exc_info=error)
        raise unavailable("the database is unavailable") from None
    except (TemporalUnreachableError, RPCError) as error:
        logger.warning("Temporal unavailable: %s", error)
        raise unavailable("Temporal is unavailable") from None
