"""The activities of a command: find the target, create, watch and cancel the job, publish the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session
from temporalio import activity

from activities.bindings import transaction
from aws.errors import AwsError, QuotaExceededError
from aws.groups import ThingGroups
from aws.jobs import CreatedJob, Jobs
from db.bindings import newest_binding
from db.command_groups import mark_group_used, use_group
from db.models import AwsThingBinding, DeviceStateRow
from db.outbox import enqueue
from domain.command import (
    DOCUMENT_LIMIT_BYTES,
    Command,
    TargetKind,
    dynamic_group_name,
    is_job_id_of,
)
from domain.failure import FailureCode, PermanentError, RetryLaterError, StepError
from domain.fault import Fault
from domain.job import (
    CommandPlan,
    CommandReport,
    JobCancellation,
    JobOrder,
    JobState,
    JobWatch,
    TargetSelection,
)
from domain.outgoing_event import DeviceCommandCompleted, DeviceCommandFailed
from domain.provisioning_status import ProvisioningStatus
from observability.metrics import DISPATCH_ERRORS, JOBS_COMPLETED, JOBS_DISPATCHED, JOBS_FAILED, JOBS_REUSED

# Short: an operator may be granting the missing permission right now.
_REFUSED_RETRY_SECONDS: Final = 30.0


class _Target(NamedTuple):
    """The target of a command's job in AWS; the Thing and its tenant where the target is a device."""

    arn: str
    selection: TargetSelection
    thing_name: str | None = None
    tenant_id: UUID | None = None


class CommandActivities:
    """The steps of a command.

    Args:
        engine: the bridge's database.
        jobs: the jobs in AWS.
        groups: the thing groups in AWS.
        job_id_prefix: the prefix of the names of the bridge's dynamic groups.
        tracking: the longest time that a command may run.
        poll: the interval between two requests for a job's state.
    """

    def __init__(
        self,
        engine: Engine,
        jobs: Jobs,
        groups: ThingGroups,
        *,
        job_id_prefix: str,
        tracking: timedelta,
        poll: timedelta,
    ) -> None:
        self._engine = engine
        self._jobs = jobs
        self._groups = groups
        self._job_id_prefix = job_id_prefix
        self._tracking_seconds = tracking.total_seconds()
        self._poll_seconds = poll.total_seconds()

    @activity.defn(name="prepare_command", no_thread_cancel_exception=True)
    def prepare_command(self, command: Command) -> CommandPlan:
        """Check a command and find its target in AWS.

        Raises:
            PermanentError: the command is not valid, or its target does not exist.
            RetryLaterError: AWS is still building the dynamic group of the command's query.
            AwsError: AWS refused a request or did not answer.
        """
        if fault := _workflow_id_fault(command) or command.fault():
            raise PermanentError(FailureCode.INVALID_COMMAND, str(fault))
        target = self._find_target(command)
        return CommandPlan(
            target_arn=target.arn,
            selection=target.selection,
            thing_name=target.thing_name,
            tenant_id=target.tenant_id,
            tracking_seconds=self._tracking_seconds,
            poll_seconds=self._poll_seconds,
        )

    @activity.defn(name="create_job", no_thread_cancel_exception=True)
    def create_job(self, order: JobOrder) -> str:
        """Create the command's job, or find the same job of an earlier attempt, and return its ARN.

        Raises:
            PermanentError: the device no longer has an Active binding, the target no longer exists, or
                another job has the id.
            RetryLaterError: the account has as many open jobs as AWS allows.
            AwsError: AWS refused a request or did not answer.
        """
        tenant_id = order.command.tenant_id or order.plan.tenant_id
        try:
            job = self._create_job(order)
        except StepError:
            DISPATCH_ERRORS.add(tenant_id, "create_job")
            raise
        (JOBS_DISPATCHED if job.is_new else JOBS_REUSED).add(tenant_id, "create_job")
        return job.arn

    @activity.defn(name="watch_job", no_thread_cancel_exception=True)
    def watch_job(self, watch: JobWatch) -> JobState:
        """Describe the job once; return its state if it has ended or the deadline is reached.

        Otherwise the attempt fails and Temporal retries it, since retries add nothing to the workflow's
        history, however many there are.

        Raises:
            RetryLaterError: the job is open, or AWS refuses to describe it.
            AwsError: AWS did not answer.
        """
        plan = watch.plan
        wait = _seconds_until(watch.deadline, at_most=plan.poll_seconds)
        # Temporal fails the activity at once if the next retry would be after its own timeout, and the job
        # would be cancelled early. So no delay is longer than the time to the deadline.
        with _retry_if_refused(wait if wait > 0 else min(plan.poll_seconds, _REFUSED_RETRY_SECONDS)):
            state = self._jobs.describe(watch.job_id, plan.thing_name)
        wait = _seconds_until(watch.deadline, at_most=plan.poll_seconds)
        if state.over or wait <= 0:
            return state
        # The last delay is shortened, so that the last attempt is at the deadline and not before it.
        raise RetryLaterError("JobOpen", f"the job is {state.status}", wait)

    @activity.defn(name="cancel_job", no_thread_cancel_exception=True)
    def cancel_job(self, cancellation: JobCancellation) -> JobState:
        """Cancel the job unless it has ended.

        Returns:
            The end that the job reached by itself, or else its state before the cancellation.

        Raises:
            RetryLaterError: AWS refuses to describe or to cancel the job.
            AwsError: AWS did not answer.
        """
        job_id, plan, command = cancellation.job_id, cancellation.plan, cancellation.unconfirmed
        with _retry_if_refused(min(plan.poll_seconds, _REFUSED_RETRY_SECONDS)):
            if command is not None and not self._jobs.exists(
                job_id, target_arn=plan.target_arn, document=command.document_json()
            ):
                return JobState(status=None)
            return self._jobs.cancel(job_id, plan.thing_name, force=cancellation.force)

    @activity.defn(name="publish_command_end", no_thread_cancel_exception=True)
    def publish_command_end(self, report: CommandReport) -> None:
        """Enqueue the event of a command's end, once."""
        command, end = report.command, report.end
        target = command.target
        with transaction(self._engine) as session:
            binding = _binding_of(session, command) if target.kind is TargetKind.DEVICE else None
            content = {
                # None for a device of another tenant: an event creates the device's row, which binds the
                # device to its tenant for good.
                "device_id": binding.device_id if binding else None,
                "tenant_id": binding.tenant_id if binding else command.tenant_id,
                "thing_name": binding.thing_name if binding else None,
                "job_id": report.job_id,
                "correlation_id": command.correlation_id,
                "operation": _printable(command.operation),
                "target": target.model_copy(update={"value": _printable(target.value)}),
                "status_details": end.status_details,
                "counts": end.counts,
            }
            event = (
                DeviceCommandCompleted(**content, outcome=end.outcome)
                if end.outcome
                else DeviceCommandFailed(**content, status=end.status, reason=end.reason or end.status)
            )
            is_new = enqueue(session, event, report.job_id)
            if target.kind is TargetKind.QUERY:
                mark_group_used(session, dynamic_group_name(self._job_id_prefix, target.value))
        if is_new:
            (JOBS_COMPLETED if end.outcome else JOBS_FAILED).add(event.tenant_id, "publish_command_end")

    def _find_target(self, command: Command) -> _Target:
        kind, value = command.target.kind, command.target.value
        if kind is TargetKind.GROUP:
            return _Target(self._groups.find(value), TargetSelection.SNAPSHOT)
        if kind is TargetKind.QUERY:
            name = dynamic_group_name(self._job_id_prefix, value)
            # Committed before any request to AWS, so that the sweep does not delete the group meanwhile.
            with transaction(self._engine) as session:
                use_group(session, name, value)
            return _Target(self._groups.get_or_create_dynamic(name, value), TargetSelection.CONTINUOUS)
        return self._active_device(command)

    def _create_job(self, order: JobOrder) -> CreatedJob:
        command, plan = order.command, order.plan
        if command.target.kind is TargetKind.DEVICE:
            # A quota of AWS can have delayed this for days: another device can own the Thing's name by now.
            self._active_device(command)
        try:
            return self._jobs.create(
                order.job_id,
                target_arn=plan.target_arn,
                document=command.document_json(),
                selection=plan.selection,
            )
        except QuotaExceededError as error:
            wait = _seconds_until(order.deadline, at_most=plan.poll_seconds)
            if wait <= 0:
                raise
            raise RetryLaterError("JobLimitReached", error.message, wait) from None

    def _active_device(self, command: Command) -> _Target:
        """Return the Thing of the device that a command is for.

        Raises:
            PermanentError: the device has no Active binding, or is being decommissioned: a job created now
                would not be deleted.
        """
        with Session(self._engine) as session:
            binding = _binding_of(session, command)
            state = session.get(DeviceStateRow, binding.device_id) if binding else None
        status = binding.provisioning_status if binding else None
        if state is not None and state.decommissioned_at is not None:
            status = ProvisioningStatus.DECOMMISSIONED
        if binding is None or binding.thing_arn is None or status is not ProvisioningStatus.ACTIVE:
            reason = f"device {command.target.value} has no Active binding"
            raise PermanentError(
                FailureCode.NO_SUCH_TARGET, f"{reason}: it is {status}" if status else reason
            )
        return _Target(binding.thing_arn, TargetSelection.SNAPSHOT, binding.thing_name, binding.tenant_id)


def _binding_of(session: Session, command: Command) -> AwsThingBinding | None:
    """Return the newest binding of a command's device; None where it belongs to another tenant."""
    if command.target.fault():
        return None
    binding = newest_binding(session, UUID(command.target.value))
    if binding is None or command.tenant_id not in {None, binding.tenant_id}:
        return None
    return binding


@contextmanager
def _retry_if_refused(seconds: float) -> Iterator[None]:
    """Make every error of AWS retryable: the job continues meanwhile, and a permission can be granted."""
    try:
        yield
    except AwsError as error:
        if error.retryable:
            raise
        raise RetryLaterError(error.kind, str(error), seconds) from None


def _seconds_until(deadline: datetime, *, at_most: float) -> float:
    return min(at_most, (deadline - datetime.now(UTC)).total_seconds())


def _workflow_id_fault(command: Command) -> Fault | None:
    workflow_id = activity.info().workflow_id
    if workflow_id is not None and is_job_id_of(command.correlation_id, workflow_id):
        return None
    return Fault(field="correlationId", reason=f"the workflow's id must be PREFIX-{command.correlation_id}")


def _printable(text: str) -> str:
    """Return a shortened text without control characters: a command can be rejected because it has them."""
    shown = text[:DOCUMENT_LIMIT_BYTES]
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in shown)
