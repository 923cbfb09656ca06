"""A command's way through AWS IoT Jobs: target found, job made, looked at and cancelled, end told."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session
from temporalio import activity

from activities.bindings import transaction
from activities.command_groups import CommandGroupActivities
from aws.clients import AwsClients
from aws.errors import (
    AlreadyExistsError,
    AwsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    QuotaExceededError,
)
from aws.jobs import CANCELED, look_at_job
from db.bindings import newest_binding
from db.command_groups import mark_group_used
from db.models import AwsThingBinding, DeviceStateRow
from db.outbox import put
from domain.command import (
    DOCUMENT_LIMIT_BYTES,
    Command,
    TargetKind,
    dynamic_group_name,
    is_job_id_of,
)
from domain.failure import FailureCode, PermanentError, RetryLaterError, StepError
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

# How soon to ask again for what AWS did not grant: an operator is likely at it.
_REFUSED_SECONDS: Final = 30.0


class CommandActivities:
    """The steps of a command.

    Args:
        aws: the way to AWS.
        engine: the bridge's database.
        groups: the thing groups.
        job_id_prefix: how the names of the bridge's dynamic groups begin.
        tracking: how long a command may take, from its start to its end.
        poll: how long between two looks at a job.
    """

    def __init__(
        self,
        aws: AwsClients,
        engine: Engine,
        groups: CommandGroupActivities,
        *,
        job_id_prefix: str,
        tracking: timedelta,
        poll: timedelta,
    ) -> None:
        self._aws = aws
        self._engine = engine
        self._groups = groups
        self._job_id_prefix = job_id_prefix
        self._tracking_seconds = tracking.total_seconds()
        self._poll_seconds = poll.total_seconds()

    @activity.defn(name="prepare_command", no_thread_cancel_exception=True)
    def prepare_command(self, command: Command) -> CommandPlan:
        """Check a command, and find in AWS whom it is for.

        Raises:
            ApplicationError: it can be carried out for nobody, or its target is not there.
        """
        job_id = activity.info().workflow_id or ""
        if not is_job_id_of(command.correlation_id, job_id):
            raise PermanentError(
                FailureCode.INVALID_COMMAND,
                f"correlationId: the workflow's id must be PREFIX-{command.correlation_id}",
            )
        if fault := command.fault():
            raise PermanentError(FailureCode.INVALID_COMMAND, fault)
        target = command.target
        if target.kind is TargetKind.QUERY:
            return self._plan(self._groups.for_query(target.value), TargetSelection.CONTINUOUS)
        if target.kind is TargetKind.GROUP:
            return self._plan(self._groups.find(target.value), TargetSelection.SNAPSHOT)
        binding = self._active_binding(command)
        return self._plan(binding.thing_arn or "", TargetSelection.SNAPSHOT, binding)

    @activity.defn(name="create_job", no_thread_cancel_exception=True)
    def create_job(self, order: JobOrder) -> str:
        """Make the command's job, and return its ARN; one that does the same already is this one.

        Raises:
            ApplicationError: the device is no longer there, another job bears the id, or AWS refuses it;
                retryable, while AWS holds as many jobs as it allows at once.
        """
        tenant_id = order.command.tenant_id or order.plan.tenant_id
        try:
            arn, made = self._make_job(order)
        except StepError:
            DISPATCH_ERRORS.add(tenant_id, "create_job")
            raise
        (JOBS_DISPATCHED if made else JOBS_REUSED).add(tenant_id, "create_job")
        return arn

    def _make_job(self, order: JobOrder) -> tuple[str, bool]:
        """The ARN of the command's job, and whether it was made now."""
        command, plan = order.command, order.plan
        if command.target.kind is TargetKind.DEVICE:
            # AWS may have had it wait for days: the Thing of that name can be another device's by now.
            self._active_binding(command)
        try:
            made = self._aws.call(
                self._aws.iot.create_job,
                jobId=order.job_id,
                targets=[plan.target_arn],
                document=command.document_json(),
                targetSelection=plan.selection.value,
            )
        except AlreadyExistsError as error:
            try:
                arn = self._own_job(order.job_id, command, plan)
            except NotFoundError:
                raise ConflictError("JobDeleted", f"gone since, to be made anew: {error.what}") from None
            if arn is None:
                raise PermanentError(
                    FailureCode.JOB_ID_TAKEN,
                    f"job {order.job_id} has another document, or is for another target",
                ) from None
            return arn, False
        except NotFoundError as error:
            raise PermanentError(
                FailureCode.NO_SUCH_TARGET, f"{plan.target_arn} is no longer there: {error.what}"
            ) from None
        except QuotaExceededError as error:
            wait = _until(order.deadline, at_most=plan.poll_seconds)
            if wait <= 0:
                raise
            raise RetryLaterError("JobLimitReached", error.what, wait) from None
        return made["jobArn"], True

    @activity.defn(name="watch_job", no_thread_cancel_exception=True)
    def watch_job(self, watch: JobWatch) -> JobState:
        """Look once at the job; return if it has ended or the deadline has come, else be retried.

        A retry adds nothing to the workflow's history, however many there are.
        """
        plan = watch.plan
        wait = _until(watch.deadline, at_most=plan.poll_seconds)
        # Past the deadline Temporal's own limit ends it. Up to there no wait may pass it: Temporal would end
        # the activity at once, and the job would be cancelled before its time.
        with _mendable(wait if wait > 0 else min(plan.poll_seconds, _REFUSED_SECONDS)):
            standing = look_at_job(self._aws, watch.job_id, plan.thing_name)
        wait = _until(watch.deadline, at_most=plan.poll_seconds)
        if standing.over or wait <= 0:
            return standing
        # The last wait is cut short: the last look is at the deadline, not one interval before it.
        raise RetryLaterError("JobOpen", f"found {standing.status}, to be looked at again", wait)

    @activity.defn(name="cancel_job", no_thread_cancel_exception=True)
    def cancel_job(self, cancellation: JobCancellation) -> JobState:
        """Cancel the job, unless it has ended; how it was found, or how it came to end all the same."""
        job_id, plan = cancellation.job_id, cancellation.plan
        with _mendable(min(plan.poll_seconds, _REFUSED_SECONDS)):
            if cancellation.unconfirmed and not self._was_made(job_id, cancellation.unconfirmed, plan):
                return JobState(status=None)
            found = look_at_job(self._aws, job_id, plan.thing_name)
            if found.over:
                return found
            refusal = None
            try:
                self._aws.call(self._aws.iot.cancel_job, jobId=job_id, force=cancellation.force)
            except NotFoundError:
                pass
            except InvalidRequestError as error:
                refusal = error.what
            except QuotaExceededError as error:
                raise RetryLaterError("CancellationLimitReached", error.what, _REFUSED_SECONDS) from None
            ended = look_at_job(self._aws, job_id, plan.thing_name)
        if refusal and not ended.over:
            raise RetryLaterError("JobNotCancellable", refusal, seconds=5)
        return ended if ended.over and ended.status != CANCELED else found

    @activity.defn(name="publish_command_end", no_thread_cancel_exception=True)
    def publish_command_end(self, report: CommandReport) -> None:
        """Put the end of a command into the outbox, once."""
        command, end = report.command, report.end
        target = command.target
        with transaction(self._engine) as session:
            binding = _binding_of(session, command) if target.kind is TargetKind.DEVICE else None
            about = {
                # Only of a device the sender could mean: an event makes a device's row, and with it the
                # tenant it belongs to for ever.
                "device_id": binding.device_id if binding else None,
                "tenant_id": binding.tenant_id if binding else command.tenant_id,
                "thing_name": binding.thing_name if binding else None,
                "job_id": report.job_id,
                "correlation_id": command.correlation_id,
                "operation": _tellable(command.operation),
                "target": target.model_copy(update={"value": _tellable(target.value)}),
                "status_details": end.status_details,
                "counts": end.counts,
            }
            event = (
                DeviceCommandCompleted(**about, outcome=end.outcome)
                if end.outcome
                else DeviceCommandFailed(**about, status=end.status, reason=end.reason or end.status)
            )
            told = put(session, event, report.job_id)
            if target.kind is TargetKind.QUERY:
                mark_group_used(session, dynamic_group_name(self._job_id_prefix, target.value))
        if told:
            (JOBS_COMPLETED if end.outcome else JOBS_FAILED).add(event.tenant_id, "publish_command_end")

    def _active_binding(self, command: Command) -> AwsThingBinding:
        """The Active binding of the device a command is for.

        Raises:
            ApplicationError: it has none, or is being torn down: what is made now would be left behind.
        """
        with Session(self._engine) as session:
            binding = _binding_of(session, command)
            state = session.get(DeviceStateRow, binding.device_id) if binding else None
        status = binding.provisioning_status if binding else None
        if state is not None and state.decommissioned_at is not None:
            status = ProvisioningStatus.DECOMMISSIONED
        if binding is None or binding.thing_arn is None or status is not ProvisioningStatus.ACTIVE:
            what = f"device {command.target.value} has no Active binding"
            raise PermanentError(FailureCode.NO_SUCH_TARGET, f"{what}: it is {status}" if status else what)
        return binding

    def _plan(
        self, target_arn: str, selection: TargetSelection, binding: AwsThingBinding | None = None
    ) -> CommandPlan:
        return CommandPlan(
            target_arn=target_arn,
            selection=selection,
            thing_name=binding.thing_name if binding else None,
            tenant_id=binding.tenant_id if binding else None,
            tracking_seconds=self._tracking_seconds,
            poll_seconds=self._poll_seconds,
        )

    def _own_job(self, job_id: str, command: Command, plan: CommandPlan) -> str | None:
        """The ARN of the job of that id, or None where it does something else."""
        document = self._aws.call(self._aws.iot.get_job_document, jobId=job_id).get("document", "")
        job = self._aws.call(self._aws.iot.describe_job, jobId=job_id)["job"]
        same = _canonical(document) == _canonical(command.document_json())
        return job["jobArn"] if same and job.get("targets") == [plan.target_arn] else None

    def _was_made(self, job_id: str, command: Command, plan: CommandPlan) -> bool:
        try:
            return self._own_job(job_id, command, plan) is not None
        except NotFoundError:
            return False


def _binding_of(session: Session, command: Command) -> AwsThingBinding | None:
    """The newest binding of the device a command is for, unless that is another tenant's."""
    binding = newest_binding(session, UUID(command.target.value)) if not command.target.fault() else None
    foreign = binding and command.tenant_id is not None and command.tenant_id != binding.tenant_id
    return None if foreign else binding


@contextmanager
def _mendable(seconds: float) -> Iterator[None]:
    """Ask again also for what AWS refuses: the job goes on meanwhile, and a permission can be given."""
    try:
        yield
    except AwsError as error:
        if error.retryable:
            raise
        raise RetryLaterError(error.failure_code or error.code, error.what, seconds) from None


def _until(deadline: datetime, *, at_most: float) -> float:
    """Seconds until the deadline."""
    return min(at_most, (deadline - datetime.now(UTC)).total_seconds())


def _canonical(document: str) -> str | None:
    """A job document in the one form in which two that say the same are equal; None where it is no JSON."""
    try:
        return json.dumps(json.loads(document), sort_keys=True)
    except ValueError:
        return None


def _tellable(text: str) -> str:
    """What a sender wrote, fit for an event also where the command was refused for it."""
    shown = text[:DOCUMENT_LIMIT_BYTES]
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in shown)
