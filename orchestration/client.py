"""The Temporal client: configured by Temporal's environment variables, with the bridge's converter."""

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

# The readable part of the SDK's report of a failed connection.
_CAUSE: Final = re.compile(r'(?:message|error): "([^"]+)"')


class TemporalUnreachableError(OperatorError):
    """No Temporal server answers at the configured address, or the configuration is not valid."""


async def connect(encryption: EncryptionKeys | None) -> Client:
    """Connect by `TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`, `TEMPORAL_API_KEY`, … or a profile.

    Args:
        encryption: the keys of payloads; None: payloads are plain. Required, so that no caller forgets it.

    Raises:
        TemporalUnreachableError: the message has the address, or what is wrong with the configuration.
    """
    try:
        config = ClientConfig.load_client_connect_config()
    except (RuntimeError, OSError) as error:
        # The first line only: the others quote the file, which can hold an API key.
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
    """Return whether traces are recorded. Only then is the tracing SDK imported, which costs 0.2 seconds."""
    return not isinstance(get_tracer_provider(), ProxyTracerProvider)


def end_process(code: int) -> NoReturn:
    """End a process that has used a Temporal client, after its output is flushed.

    It skips Python's own shutdown, during which the SDK's threads can crash the interpreter (sdk-python issue
    300): a process that succeeded would end with SIGABRT.
    """
    if is_tracing():
        from orchestration.tracing import flush_traces

        flush_traces()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
