"""The interceptor that sets the log context of activities and measures the steps of a saga."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from domain.command import Command, TargetKind
from domain.job import CommandReport, JobCancellation, JobOrder, JobWatch
from domain.lifecycle_event import LifecycleEvent
from domain.names import thing_name
from domain.saga import ApplyEventRequest, Device, FailureReport, TeardownPlan
from observability.context import set_context
from observability.metrics import STEP_DURATION

_Ids = Mapping[str, UUID | str | None]


class LogContextInterceptor(Interceptor):
    """Set the log context of each attempt at an activity, from the ids in its input."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap the activity."""
        return _WithLogContext(next)


class _WithLogContext(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        """Run the activity."""
        info, argument = activity.info(), input.args[0] if input.args else None
        # Not reset: the task ends with the attempt, and the SDK logs the attempt's failure in it.
        set_context(workflow_id=info.workflow_id, run_id=info.workflow_run_id, **_ids_in(argument))
        result = await super().execute_activity(input)
        if isinstance(argument, Device | TeardownPlan):
            # The server's clock and this one may differ a little.
            duration = max((datetime.now(UTC) - info.scheduled_time).total_seconds(), 0)
            STEP_DURATION.record(_device_in(argument).tenant_id, info.activity_type, duration)
        return result


def _device_in(argument: Device | TeardownPlan | FailureReport) -> Device:
    return argument if isinstance(argument, Device) else argument.device


def _ids_in(argument: object) -> _Ids:
    """Return the ids in an activity's input."""
    match argument:
        case Device() | TeardownPlan() | FailureReport():
            device = _device_in(argument)
            return {
                "tenant_id": device.tenant_id,
                "device_id": device.device_id,
                "thing_name": device.thing_name,
            }
        case ApplyEventRequest(device_id=device_id, event=event):
            return {"device_id": device_id} | (_ids_of_event(event) if event else {})
        case Command():
            return _ids_of(argument)
        case JobOrder(command=command, plan=plan):
            return {**_ids_of(command), "tenant_id": plan.tenant_id, "thing_name": plan.thing_name}
        case JobWatch(plan=plan) | JobCancellation(plan=plan):
            return {"tenant_id": plan.tenant_id, "thing_name": plan.thing_name}
        case CommandReport(command=command):
            return _ids_of(command)
        case _:
            return {}


def _ids_of_event(event: LifecycleEvent) -> dict[str, UUID | str | None]:
    name = thing_name(event.tenant_id, event.serial_number) if event.serial_number else None
    return {"tenant_id": event.tenant_id, "thing_name": name}


def _ids_of(command: Command) -> _Ids:
    device_id = command.target.value if command.target.kind is TargetKind.DEVICE else None
    return {"tenant_id": command.tenant_id, "device_id": device_id}
