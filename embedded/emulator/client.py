"""Clients of the emulator, for all that call it but the bridge itself: devices, operators, onlookers."""

from functools import cache
from typing import Any, Final

import boto3
from botocore.config import Config

from embedded import REGION

_KEYS: Final = ("embedded", "embedded")
"""The emulator takes any, unless they were revoked."""


@cache
def aws_client(
    service: str, endpoint_url: str, *, keys: tuple[str, str] = _KEYS, attempts: int | None = None
) -> Any:
    """One for the whole process: a client costs as much as dozens of calls.

    Args:
        service: as boto3 names it.
        endpoint_url: where the emulator is.
        keys: what signs the calls, id and secret.
        attempts: how often each call is tried; None for as often as boto3 does.
    """
    # A session of its own, since two threads may not make clients from one.
    session = boto3.Session(*keys, region_name=REGION)
    return session.client(
        service,  # type: ignore[call-overload] # there are no types of the device's side of jobs
        endpoint_url=endpoint_url,
        config=Config(
            proxies={},
            max_pool_connections=32,
            retries={} if attempts is None else {"total_max_attempts": attempts},
        ),
    )
