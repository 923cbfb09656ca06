"""Clients of the emulator: as its devices and its inventory need them, none of the bridge's own."""

from functools import cache
from typing import Any

import boto3
from botocore.config import Config


@cache
def aws_client(service: str, endpoint_url: str) -> Any:
    """One for the whole process: a client costs as much as dozens of calls."""
    # A session of its own, since two threads may not make clients from one. The emulator takes any keys.
    session = boto3.Session("embedded", "embedded", region_name="eu-west-1")
    return session.client(
        service,  # type: ignore[call-overload] # there are no types of the device's side of jobs
        endpoint_url=endpoint_url,
        config=Config(proxies={}, max_pool_connections=32),
    )
