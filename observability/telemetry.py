"""What the process says of itself: logs on standard error, metrics for Prometheus, traces over OTLP."""

import functools
import http.client
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Final, Literal, TextIO

from opentelemetry import metrics, trace
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)

from domain.operator_error import OperatorError
from observability.context import current_context

logger = logging.getLogger("thingbridge.telemetry")

METRICS_CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""Prometheus's text format."""

# The least of which these are heard, at DEBUG too. There they write whole requests, and so the private key on
# its way to Secrets Manager; httpx2 at INFO each address it calls, and so the token in a webhook's.
_NEVER_VERBOSE: Final = {
    "alembic": logging.INFO,
    "boto3": logging.INFO,
    "botocore": logging.INFO,
    "httpcore2": logging.INFO,
    "httpx2": logging.WARNING,
    "urllib3": logging.INFO,
}
# The events that go to the log are no chatter for a level to silence: there they are delivered.
_EVENTS: Final = "thingbridge.events"
# Temporal's and uvicorn's own copies of what is in the message.
_SAID_TWICE: Final = ("temporal_log", "color_message")
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_LOOPBACK: Final = "127.0.0.1"
_PORT_TRIES: Final = 5
_SCRAPE_SECONDS: Final = 5.0
_CALLS_TOLD_APART: Final = 50_000

_core_port: int | None = None


class MetricsAddressError(OperatorError):
    """Metrics cannot be served at the address that is set."""


def configure(
    level: str, form: Literal["json", "text"], stream: TextIO | None = None, *, measured: bool = False
) -> None:
    """Say, measure and trace what the process does; call it before a Temporal client is made.

    Traces are sent where OpenTelemetry's own variables name an endpoint, and else not kept.

    Args:
        level: the least that is said.
        form: `json`, one object a line with the tenant, device, workflow and run it speaks of; or `text`.
        stream: where log lines go; none: standard error.
        measured: whether this process shows metrics, by `exposition`.
    """
    handler = logging.StreamHandler(stream)
    if form == "json":
        handler.addFilter(_with_ids)
        handler.setFormatter(
            JsonFormatter(
                "{asctime}{levelname}{name}{message}",
                style="{",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
                datefmt="%Y-%m-%dT%H:%M:%S%z",
                reserved_attrs=[*RESERVED_ATTRS, *_SAID_TWICE],
            )
        )
    else:
        handler.setFormatter(logging.Formatter("{asctime} {levelname:7} {name}: {message}", style="{"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, least in _NEVER_VERBOSE.items():
        # At INFO they say what nobody asked for.
        quiet = least if level == "DEBUG" else logging.WARNING
        logging.getLogger(name).setLevel(max(quiet, logging.getLevelName(level)))
    logging.getLogger(_EVENTS).setLevel(min(logging.INFO, logging.getLevelName(level)))
    if measured:
        _measure()
    _start_core(measured)
    if any(os.environ.get(name) for name in _ENDPOINTS):
        _trace()


def exposition() -> bytes:
    """All metrics of the process, and those of Temporal's SDK in it, in Prometheus's text format."""
    return generate_latest() + _metrics_of_core()


def silence_request_logging() -> None:
    """Have the libraries that see keys never say whole requests, where logging is set up by others."""
    for name, least in _NEVER_VERBOSE.items():
        library = logging.getLogger(name)
        library.setLevel(max(least, library.level))


@contextmanager
def serving_metrics(host: str, port: int) -> Iterator[None]:
    """Answer `GET /metrics`, and `GET /healthz` for as long as the process lives.

    Raises:
        MetricsAddressError: the address cannot be listened on.
    """
    try:
        server = ThreadingHTTPServer((host, port), _Door)
    except OSError as error:
        raise MetricsAddressError(
            f"IOT_AWS_TELEMETRY__METRICS_PORT: {host}:{port} cannot be listened on: {error.strerror}"
        ) from None
    thread = Thread(target=server.serve_forever, name="metrics")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Door(BaseHTTPRequestHandler):
    # Whoever connects and says nothing does not keep a thread for ever.
    timeout = 10

    def do_GET(self) -> None:
        answers: Mapping[str, Callable[[], bytes]] = {"/metrics": exposition, "/healthz": lambda: b"ok\n"}
        answer = answers.get(self.path.partition("?")[0])
        body = answer() if answer else b"there is /metrics and /healthz\n"
        self.send_response(HTTPStatus.OK if answer else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Type", METRICS_CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing of each scrape."""


def _with_ids(record: logging.LogRecord) -> bool:
    """Add to a log line whom it is about, where it does not say so itself."""
    said = record.__dict__
    for name, value in current_context().items():
        said.setdefault(name, value)
    if of_workflow := said.get("temporal_workflow"):
        said.setdefault("workflow_id", of_workflow["workflow_id"])
        said.setdefault("run_id", of_workflow["run_id"])
    if of_activity := said.get("temporal_activity"):
        said.setdefault("workflow_id", of_activity.get("workflow_id"))
        said.setdefault("run_id", of_activity.get("workflow_run_id"))
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        said.setdefault("trace_id", f"{span.trace_id:032x}")
    return True


# OpenTelemetry's SDK is loaded where it is wanted: it takes half a second, and most commands end sooner.


@functools.cache
def _measure() -> None:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.view import View

    # Neither the scope's nor the resource's labels: Prometheus knows by itself whom it scrapes.
    reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False)
    # By default the SDK sums up what is over 2,000 combinations, without its labels: with some dozens of APIs
    # and results a tenant, a call that AWS denied would be told from no other after the hundredth tenant.
    calls = View(meter_name="thingbridge.aws", aggregation_cardinality_limit=_CALLS_TOLD_APART)
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader], views=[calls]))


@functools.cache
def _trace() -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource({"service.name": "thingbridge"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@functools.cache
def _start_core(measured: bool) -> None:
    """Have the SDK's core log where all else does; by itself it writes coloured text to standard output.

    Its metrics it serves itself, on a loopback port. The other way, to take them out of a buffer, loses some
    where that overflows, and gives them other names and buckets than the SDK documents.
    """
    global _core_port
    forwarding = LogForwardingConfig(
        logging.getLogger("temporalio.core"), append_target_to_name=False, prepend_target_on_message=False
    )
    said = LoggingConfig(TelemetryFilter(core_level="WARN", other_level="ERROR"), forwarding)
    if measured:
        runtime, _core_port = _measured_core(said)
    else:
        runtime = Runtime(telemetry=TelemetryConfig(logging=said))
    Runtime.set_default(runtime, error_if_already_set=False)


def _measured_core(said: LoggingConfig) -> tuple[Runtime, int]:
    for _ in range(_PORT_TRIES):
        port = _free_port()
        shown = PrometheusConfig(f"{_LOOPBACK}:{port}")
        # Another process may be quicker at that port.
        with suppress(ValueError):
            return Runtime(telemetry=TelemetryConfig(logging=said, metrics=shown)), port
    raise MetricsAddressError(f"Temporal's SDK finds no port on {_LOOPBACK} for its metrics")


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind((_LOOPBACK, 0))
        return int(listening.getsockname()[1])


def _metrics_of_core() -> bytes:
    if _core_port is None:
        return b""
    with closing(http.client.HTTPConnection(_LOOPBACK, _core_port, timeout=_SCRAPE_SECONDS)) as connection:
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            logger.warning("the metrics of Temporal's SDK cannot be had: %s", error)
            return b""
