"""A request as the first span of its trace, or as the next of the caller's, where traces are kept."""

from collections.abc import Sequence

from opentelemetry.metrics import NoOpMeterProvider
from starlette.middleware import Middleware

from orchestration.client import is_tracing


def tracing() -> Sequence[Middleware]:
    """What every request passes to be traced; nothing where no traces are kept."""
    if not is_tracing():
        return []
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    return [
        Middleware(
            OpenTelemetryMiddleware,
            excluded_urls="/healthz$,/readyz$,/metrics$",
            exclude_spans=["receive", "send"],
            # Whatever headers its own variables have it keep, never a key.
            http_capture_headers_sanitize_fields=["authorization", "cookie"],
            meter_provider=NoOpMeterProvider(),
        )
    ]
