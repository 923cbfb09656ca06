"""The metrics of the process and of Temporal's SDK in Prometheus' text format."""

import functools
import http.client
import logging
from contextlib import closing
from typing import Final

from opentelemetry import metrics
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from domain.operator_error import OperatorError

logger = logging.getLogger("thingbridge.telemetry")

METRICS_CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""The media type of Prometheus' text format."""

LOOPBACK: Final = "127.0.0.1"
"""The address at which Temporal's SDK serves its own metrics."""

_SDK_SECONDS: Final = 5.0
_AWS_LABEL_COMBINATIONS: Final = 50_000

_sdk_port: int | None = None


class MetricsAddressError(OperatorError):
    """Metrics cannot be served at an address."""


def exposition() -> bytes:
    """Return all metrics of the process, including those of Temporal's SDK."""
    return generate_latest() + _sdk_metrics()


def include_sdk_metrics(port: int) -> None:
    """Add the metrics that Temporal's SDK serves at a loopback port to the exposition."""
    global _sdk_port
    _sdk_port = port


@functools.cache
def install_meter_provider() -> None:
    """Collect the metrics of the process's instruments for the exposition."""
    # Imported only where metrics are shown: loading takes half a second, longer than most commands run.
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.view import View

    # Without the labels of scope and resource, because Prometheus adds its own labels for the target.
    reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False)
    # Above 2,000 label combinations the SDK adds up the rest without labels. A tenant has dozens of APIs and
    # results, so with the default a denied call would lose its labels after the hundredth tenant.
    aws_calls = View(meter_name="thingbridge.aws", aggregation_cardinality_limit=_AWS_LABEL_COMBINATIONS)
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader], views=[aws_calls]))


def _sdk_metrics() -> bytes:
    if _sdk_port is None:
        return b""
    with closing(http.client.HTTPConnection(LOOPBACK, _sdk_port, timeout=_SDK_SECONDS)) as connection:
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            logger.warning("the metrics of Temporal's SDK cannot be read: %s", error)
            return b""
