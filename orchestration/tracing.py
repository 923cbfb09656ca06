"""One trace through workflows and activities, where any are kept; loaded there alone.

Of the SDK's two ways this is `TracingInterceptor`: it is the stable one, shows a workflow's spans at once,
where a device's run may stay open for weeks, and makes none in a replay. Its headers are optional.
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
    """By what a Temporal client, and every worker on it, takes part in traces."""
    return RunTracingInterceptor(always_create_workflow_spans=True)


def flush_traces() -> None:
    """Send what has been traced; the last thing a process does with them."""
    provider = get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


class RunTracingInterceptor(TracingInterceptor):
    """Temporal's own, that also gives one trace to a run whose starter sent no headers."""

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002
    ) -> type[TracingWorkflowInboundInterceptor]:
        """Add what a workflow's spans are made with."""
        super().workflow_interceptor_class(input)
        return _RunTracing


class _RunTracing(TracingWorkflowInboundInterceptor):
    def __init__(self, next: WorkflowInboundInterceptor) -> None:  # noqa: A002
        super().__init__(next)
        self.text_map_propagator = _TraceOfRun(self.text_map_propagator)


class _TraceOfRun(TextMapPropagator):
    """Where there is no trace to go on with, each span of the run would begin one of its own.

    This one is made of the run's id, so that a replay on another worker goes on with the same. The span it
    names as all others' parent is never sent.
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
