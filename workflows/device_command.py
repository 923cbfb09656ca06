"""The workflow of one command: create its job, watch it, cancel it at the deadline, publish the end."""

from asyncio import CancelledError, shield
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.workflow import ActivityConfig, ActivityHandle

from activities.commands import CommandActivities
from domain.command import Command, CommandTarget, InvalidCommandError
from domain.failure import FailureCode
from domain.job import (
    CommandEnd,
    CommandPlan,
    CommandReport,
    JobCancellation,
    JobOrder,
    JobState,
    JobWatch,
    TargetSelection,
)
from domain.model import CamelModel
from domain.names import (
    CANCEL_SIGNAL,
    DEVICE_COMMAND,
    STATUS_QUERY,
    job_queue,
    tenant_key,
)
from orchestration.failures import failure_of
from orchestration.search_attributes import TENANT_ID, THING_NAME
from workflows.policies import (
    CANCELLATION_RETRY_LIMIT,
    DEADLINE_GRACE,
    PREPARATION_RETRY_LIMIT,
    aws_step,
    job_cancellation,
    job_watch,
    transaction,
)

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_NO_ARGUMENT: Final = RawValue(Payload())
_CANCELED: Final = "CANCELED"
_TIMED_OUT: Final = "TIMED_OUT"


class DeviceCommandStatus(CamelModel):
    """The response of the `status` query and the result of a run."""

    job_id: str
    operation: str | None
    target: CommandTarget | None
    thing_name: str | None
    job_arn: str | None
    step: str
    status: str | None
    """None until the command has ended."""
    outcome: Literal["succeeded", "windowClosed"] | None
    reason: str | None
    status_details: dict[str, str]
    counts: dict[str, int] | None


@workflow.defn(name=DEVICE_COMMAND)
class DeviceCommand:
    """The workflow of a command; its id is the job's id (see docs/reference.md, "Shadow and commands").

    The argument is read as raw JSON: an invalid command ends the run with a reason, whereas a typed argument
    that cannot be decoded would block it.
    """

    @workflow.init
    def __init__(self, argument: RawValue = _NO_ARGUMENT) -> None:
        self._job_id = workflow.info().workflow_id
        self._command: Command | None = None
        self._plan: CommandPlan | None = None
        self._job_arn: str | None = None
        self._end: CommandEnd | None = None
        self._cancelled = False
        self._step = "reading the command"
        self._running_activity: ActivityHandle[Any] | None = None
        # The last error of a job that could not be created or cancelled before the retries ran out.
        self._last_error: str | None = None

    @workflow.run
    async def run(self, argument: RawValue = _NO_ARGUMENT) -> DeviceCommandStatus:
        """Carry out the command and return its end. An error of AWS or of the device does not fail the run.

        Args:
            argument: a command, as JSON.
        """
        try:
            self._command = command = Command.from_json(argument.payload.data)
        except InvalidCommandError as error:
            # No event is published: the command names no target that the event could be about.
            self._end = CommandEnd(status=FailureCode.INVALID_COMMAND, reason=str(error))
        else:
            self._end = await self._carry_out(command)
            await self._publish_end(command, self._end)
        self._show("ended")
        return self.status()

    @workflow.signal(dynamic=True)
    def on_signal(self, name: str, _arguments: Sequence[RawValue]) -> None:
        """Accept any signal; `cancel`, with any arguments, cancels the running activity at once."""
        if name != CANCEL_SIGNAL:
            workflow.logger.warning("signal ignored: must be %s", CANCEL_SIGNAL)
            return
        self._cancelled = True
        if self._running_activity is not None:
            self._running_activity.cancel()

    @workflow.query(name=STATUS_QUERY)
    def status(self) -> DeviceCommandStatus:
        """Return the current state of the command."""
        command, end = self._command, self._end
        return DeviceCommandStatus(
            job_id=self._job_id,
            operation=command.operation if command else None,
            target=command.target if command else None,
            thing_name=self._plan.thing_name if self._plan else None,
            job_arn=self._job_arn,
            step=self._step,
            status=end.status if end else None,
            outcome=end.outcome if end else None,
            reason=end.reason if end else None,
            status_details=end.status_details if end else {},
            counts=end.counts if end else None,
        )

    async def _carry_out(self, command: Command) -> CommandEnd:
        try:
            plan = await self._run_unless_cancelled(
                CommandActivities.prepare_command,
                command,
                aws_step(self._begin("Find the target"), PREPARATION_RETRY_LIMIT),
            )
        except ActivityError as error:
            return _failed(error, PREPARATION_RETRY_LIMIT)
        if plan is None:
            return CommandEnd(status=_CANCELED, reason="cancelled before it had a job")
        self._store_plan(plan)
        deadline = workflow.info().start_time + timedelta(seconds=plan.tracking_seconds)
        order = JobOrder(job_id=self._job_id, command=command, plan=plan, deadline=deadline)
        try:
            await self._create_job(order)
        except ActivityError as error:
            return _failed(error, timedelta(seconds=plan.tracking_seconds))
        state = await self._watch_job(order)
        if state is None or state.status is None or not state.over:
            on_request = self._cancelled
            state = await self._cancel_job(order)
            if state.status is None or not state.over or state.status == _CANCELED:
                return self._end_of_cancelled_job(state, plan, on_request=on_request)
        return CommandEnd(
            status=state.status,
            outcome="succeeded" if state.succeeded else None,
            reason=state.reason,
            status_details=state.status_details,
            counts=state.counts,
        )

    async def _create_job(self, order: JobOrder) -> None:
        """Create the job. AWS may have created it even if this is cancelled or the retries run out."""
        left = order.deadline - workflow.now()
        if left <= timedelta():
            return
        try:
            self._job_arn = await self._run_unless_cancelled(
                CommandActivities.create_job,
                order,
                aws_step(self._begin("Create the job"), left + DEADLINE_GRACE),
            )
        except ActivityError as error:
            if isinstance(error.cause, ApplicationError) and error.cause.non_retryable:
                raise
            self._last_error = failure_of(error, left.total_seconds())[1]

    async def _watch_job(self, order: JobOrder) -> JobState | None:
        """Return the job's state at its end or at the deadline; None where it could not be described."""
        if self._job_arn is None:
            return None
        left = max(order.deadline - workflow.now(), timedelta())
        try:
            return await self._run_unless_cancelled(
                CommandActivities.watch_job,
                JobWatch(job_id=order.job_id, plan=order.plan, deadline=order.deadline),
                job_watch(self._begin("Watch the job"), job_queue(workflow.info().task_queue), left),
            )
        except ActivityError:
            return None  # no worker was free in time; the job is described again before it is cancelled

    async def _cancel_job(self, order: JobOrder) -> JobState:
        """Cancel the job in AWS, if it exists, and return its state."""
        continuous = order.plan.selection is TargetSelection.CONTINUOUS
        cancellation = JobCancellation(
            job_id=order.job_id,
            plan=order.plan,
            # When the window of a continuous job closes, devices that have started it may finish.
            force=self._cancelled or not continuous,
            unconfirmed=order.command if self._job_arn is None else None,
        )
        try:
            return await self._run_to_end(
                CommandActivities.cancel_job, cancellation, job_cancellation(self._begin("Cancel the job"))
            )
        except ActivityError as error:
            self._last_error = failure_of(error, CANCELLATION_RETRY_LIMIT.total_seconds())[1]
            return JobState(status=None)

    def _end_of_cancelled_job(self, state: JobState, plan: CommandPlan, *, on_request: bool) -> CommandEnd:
        """Return the end of a command whose job was cancelled on request or at the deadline."""
        if on_request:
            status, reason = _CANCELED, "cancelled on request"
        elif plan.selection is TargetSelection.CONTINUOUS and self._job_arn:
            return CommandEnd(status="COMPLETED", outcome="windowClosed", counts=state.counts)
        else:
            hours = plan.tracking_seconds / 3600
            status, reason = _TIMED_OUT, f"not ended within {hours:g} h, and cancelled"
        return CommandEnd(
            status=status,
            reason=f"{reason}; {self._last_error}" if self._last_error else reason,
            status_details=state.status_details,
            counts=state.counts,
        )

    async def _publish_end(self, command: Command, end: CommandEnd) -> None:
        report = CommandReport(
            job_id=self._job_id,
            # No event contains the parameters, which can be long.
            command=command.model_copy(update={"parameters": {}}),
            end=end,
        )
        await self._run_to_end(
            CommandActivities.publish_command_end, report, transaction(self._begin("Publish the end"))
        )

    # Running activities, and showing the progress in the Temporal UI

    async def _run_unless_cancelled(
        self, step: Callable[[Any, Argument], Result], argument: Argument, config: ActivityConfig
    ) -> Result | None:
        """Run an activity; return None if the command was cancelled before or during the activity."""
        # The `cancel` signal and the cancellation of the workflow are treated alike. An attempt that runs at
        # that moment can still succeed.
        if workflow.cancellation_reason() is not None:
            self._cancelled = True
        if self._cancelled:
            return None
        self._running_activity = handle = workflow.start_activity_method(step, argument, **config)
        try:
            return await handle
        except (ActivityError, CancelledError) as error:
            if not is_cancelled_exception(error):
                raise
            self._cancelled = True
            return None
        finally:
            self._running_activity = None

    async def _run_to_end(
        self, step: Callable[[Any, Argument], Result], argument: Argument, config: ActivityConfig
    ) -> Result:
        """Run an activity to its end, even if the workflow is cancelled meanwhile."""
        handle = workflow.start_activity_method(step, argument, **config)
        while True:
            try:
                return await shield(handle)
            except CancelledError:
                if handle.cancelled():
                    raise

    def _store_plan(self, plan: CommandPlan) -> None:
        """Store the plan, and set the search attributes by which a device's commands are found."""
        self._plan = plan
        if plan.thing_name is not None:
            workflow.upsert_search_attributes(
                [TENANT_ID.value_set(tenant_key(plan.tenant_id)), THING_NAME.value_set(plan.thing_name)]
            )

    def _begin(self, step: str) -> str:
        """Show the step in the Temporal UI, and return the summary of its activity (200 bytes at most)."""
        self._show(step)
        thing_name = self._plan.thing_name if self._plan else None
        return f"{step}: {thing_name}" if thing_name else step

    def _show(self, step: str) -> None:
        """Store the step, and set the details that the Temporal UI shows of this run."""
        self._step = step
        lines = [f"**{step}**", f"Job: `{self._job_arn or self._job_id}`"]
        if self._command:
            lines += [
                f"Operation: `{self._command.operation}`",
                f"Target: {self._command.target.kind} `{self._command.target.value}`",
            ]
        if self._plan and self._plan.thing_name:
            lines.append(f"Thing: `{self._plan.thing_name}`")
        if self._end:
            lines.append(f"**{self._end.status}** {self._end.outcome or self._end.reason or ''}".rstrip())
        workflow.set_current_details("\n\n".join(lines))


def _failed(error: ActivityError, retried: timedelta) -> CommandEnd:
    """Return the end of a command without a job: its status is the failure's code."""
    code, reason = failure_of(error, retried.total_seconds())
    return CommandEnd(status=code, reason=reason)
