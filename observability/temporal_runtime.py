"""The runtime of Temporal's SDK: its log and its metrics."""

import functools
import logging
import socket
from contextlib import suppress
from typing import Final

from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)

from observability.exposition import LOOPBACK, MetricsAddressError

_PORT_TRIES: Final = 5


@functools.cache
def install_temporal_runtime(measured: bool) -> int | None:
    """Configure the SDK's runtime; call it before a client is made.

    Its log is forwarded to the process's log, because by itself it writes coloured text to standard output.
    Its metrics are served by the SDK itself, on a loopback port. Reading them from the SDK's buffer instead
    would lose metrics when the buffer overflows, and would change the documented names and buckets.

    Args:
        measured: True if the SDK serves metrics.

    Returns:
        The port of the metrics; None without metrics.

    Raises:
        MetricsAddressError: no free port was found.
    """
    forwarding = LogForwardingConfig(
        logging.getLogger("temporalio.core"), append_target_to_name=False, prepend_target_on_message=False
    )
    log = LoggingConfig(TelemetryFilter(core_level="WARN", other_level="ERROR"), forwarding)
    port: int | None = None
    if measured:
        runtime, port = _measured_runtime(log)
    else:
        runtime = Runtime(telemetry=TelemetryConfig(logging=log))
    Runtime.set_default(runtime, error_if_already_set=False)
    return port


def _measured_runtime(log: LoggingConfig) -> tuple[Runtime, int]:
    for _ in range(_PORT_TRIES):
        port = _free_port()
        metrics = PrometheusConfig(f"{LOOPBACK}:{port}")
        # Another process may have bound the port since.
        with suppress(ValueError):
            return Runtime(telemetry=TelemetryConfig(logging=log, metrics=metrics)), port
    raise MetricsAddressError(f"no free port on {LOOPBACK} for the metrics of Temporal's SDK")


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind((LOOPBACK, 0))
        return int(bound.getsockname()[1])
