"""AWS IoT Jobs: create, describe, cancel and delete them."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from aws.clients import AwsClients
from aws.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    QuotaExceededError,
)
from domain.failure import FailureCode, PermanentError, RetryLaterError
from domain.job import JobState, TargetSelection

CANCELED: Final = "CANCELED"
_REMOVED: Final = "REMOVED"
_SUCCEEDED: Final = "SUCCEEDED"
_OPEN_JOB: Final = frozenset({"IN_PROGRESS", "SCHEDULED"})
# The failed end states of an execution, each with the reason of the failed command. COMPLETED is a status of
# jobs only, never of an execution.
_FAILURES: Final[Mapping[str, str]] = {
    "FAILED": "the device reports that it failed",
    "REJECTED": "the device rejected it",
    "TIMED_OUT": "the device did not complete it within the timeout that AWS applies",
    CANCELED: "it was cancelled in AWS",
    _REMOVED: "AWS no longer has the job for this target",
}
_COUNTS: Final[Mapping[str, str]] = {
    "QUEUED": "numberOfQueuedThings",
    "IN_PROGRESS": "numberOfInProgressThings",
    _SUCCEEDED: "numberOfSucceededThings",
    "FAILED": "numberOfFailedThings",
    "REJECTED": "numberOfRejectedThings",
    "TIMED_OUT": "numberOfTimedOutThings",
    CANCELED: "numberOfCanceledThings",
    _REMOVED: "numberOfRemovedThings",
}
_CANCELLATION_QUOTA_SECONDS: Final = 30.0


class CreatedJob(NamedTuple):
    """A job that exists now."""

    arn: str
    is_new: bool
    """False where the job existed before."""


class Jobs:
    """The AWS IoT Jobs of the bridge's account.

    Args:
        aws: the AWS clients.
    """

    def __init__(self, aws: AwsClients) -> None:
        self._aws = aws

    def create(
        self, job_id: str, *, target_arn: str, document: str, selection: TargetSelection
    ) -> CreatedJob:
        """Create a job, or return the existing job of this id with the same document and target.

        Raises:
            PermanentError: the target does not exist, or the existing job has another document or target.
            QuotaExceededError: the account has as many open jobs as AWS allows.
            AwsError: AWS refused the request or did not answer.
        """
        try:
            created = self._aws.call(
                self._aws.iot.create_job,
                jobId=job_id,
                targets=[target_arn],
                document=document,
                targetSelection=selection.value,
            )
        except AlreadyExistsError as error:
            try:
                arn = self._find_same(job_id, target_arn, document)
            except NotFoundError:
                raise ConflictError("JobDeleted", f"the job was deleted meanwhile: {error.message}") from None
            if arn is None:
                raise PermanentError(
                    FailureCode.JOB_ID_TAKEN, f"job {job_id} has another document or another target"
                ) from None
            return CreatedJob(arn, is_new=False)
        except NotFoundError as error:
            raise PermanentError(
                FailureCode.NO_SUCH_TARGET, f"{target_arn} no longer exists: {error.message}"
            ) from None
        return CreatedJob(created["jobArn"], is_new=True)

    def exists(self, job_id: str, *, target_arn: str, document: str) -> bool:
        """Return whether a job of this id with this document and target exists."""
        try:
            return self._find_same(job_id, target_arn, document) is not None
        except NotFoundError:
            return False

    def describe(self, job_id: str, thing_name: str | None) -> JobState:
        """Return the state of a job: of its execution for this Thing, or of the whole job for None.

        The result for one device is in the execution only: the job becomes COMPLETED also where the
        execution FAILED.
        """
        return self._group_state(job_id) if thing_name is None else self._thing_state(job_id, thing_name)

    def cancel(self, job_id: str, thing_name: str | None, *, force: bool) -> JobState:
        """Cancel a job unless it has ended.

        Args:
            job_id: the job.
            thing_name: the Thing whose execution decides whether the job has ended; None: the whole job.
            force: also cancel executions that a device has started.

        Returns:
            The end that the job reached by itself, or else its state before the cancellation.

        Raises:
            RetryLaterError: AWS is cancelling as many jobs as it allows, or refuses to cancel this one yet.
            AwsError: AWS refused the request or did not answer.
        """
        before = self.describe(job_id, thing_name)
        if before.over:
            return before
        refusal = None
        try:
            self._aws.call(self._aws.iot.cancel_job, jobId=job_id, force=force)
        except NotFoundError:
            pass
        except InvalidRequestError as error:
            refusal = error.message
        except QuotaExceededError as error:
            raise RetryLaterError(
                "CancellationLimitReached", error.message, _CANCELLATION_QUOTA_SECONDS
            ) from None
        after = self.describe(job_id, thing_name)
        if refusal and not after.over:
            raise RetryLaterError("JobNotCancellable", refusal, seconds=5)
        return after if after.over and after.status != CANCELED else before

    def delete_for_thing(self, thing_name: str) -> None:
        """Delete the jobs whose only target is this Thing, and the Thing's executions of all other jobs.

        Raises:
            RetryLaterError: AWS is deleting as many jobs as it allows, or refuses to delete one yet.
            AwsError: AWS refused the request or did not answer.
        """
        pages = self._aws.iot.get_paginator("list_job_executions_for_thing").paginate(thingName=thing_name)
        try:
            executions = [
                (summary["jobId"], summary.get("jobExecutionSummary", {}).get("executionNumber"))
                for page in self._aws.pages(pages)
                for summary in page.get("executionSummaries", [])
            ]
        except NotFoundError:
            return
        for job_id, execution_number in executions:
            with suppress(NotFoundError):
                self._delete(thing_name, job_id, execution_number)

    def _find_same(self, job_id: str, target_arn: str, document: str) -> str | None:
        """Return the ARN of the job of this id; None where it has another document or target."""
        existing = self._aws.call(self._aws.iot.get_job_document, jobId=job_id).get("document", "")
        job = self._aws.call(self._aws.iot.describe_job, jobId=job_id)["job"]
        is_same = _canonical(existing) == _canonical(document) and job.get("targets") == [target_arn]
        return job["jobArn"] if is_same else None

    def _thing_state(self, job_id: str, thing_name: str) -> JobState:
        execution = self._execution(job_id, thing_name)
        if execution is None:
            job = self._job(job_id)
            if job.get("status") in _OPEN_JOB:
                return JobState(status=job["status"])  # not rolled out yet
            # The job can have been rolled out, and have ended, between the two requests.
            execution = self._execution(job_id, thing_name) or {
                "status": CANCELED if job.get("status") == CANCELED else _REMOVED
            }
        status = execution["status"]
        return JobState(
            status=status,
            over=status == _SUCCEEDED or status in _FAILURES,
            succeeded=status == _SUCCEEDED,
            reason=_FAILURES.get(status),
            status_details=execution.get("statusDetails", {}).get("detailsMap", {}),
        )

    def _group_state(self, job_id: str) -> JobState:
        job = self._job(job_id)
        details = job.get("jobProcessDetails", {})
        counts = {status: details.get(name, 0) for status, name in _COUNTS.items()}
        status = job.get("status")
        if status in _OPEN_JOB:
            return JobState(status=status, counts=counts)
        if status == "COMPLETED":
            failures = ", ".join(f"{counts[each]} {each}" for each in _FAILURES if counts[each])
            return JobState(
                status="FAILED" if failures else status,
                over=True,
                succeeded=not failures,
                reason=f"of {sum(counts.values())} executions, {failures}" if failures else None,
                counts=counts,
            )
        status = CANCELED if status == CANCELED else _REMOVED
        return JobState(status=status, over=True, reason=_FAILURES[status], counts=counts)

    def _execution(self, job_id: str, thing_name: str) -> Mapping[str, Any] | None:
        try:
            return self._aws.call(self._aws.iot.describe_job_execution, jobId=job_id, thingName=thing_name)[
                "execution"
            ]
        except NotFoundError:
            return None

    def _job(self, job_id: str) -> Mapping[str, Any]:
        """Return the job as AWS describes it; empty where it does not exist."""
        try:
            return self._aws.call(self._aws.iot.describe_job, jobId=job_id)["job"]
        except NotFoundError:
            return {}

    def _delete(self, thing_name: str, job_id: str, execution_number: int | None) -> None:
        job = self._aws.call(self._aws.iot.describe_job, jobId=job_id)["job"]
        targets = [target.rpartition(":thing/")[2] for target in job.get("targets", [])]
        is_only_target = targets == [thing_name]
        try:
            if not is_only_target and execution_number is not None:
                self._aws.call(
                    self._aws.iot.delete_job_execution,
                    jobId=job_id,
                    thingName=thing_name,
                    executionNumber=execution_number,
                    force=True,
                )
            elif is_only_target and job.get("status") != "DELETION_IN_PROGRESS":
                self._aws.call(self._aws.iot.delete_job, jobId=job_id, force=True)
        except (ConflictError, InvalidRequestError, QuotaExceededError) as error:
            raise RetryLaterError("JobNotDeletable", f"{job_id}: {error.message}", seconds=5) from None


def _canonical(document: str) -> str | None:
    """Return a job document in a form that is equal for equal content; None where it is not JSON."""
    try:
        return json.dumps(json.loads(document), sort_keys=True)
    except ValueError:
        return None
