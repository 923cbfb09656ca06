"""IoT Jobs: how one stands, and those of a Thing erased."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from aws.clients import AwsClients
from aws.errors import ConflictError, InvalidRequestError, NotFoundError, QuotaExceededError
from domain.failure import RetryLaterError
from domain.job import JobState

CANCELED: Final = "CANCELED"
_GONE: Final = "REMOVED"
_OPEN_JOB: Final = frozenset({"IN_PROGRESS", "SCHEDULED"})
# How an execution ends, with what a failed command says of it. It never is COMPLETED, which jobs alone are.
_SUCCEEDED: Final = "SUCCEEDED"
_FAILURES: Final[Mapping[str, str]] = {
    "FAILED": "the device reports that it failed",
    "REJECTED": "the device refuses it",
    "TIMED_OUT": "the device did not end it in the time AWS gave it",
    CANCELED: "it was cancelled in AWS",
    _GONE: "AWS no longer holds the job for this target",
}
_COUNTS: Final[Mapping[str, str]] = {
    "QUEUED": "numberOfQueuedThings",
    "IN_PROGRESS": "numberOfInProgressThings",
    _SUCCEEDED: "numberOfSucceededThings",
    "FAILED": "numberOfFailedThings",
    "REJECTED": "numberOfRejectedThings",
    "TIMED_OUT": "numberOfTimedOutThings",
    CANCELED: "numberOfCanceledThings",
    _GONE: "numberOfRemovedThings",
}


def look_at_job(aws: AwsClients, job_id: str, thing_name: str | None) -> JobState:
    """How a job stands: for a Thing by its execution, for a group as a whole.

    How it ended for a device stands in the execution alone: the job is COMPLETED also where that FAILED.
    """
    return _of_group(aws, job_id) if thing_name is None else _of_thing(aws, job_id, thing_name)


def _of_thing(aws: AwsClients, job_id: str, thing_name: str) -> JobState:
    execution = _execution(aws, job_id, thing_name)
    if execution is None:
        job = _job(aws, job_id)
        if job.get("status") in _OPEN_JOB:
            return JobState(status=job["status"])  # not rolled out yet
        # It may have been rolled out, and have ended, between the two looks.
        execution = _execution(aws, job_id, thing_name) or {
            "status": CANCELED if job.get("status") == CANCELED else _GONE
        }
    status = execution["status"]
    return JobState(
        status=status,
        over=status == _SUCCEEDED or status in _FAILURES,
        succeeded=status == _SUCCEEDED,
        reason=_FAILURES.get(status),
        status_details=execution.get("statusDetails", {}).get("detailsMap", {}),
    )


def _of_group(aws: AwsClients, job_id: str) -> JobState:
    job = _job(aws, job_id)
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
    status = CANCELED if status == CANCELED else _GONE
    return JobState(status=status, over=True, reason=_FAILURES[status], counts=counts)


def _execution(aws: AwsClients, job_id: str, thing_name: str) -> Mapping[str, Any] | None:
    try:
        return aws.call(aws.iot.describe_job_execution, jobId=job_id, thingName=thing_name)["execution"]
    except NotFoundError:
        return None


def _job(aws: AwsClients, job_id: str) -> Mapping[str, Any]:
    """The job; empty where there is none."""
    try:
        return aws.call(aws.iot.describe_job, jobId=job_id)["job"]
    except NotFoundError:
        return {}


def erase_jobs(aws: AwsClients, thing_name: str) -> None:
    """Delete the jobs made for this Thing alone, and the Thing's executions of any others.

    Raises:
        ApplicationError: retryable, while AWS is still deleting as many jobs as it does at once.
    """
    pages = aws.iot.get_paginator("list_job_executions_for_thing").paginate(thingName=thing_name)
    try:
        executions = [
            (summary["jobId"], summary.get("jobExecutionSummary", {}).get("executionNumber"))
            for page in aws.pages(pages)
            for summary in page.get("executionSummaries", [])
        ]
    except NotFoundError:
        return
    for job_id, execution_number in executions:
        with suppress(NotFoundError):
            _erase(aws, thing_name, job_id, execution_number)


def _erase(aws: AwsClients, thing_name: str, job_id: str, execution_number: int | None) -> None:
    job = aws.call(aws.iot.describe_job, jobId=job_id)["job"]
    targets = job.get("targets", [])
    alone = [target.rpartition(":thing/")[2] for target in targets] == [thing_name]
    try:
        if not alone and execution_number is not None:
            aws.call(
                aws.iot.delete_job_execution,
                jobId=job_id,
                thingName=thing_name,
                executionNumber=execution_number,
                force=True,
            )
        elif alone and job.get("status") != "DELETION_IN_PROGRESS":
            aws.call(aws.iot.delete_job, jobId=job_id, force=True)
    except (ConflictError, InvalidRequestError, QuotaExceededError) as error:
        raise RetryLaterError("JobNotDeletable", f"{job_id}: {error.what}", seconds=5) from None
