"""The way to Temporal: its own environment configuration, and the converter every client of ours uses."""

import logging
import os
import re
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from opentelemetry.trace import ProxyTracerProvider, get_tracer_provider
from temporalio.client import Client, Interceptor
from temporalio.envconfig import ClientConfig

from domain.encryption import EncryptionKeys
from domain.operator_error import OperatorError
from orchestration.codec import data_converter

# The one part for human eyes of how the SDK reports a connection that failed.
_CAUSE: Final = re.compile(r'(?:message|error): "([^"]+)"')


class TemporalUnreachableError(OperatorError):
    """No Temporal server answers where the configuration points, or the configuration points nowhere."""


async def connect(encryption: EncryptionKeys | None) -> Client:
    """Connect as `TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`, `TEMPORAL_API_KEY`, … or a profile says.

    Args:
        encryption: the keys of payloads; None: they are plain. Not optional, so that no client forgets them.

    Raises:
        TemporalUnreachableError: with the address tried, or what is wrong with the configuration.
    """
    try:
        config = ClientConfig.load_client_connect_config()
    except (RuntimeError, OSError) as error:
        # The first line alone: the next ones quote the file, and that may be a key.
        raise TemporalUnreachableError(
            f"Temporal's own configuration (TEMPORAL_…, temporal.toml): {str(error).splitlines()[0]}"
        ) from None
    address = config.setdefault("target_host", "localhost:7233")
    try:
        return await Client.connect(
            **config, data_converter=data_converter(encryption), interceptors=_interceptors()
        )
    except RuntimeError as error:
        cause = _CAUSE.search(str(error))
        raise TemporalUnreachableError(
            f"no Temporal server answers at {address} (TEMPORAL_ADDRESS): {cause[1] if cause else error}"
        ) from None


def _interceptors() -> Sequence[Interceptor]:
    if not is_tracing():
        return []
    from orchestration.tracing import tracing_interceptor

    return [tracing_interceptor()]


def is_tracing() -> bool:
    """Whether traces are kept: the SDK for it takes a fifth of a second to load, which else nobody needs."""
    return not isinstance(get_tracer_provider(), ProxyTracerProvider)


def end_process(code: int) -> NoReturn:
    """End a process that has spoken to Temporal, with its exit code and all it has said.

    The SDK's threads may crash an interpreter that is being taken apart (sdk-python issue 300): then the
    process would end with SIGABRT, although all was well.
    """
    if is_tracing():
        from orchestration.tracing import flush_traces

        flush_traces()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
