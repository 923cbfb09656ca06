"""boto3 clients of the emulator for simulated devices and checks. The bridge has its own clients."""

from functools import cache
from typing import Any, Final

import boto3
from botocore.config import Config

from embedded import REGION

_KEYS: Final = ("embedded", "embedded")
"""The emulator accepts all keys except revoked ones."""


@cache
def aws_client(
    service: str, endpoint_url: str, *, keys: tuple[str, str] = _KEYS, attempts: int | None = None
) -> Any:
    """Return a cached client: creating one takes as long as dozens of calls.

    Args:
        service: the name of the service in boto3.
        endpoint_url: the URL of the emulator.
        keys: the access key id and secret that sign the calls.
        attempts: the maximum attempts of each call; None for the default of boto3.
    """
    # A new session, because two threads cannot create clients from one session.
    session = boto3.Session(*keys, region_name=REGION)
    return session.client(
        service,  # type: ignore[call-overload] # there are no type stubs for iot-jobs-data
        endpoint_url=endpoint_url,
        config=Config(
            proxies={},
            max_pool_connections=32,
            retries={} if attempts is None else {"total_max_attempts": attempts},
        ),
    )
