"""One trace through the workflows and activities of a run. Imported only where traces are recorded.

Of the SDK's two implementations this uses `TracingInterceptor`: it is the stable one, it creates no spans in
a replay, and it sends a workflow's spans at once, although a device's run can stay open for weeks.
"""

from hashlib import sha256

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import get_tracer_provider
from temporalio import workflow
from temporalio.contrib.opentelemetry import TracingInterceptor, TracingWorkflowInboundInterceptor
from temporalio.worker import WorkflowInboundInterceptor, WorkflowInterceptorClassInput


def tracing_interceptor() -> TracingInterceptor:
    """Return the interceptor for a Temporal client; the workers of the client use it too."""
    return RunTracingInterceptor(always_create_workflow_spans=True)


def flush_traces() -> None:
    """Send the recorded spans and stop recording; call it at the end of the process."""
    provider = get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


class RunTracingInterceptor(TracingInterceptor):
    """Temporal's interceptor, with one trace for a run whose starter sent no headers."""

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002
    ) -> type[TracingWorkflowInboundInterceptor]:
        """Return the interceptor of a workflow."""
        super().workflow_interceptor_class(input)
        return _RunTracing


class _RunTracing(TracingWorkflowInboundInterceptor):
    def __init__(self, next: WorkflowInboundInterceptor) -> None:  # noqa: A002
        super().__init__(next)
        self.text_map_propagator = _TraceOfRun(self.text_map_propagator)


class _TraceOfRun(TextMapPropagator):
    """Propagate a trace id that is derived from the run id where the starter sent no trace.

    Otherwise each span of the run would begin a trace of its own. The run id makes a replay on another worker
    continue the same trace. The parent span that the id names is never sent.
    """

    def __init__(self, wrapped: TextMapPropagator) -> None:
        self._wrapped = wrapped

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        self._wrapped.inject(carrier, context, setter)
        if not carrier:
            digest = sha256(workflow.info().run_id.encode()).hexdigest()
            setter.set(carrier, "traceparent", f"00-{digest[:32]}-{digest[32:48]}-01")

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        return self._wrapped.extract(carrier, context, getter)

    @property
    def fields(self) -> set[str]:
        return self._wrapped.fields
