"""Metrics and traces of the calls to AWS, taken from botocore's events."""

import time
from typing import Any, Final

from opentelemetry.trace import SpanKind, Status, StatusCode, get_tracer

from aws.errors import ThrottledError, result_label
from observability.context import current_context
from observability.metrics import AWS_CALL_DURATION, AWS_CALLS, AWS_THROTTLES

_NO_ANSWER: Final = "no_answer"
_CALL: Final = "thingbridge_call"

_tracer = get_tracer("thingbridge.aws")


def observe_calls(events: Any) -> None:
    """Count, time and trace the calls of every client that the session creates after this.

    Parameters, responses and the messages of botocore's exceptions can contain private keys. So only the
    error code is used, and OpenTelemetry's instrumentation of botocore, which records messages, is not.

    Args:
        events: the event emitter of the botocore session.
    """

    def on_request(model: Any, context: dict[str, Any], **_: Any) -> None:
        service, operation = model.service_model.service_name, model.name
        span = _tracer.start_span(
            f"{service}.{operation}",
            kind=SpanKind.CLIENT,
            attributes={"rpc.system": "aws-api", "rpc.service": service, "rpc.method": operation},
        )
        context[_CALL] = service, operation, span, time.perf_counter()

    def end(context: dict[str, Any], result: str, error: str) -> None:
        service, operation, span, began = context.pop(_CALL)
        tenant = current_context().get("tenant_id")
        AWS_CALL_DURATION.record(tenant, operation, time.perf_counter() - began, service=service)
        AWS_CALLS.add(tenant, operation, service=service, result=result)
        if result == ThrottledError.result:
            AWS_THROTTLES.add(tenant, operation, service=service)
        if error:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR, result))
        span.end()

    def on_response(http_response: Any, parsed: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        code = str(parsed.get("Error", {}).get("Code", ""))
        result = result_label(code, http_response.status_code)
        end(context, result, "" if result == "ok" else code or str(http_response.status_code))

    def on_error(exception: Exception, context: dict[str, Any], **_: Any) -> None:
        end(context, _NO_ANSWER, type(exception).__name__)

    events.register("before-call", on_request)
    events.register("after-call", on_response)
    events.register("after-call-error", on_error)
