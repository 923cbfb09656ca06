"""One command: its job made, watched to its end or its deadline, cancelled if need be, and its end told."""

from asyncio import CancelledError, shield
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
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

_NOTHING: Final = RawValue(Payload())
_CANCELED: Final = "CANCELED"
_TIMED_OUT: Final = "TIMED_OUT"


class DeviceCommandStatus(BaseModel):
    """The answer to the `status` query, and what a run returns."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)

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
    """The workflow of a command, whose id is its job's (see the contract, "Shadow and commands").

    It takes its argument as it was sent: what is no command ends the run in words, and blocks nothing.
    """

    @workflow.init
    def __init__(self, argument: RawValue = _NOTHING) -> None:
        self._job_id = workflow.info().workflow_id
        self._command: Command | None = None
        self._plan: CommandPlan | None = None
        self._job_arn: str | None = None
        self._end: CommandEnd | None = None
        self._cancelled = False
        self._step = "reading the command"
        self._at_work: ActivityHandle[Any] | None = None
        # Why the job could not be made, or not be cancelled, where that was no answer for good.
        self._hindrance: str | None = None

    @workflow.run
    async def run(self, argument: RawValue = _NOTHING) -> DeviceCommandStatus:
        """Carry the command out, and return how it ended; it fails for no reason of AWS's or the device's.

        Args:
            argument: a command, as JSON.
        """
        try:
            self._command = command = Command.from_json(argument.payload.data)
        except InvalidCommandError as error:
            # Whom to tell it to is not known either.
            self._end = CommandEnd(status=FailureCode.INVALID_COMMAND, reason=str(error))
        else:
            self._end = await self._carry_out(command)
            await self._tell(command, self._end)
        self._show("ended")
        return self.status()

    @workflow.signal(dynamic=True)
    def on_signal(self, name: str, _arguments: Sequence[RawValue]) -> None:
        """Take any signal at all; a cancellation ends what is at work at once, and may carry anything."""
        if name != CANCEL_SIGNAL:
            workflow.logger.warning("signal ignored: must be %s", CANCEL_SIGNAL)
            return
        self._cancelled = True
        if self._at_work is not None:
            self._at_work.cancel()

    @workflow.query(name=STATUS_QUERY)
    def status(self) -> DeviceCommandStatus:
        """Where the command stands."""
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
            plan = await self._interruptible(
                CommandActivities.prepare_command,
                command,
                aws_step(self._titled("Find the target"), PREPARATION_RETRY_LIMIT),
            )
        except ActivityError as error:
            return _failed(error, PREPARATION_RETRY_LIMIT)
        if plan is None:
            return CommandEnd(status=_CANCELED, reason="cancelled before it had a job")
        self._know(plan)
        deadline = workflow.info().start_time + timedelta(seconds=plan.tracking_seconds)
        order = JobOrder(job_id=self._job_id, command=command, plan=plan, deadline=deadline)
        try:
            await self._make_job(order)
        except ActivityError as error:
            return _failed(error, timedelta(seconds=plan.tracking_seconds))
        standing = await self._watch_job(order)
        if standing is None or not standing.over:
            on_request = self._cancelled
            standing = await self._cancel_job(order)
            if not standing.over or standing.status == _CANCELED:
                return self._closed(standing, plan, on_request=on_request)
        return CommandEnd(
            status=standing.status or "",
            outcome="succeeded" if standing.succeeded else None,
            reason=standing.reason,
            status_details=standing.status_details,
            counts=standing.counts,
        )

    async def _make_job(self, order: JobOrder) -> None:
        """Make the job. Where this is cancelled, or runs out of time, it may have been made all the same."""
        left = order.deadline - workflow.now()
        if left <= timedelta():
            return
        try:
            self._job_arn = await self._interruptible(
                CommandActivities.create_job,
                order,
                aws_step(self._titled("Make the job"), left + DEADLINE_GRACE),
            )
        except ActivityError as error:
            if isinstance(error.cause, ApplicationError) and error.cause.non_retryable:
                raise
            self._hindrance = failure_of(error, left.total_seconds())[1]

    async def _watch_job(self, order: JobOrder) -> JobState | None:
        """The job's end, or how it was found at the deadline; None where it was not looked at until then."""
        if self._job_arn is None:
            return None
        left = max(order.deadline - workflow.now(), timedelta())
        try:
            return await self._interruptible(
                CommandActivities.watch_job,
                JobWatch(job_id=order.job_id, plan=order.plan, deadline=order.deadline),
                job_watch(self._titled("Watch the job"), job_queue(workflow.info().task_queue), left),
            )
        except ActivityError:
            return None  # no worker looked in time: it is looked at once more before it is cancelled

    async def _cancel_job(self, order: JobOrder) -> JobState:
        """Cancel the job in AWS, if there is one; how it was found."""
        continuous = order.plan.selection is TargetSelection.CONTINUOUS
        cancellation = JobCancellation(
            job_id=order.job_id,
            plan=order.plan,
            # Where a continuous job's window closes, devices that are at it may finish.
            force=self._cancelled or not continuous,
            unconfirmed=order.command if self._job_arn is None else None,
        )
        try:
            return await self._undisturbed(
                CommandActivities.cancel_job, cancellation, job_cancellation(self._titled("Cancel the job"))
            )
        except ActivityError as error:
            self._hindrance = failure_of(error, CANCELLATION_RETRY_LIMIT.total_seconds())[1]
            return JobState(status=None)

    def _closed(self, standing: JobState, plan: CommandPlan, *, on_request: bool) -> CommandEnd:
        """The end that was set to a command whose job did not end by itself."""
        if on_request:
            status, reason = _CANCELED, "cancelled on request"
        elif plan.selection is TargetSelection.CONTINUOUS and self._job_arn:
            return CommandEnd(status="COMPLETED", outcome="windowClosed", counts=standing.counts)
        else:
            hours = plan.tracking_seconds / 3600
            status, reason = _TIMED_OUT, f"not ended within {hours:g} h, and cancelled"
        return CommandEnd(
            status=status,
            reason=f"{reason}; {self._hindrance}" if self._hindrance else reason,
            status_details=standing.status_details,
            counts=standing.counts,
        )

    async def _tell(self, command: Command, end: CommandEnd) -> None:
        report = CommandReport(
            job_id=self._job_id,
            # The parameters are in no event, and may be long.
            command=command.model_copy(update={"parameters": {}}),
            end=end,
        )
        await self._undisturbed(
            CommandActivities.publish_command_end, report, transaction(self._titled("Tell the end"))
        )

    # How

    async def _interruptible(
        self, step: Callable[[Any, Argument], Result], argument: Argument, config: ActivityConfig
    ) -> Result | None:
        """Run a step; None where the command is cancelled before it or meanwhile."""
        # Cancelled by hand is the same as by signal; an attempt that was at work then can have ended well.
        if workflow.cancellation_reason() is not None:
            self._cancelled = True
        if self._cancelled:
            return None
        self._at_work = handle = workflow.start_activity_method(step, argument, **config)
        try:
            return await handle
        except (ActivityError, CancelledError) as error:
            if not is_cancelled_exception(error):
                raise
            self._cancelled = True
            return None
        finally:
            self._at_work = None

    async def _undisturbed(
        self, step: Callable[[Any, Argument], Result], argument: Argument, config: ActivityConfig
    ) -> Result:
        """Run a step to its end, also where the run is cancelled by hand meanwhile."""
        handle = workflow.start_activity_method(step, argument, **config)
        while True:
            try:
                return await shield(handle)
            except CancelledError:
                if handle.cancelled():
                    raise

    def _know(self, plan: CommandPlan) -> None:
        """Keep whom the command is for, and have a device's commands found by it."""
        self._plan = plan
        if plan.thing_name is not None:
            workflow.upsert_search_attributes(
                [TENANT_ID.value_set(tenant_key(plan.tenant_id)), THING_NAME.value_set(plan.thing_name)]
            )

    def _titled(self, step: str) -> str:
        """Show the step in the UI, and give what stands there beside its activity (200 bytes at most)."""
        self._show(step)
        thing_name = self._plan.thing_name if self._plan else None
        return f"{step}: {thing_name}" if thing_name else step

    def _show(self, step: str) -> None:
        """Keep what the Temporal UI shows of this run."""
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
    """The end of a command that never came to a job: its status is the failure's code."""
    code, reason = failure_of(error, retried.total_seconds())
    return CommandEnd(status=code, reason=reason)
