"""Export of traces over OTLP."""

import functools
import os
from typing import Final

from opentelemetry import trace

_ENDPOINT_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def configure_tracing() -> None:
    """Export traces where an environment variable of OpenTelemetry names an endpoint."""
    if any(os.environ.get(name) for name in _ENDPOINT_VARIABLES):
        _install_tracer_provider()


@functools.cache
def _install_tracer_provider() -> None:
    # Imported only where traces are exported: loading takes half a second, longer than most commands run.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource({"service.name": "thingbridge"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
