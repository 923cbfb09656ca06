"""Tracing of requests: each is a span of the caller's trace, or the first span of a new one."""

from collections.abc import Sequence

from opentelemetry.metrics import NoOpMeterProvider
from starlette.middleware import Middleware

from orchestration.client import is_tracing


def tracing_middleware() -> Sequence[Middleware]:
    """Return the middleware that traces requests, or none if tracing is off."""
    if not is_tracing():
        return []
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    return [
        Middleware(
            OpenTelemetryMiddleware,
            excluded_urls="/healthz$,/readyz$,/metrics$",
            exclude_spans=["receive", "send"],
            # OpenTelemetry's environment variables may select headers to record; keys must not be recorded.
            http_capture_headers_sanitize_fields=["authorization", "cookie"],
            meter_provider=NoOpMeterProvider(),
        )
    ]
