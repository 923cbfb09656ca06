"""Set up the logs, metrics and traces of a process."""

from typing import Literal, TextIO

from observability.exposition import include_sdk_metrics, install_meter_provider
from observability.logging import configure_logging
from observability.temporal_runtime import install_temporal_runtime
from observability.tracing import configure_tracing


def configure(
    level: str, form: Literal["json", "text"], stream: TextIO | None = None, *, measured: bool = False
) -> None:
    """Set up logging, metrics and tracing; call it before a Temporal client is made.

    Traces are exported where an environment variable of OpenTelemetry names an endpoint.

    Args:
        level: the lowest level that is logged.
        form: `json`, one object a line with the tenant, device, workflow and run of the work; or `text`.
        stream: the destination of the log; None is standard error.
        measured: True if the process serves metrics, through `observability.exposition`.

    Raises:
        MetricsAddressError: Temporal's SDK finds no port for its metrics.
    """
    configure_logging(level, form, stream)
    if measured:
        install_meter_provider()
    sdk_port = install_temporal_runtime(measured)
    if sdk_port is not None:
        include_sdk_metrics(sdk_port)
    configure_tracing()
