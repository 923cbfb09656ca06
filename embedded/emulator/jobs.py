"""Jobs: the rules of AWS IoT, and the device operations that moto does not implement."""

from __future__ import annotations

from collections import Counter
from datetime import UTC
from typing import TYPE_CHECKING, Any

from moto.core.utils import utcnow
from moto.iot.models import FakeJobExecution

from embedded.emulator.calls import AwsError, Response
from embedded.emulator.groups import DynamicGroup, things_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from moto.iot.models import FakeJob

    from embedded.emulator.account import Account, Difference, Forward
    from embedded.emulator.calls import Call

_OPEN = ("QUEUED", "IN_PROGRESS")
_REPORTED = ("IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED")
"""The statuses that a device may report. Only AWS sets the others."""
_DOCUMENT_LIMIT_BYTES = 32 * 1024
_PER_PAGE = 50
_COUNTS = {
    "QUEUED": "numberOfQueuedThings",
    "IN_PROGRESS": "numberOfInProgressThings",
    "SUCCEEDED": "numberOfSucceededThings",
    "FAILED": "numberOfFailedThings",
    "REJECTED": "numberOfRejectedThings",
    "TIMED_OUT": "numberOfTimedOutThings",
    "REMOVED": "numberOfRemovedThings",
    "CANCELED": "numberOfCanceledThings",
}


def create_job(call: Call, account: Account, forward: Forward) -> Response:
    """Create a job. Refuse an existing id, a large document, too many jobs, and missing or building targets.

    Moto overwrites the job, and accepts any document, number and target.
    """
    job_id, iot = call.parameters["jobId"], account.iot(call.region)
    existing = iot.jobs.get(job_id)
    if existing is not None:
        message = f"Job with id {job_id} already exists."
        raise AwsError(
            409, "ResourceAlreadyExistsException", message, resourceId=job_id, resourceArn=existing.job_arn
        )
    if len(call.parameters.get("document", "").encode()) > _DOCUMENT_LIMIT_BYTES:
        message = f"The job document exceeds {_DOCUMENT_LIMIT_BYTES} bytes."
        raise AwsError(400, "InvalidRequestException", message)
    for target in call.parameters["targets"]:
        group = iot.thing_groups.get(target)
        if target not in iot.things and group is None:
            raise AwsError(404, "ResourceNotFoundException", f"Target {target} does not exist.")
        if isinstance(group, DynamicGroup) and group.is_building(account):
            message = f"Dynamic thing group {group.thing_group_name} is not ACTIVE yet."
            raise AwsError(400, "InvalidRequestException", message)
    selection = call.parameters.get("targetSelection", "SNAPSHOT")
    _apply_progress(account, call.region, *iot.jobs.values())
    active = [job for job in iot.jobs.values() if job.status == "IN_PROGRESS"]
    if sum(job.target_selection == selection for job in active) >= account.settings.active_jobs_at_most:
        message = f"There are {account.settings.active_jobs_at_most} active {selection} jobs already."
        raise AwsError(410, "LimitExceededException", message)
    response = forward()
    if response.is_success:
        job = iot.jobs[job_id]
        job.status, job.target_selection = "IN_PROGRESS", selection
        # Moto creates one execution per target, even for a group. AWS creates them during the rollout.
        for key in [key for key in iot.job_executions if key[0] == job_id]:
            del iot.job_executions[key]
        _apply_progress(account, call.region, job)
    return response


def describe_job(call: Call, account: Account, forward: Forward) -> Response:
    """Describe a job: count its executions, COMPLETED once all have ended. Moto does neither."""
    _apply_progress(account, call.region, _job(call, account))
    return forward()


def list_jobs(call: Call, account: Account, _forward: Forward) -> Response:
    """List jobs in pages, the newest first, with filters. Moto has neither filters nor pages."""
    iot, wanted = account.iot(call.region), call.parameters
    _apply_progress(account, call.region, *iot.jobs.values())
    groups = [
        group.arn
        for group in iot.thing_groups.values()
        if group.thing_group_name == wanted.get("thingGroupName")
        or group.thing_group_id == wanted.get("thingGroupId")
    ]
    is_for_any = "thingGroupName" not in wanted and "thingGroupId" not in wanted
    found = [
        (job.job_id, _summary_of_job(job))
        for job in reversed(iot.jobs.values())
        if wanted.get("status") in {None, job.status}
        and wanted.get("targetSelection") in {None, job.target_selection}
        and (is_for_any or not set(groups).isdisjoint(job.targets))
    ]
    return _paged("jobs", found, call)


def cancel_job(call: Call, account: Account, forward: Forward) -> Response:
    """Cancel a job and its queued executions, with `force` also those in progress. Moto cancels none."""
    job = _job(call, account)
    _apply_progress(account, call.region, job)
    if job.status == "COMPLETED":
        raise AwsError(400, "InvalidRequestException", f"Job {job.job_id} is completed.")
    response = forward()
    to_cancel = _OPEN if call.parameters.get("force") else ("QUEUED",)
    for execution in _executions(account, call.region, job):
        if execution.status in to_cancel:
            _change(execution, "CANCELED")
            execution.force_canceled = bool(call.parameters.get("force"))
    return response


def delete_job(call: Call, account: Account, forward: Forward) -> Response:
    """Delete a job with its executions. Moto keeps the executions, and fails if the job does not exist."""
    job = _job(call, account)
    _apply_progress(account, call.region, job)
    response = forward()
    iot = account.iot(call.region)
    if job.job_id not in iot.jobs:
        for key in [key for key in iot.job_executions if key[0] == job.job_id]:
            del iot.job_executions[key]
        account.reached.pop((call.region, job.job_id), None)
    return response


def list_job_executions_for_job(call: Call, account: Account, _forward: Forward) -> Response:
    """List executions in pages; return 404 if the job does not exist. Moto does neither."""
    job = _job(call, account)
    _apply_progress(account, call.region, job)
    found = [
        (arn, {"thingArn": arn, "jobExecutionSummary": _summary_of_execution(execution)})
        for execution in _of_status(_executions(account, call.region, job), call)
        for arn in [execution.thing_arn]
    ]
    return _paged("executionSummaries", found, call)


def list_job_executions_for_thing(call: Call, account: Account, _forward: Forward) -> Response:
    """List the executions of one Thing in pages, for all jobs or one job."""
    _apply_progress(account, call.region, *account.iot(call.region).jobs.values())
    found = [
        (job_id, {"jobId": job_id, "jobExecutionSummary": _summary_of_execution(execution)})
        for execution in _of_status(_of_thing(call, account), call)
        for job_id in [execution.job_id]
        if call.parameters.get("jobId") in {None, job_id}
    ]
    return _paged("executionSummaries", found, call)


def cancel_job_execution(call: Call, account: Account, _forward: Forward) -> Response:
    """Cancel a queued execution, with `force` also one in progress. Moto also cancels ended ones."""
    execution = _execution(call, account)
    expected = call.parameters.get("expectedVersion")
    if expected is not None and expected != execution.version_number:
        message = f"The execution is at version {execution.version_number}, not {expected}."
        raise AwsError(409, "VersionConflictException", message)
    force = bool(call.parameters.get("force"))
    if execution.status not in (_OPEN if force else ("QUEUED",)):
        message = f"The execution is {execution.status}."
        raise AwsError(409, "InvalidStateTransitionException", message)
    _change(execution, "CANCELED")
    execution.force_canceled = force
    execution.status_details_map.update(call.parameters.get("statusDetails", {}))
    return Response.of({})


def delete_job_execution(call: Call, account: Account, forward: Forward) -> Response:
    """Delete an execution. One that has not ended needs `force`; for moto a queued one does not."""
    execution = _execution(call, account)
    if execution.status in _OPEN and not call.parameters.get("force"):
        raise AwsError(409, "InvalidStateTransitionException", f"The execution is {execution.status}.")
    return forward()


def require_job(call: Call, account: Account, forward: Forward) -> Response:
    """Return 404 if the job does not exist. Moto fails, or returns a success."""
    _job(call, account)
    return forward()


def require_execution(call: Call, account: Account, forward: Forward) -> Response:
    """Return 404 if the execution does not exist. Moto fails."""
    _execution(call, account)
    return forward()


def get_pending_job_executions(call: Call, account: Account, _forward: Forward) -> Response:
    """Return the executions of a device that have not ended."""
    pending = _pending(call, account)
    return Response.of(
        {
            "inProgressJobs": [_summary(each) for each in pending if each.status == "IN_PROGRESS"],
            "queuedJobs": [_summary(each) for each in pending if each.status == "QUEUED"],
        }
    )


def start_next_pending_job_execution(call: Call, account: Account, _forward: Forward) -> Response:
    """Return the execution in progress of a device, or start its oldest queued one, if there is one."""
    pending = _pending(call, account)
    if not pending:
        return Response.of({})
    execution = pending[0]
    if execution.status == "QUEUED":
        _change(execution, "IN_PROGRESS")
    execution.status_details_map.update(call.parameters.get("statusDetails", {}))
    return Response.of({"execution": _description(execution, call, account)})


def describe_device_job_execution(call: Call, account: Account, _forward: Forward) -> Response:
    """Describe an execution that has not ended, or, for the job id `$next`, the next one of the device."""
    if call.parameters["jobId"] == "$next":
        pending = _pending(call, account)
        return Response.of({"execution": _description(pending[0], call, account)} if pending else {})
    execution = _execution(call, account)
    if execution.status not in _OPEN:
        raise AwsError(410, "TerminalStateException", f"The execution is {execution.status}.")
    return Response.of({"execution": _description(execution, call, account)})


def update_job_execution(call: Call, account: Account, _forward: Forward) -> Response:
    """Store the status that a device reports, unless the execution has ended."""
    execution = _execution(call, account)
    status, expected = call.parameters["status"], call.parameters.get("expectedVersion")
    if status not in _REPORTED:
        message = f"A device cannot report {status}, only {', '.join(_REPORTED)}."
        raise AwsError(400, "InvalidRequestException", message)
    if execution.status not in _OPEN or (expected is not None and expected != execution.version_number):
        message = f"The execution is {execution.status} at version {execution.version_number}."
        raise AwsError(409, "InvalidStateTransitionException", message)
    _change(execution, status)
    execution.status_details_map.update(call.parameters.get("statusDetails", {}))
    state = {
        "status": execution.status,
        "statusDetails": execution.status_details_map,
        "versionNumber": execution.version_number,
    }
    return Response.of({"executionState": state} if call.parameters.get("includeJobExecutionState") else {})


def time_out(account: Account, region: str, job_id: str, thing_name: str) -> bool:
    """Set an execution to TIMED_OUT. Return false if it does not exist or has ended."""
    with account.lock:
        execution = account.iot(region).job_executions.get((job_id, thing_name))
        if execution is None or execution.status not in _OPEN:
            return False
        _change(execution, "TIMED_OUT")
        return True


def _job(call: Call, account: Account) -> FakeJob:
    job = account.iot(call.region).jobs.get(call.parameters["jobId"])
    if job is None:
        message = f"Job {call.parameters['jobId']} cannot be found."
        raise AwsError(404, "ResourceNotFoundException", message)
    return job


def _execution(call: Call, account: Account) -> FakeJobExecution:
    key = call.parameters["jobId"], call.parameters["thingName"]
    iot = account.iot(call.region)
    if key[0] in iot.jobs:
        _apply_progress(account, call.region, iot.jobs[key[0]])
    execution = iot.job_executions.get(key)
    number = call.parameters.get("executionNumber")
    if execution is None or number not in {None, execution.execution_number}:
        message = f"Execution of job {key[0]} by thing {key[1]} cannot be found."
        raise AwsError(404, "ResourceNotFoundException", message)
    return execution


def _executions(account: Account, region: str, job: FakeJob) -> list[FakeJobExecution]:
    every = account.iot(region).job_executions
    return [execution for (job_id, _), execution in every.items() if job_id == job.job_id]


def _of_thing(call: Call, account: Account) -> list[FakeJobExecution]:
    thing_name, every = call.parameters["thingName"], account.iot(call.region).job_executions
    return [execution for (_, of_thing), execution in every.items() if of_thing == thing_name]


def _of_status(executions: list[FakeJobExecution], call: Call) -> list[FakeJobExecution]:
    wanted = call.parameters.get("status")
    return [execution for execution in executions if wanted in {None, execution.status}]


def _pending(call: Call, account: Account) -> list[FakeJobExecution]:
    """Return the executions of a device that have not ended, in the order of execution."""
    _apply_progress(account, call.region, *account.iot(call.region).jobs.values())
    pending = [each for each in _of_thing(call, account) if each.status in _OPEN]
    return sorted(pending, key=lambda each: (each.status != "IN_PROGRESS", each.queued_at))


def _change(execution: FakeJobExecution, status: str) -> None:
    now = utcnow()
    if execution.started_at is None and status in _REPORTED:
        execution.started_at = now
    execution.status = status
    execution.last_updated_at = now
    execution.version_number += 1


def _apply_progress(account: Account, region: str, *jobs: FakeJob) -> None:
    """Update jobs as AWS does over time: roll them out, count their executions, complete them."""
    open_jobs = [job for job in jobs if job.status == "IN_PROGRESS"]
    for job in open_jobs:
        _roll_out(account, region, job)
    every = account.iot(region).job_executions
    counted = Counter((job_id, execution.status) for (job_id, _), execution in every.items())
    for job in jobs:
        counts = {name: counted[job.job_id, status] for status, name in _COUNTS.items()}
        job.job_process_details.update(counts)
        is_rolled_out = (region, job.job_id) in account.reached
        is_over = is_rolled_out and not any(counted[job.job_id, status] for status in _OPEN)
        if job.status == "IN_PROGRESS" and job.target_selection == "SNAPSHOT" and is_over:
            job.status = "COMPLETED"
            job.completed_at = utcnow()  # type: ignore[assignment] # moto never completes a job


def _roll_out(account: Account, region: str, job: FakeJob) -> None:
    """Create an execution for each target. A continuous job also targets Things that join its groups later.

    Executions of Things that are deleted, or that leave the groups of a continuous job, become REMOVED.
    """
    if (utcnow() - job.created_at).total_seconds() < account.settings.job_rollout_seconds:
        return
    iot, is_first = account.iot(region), (region, job.job_id) not in account.reached
    reached = account.reached.setdefault((region, job.job_id), set())
    arns = _targeted(account, region, job) if is_first or job.target_selection == "CONTINUOUS" else reached
    for arn in sorted(arns - reached):
        # Keep an existing execution: state files of earlier versions do not list the reached Things.
        iot.job_executions.setdefault((job.job_id, arn.rpartition("/")[2]), _queued(job, arn))
    reached |= arns
    job.job_process_details.pop("processingTargets", None)
    for arn in reached - (arns & iot.things.keys()):
        execution = iot.job_executions.get((job.job_id, arn.rpartition("/")[2]))
        if execution is not None and execution.status in _OPEN:
            _change(execution, "REMOVED")


def _targeted(account: Account, region: str, job: FakeJob) -> set[str]:
    iot = account.iot(region)
    things = {target for target in job.targets if target in iot.things}
    groups = [iot.thing_groups[target] for target in job.targets if target in iot.thing_groups]
    return things | {thing.arn for group in groups for thing in things_in(group, account, region)}


def _queued(job: FakeJob, thing_arn: str) -> FakeJobExecution:
    execution = FakeJobExecution(job.job_id, thing_arn)
    execution.execution_number = execution.version_number = 1
    # Moto has no executions that have not started, or that have no timer.
    execution.started_at = execution.approximate_seconds_before_time_out = None  # type: ignore[assignment]
    return execution


def _paged(name: str, found: Sequence[tuple[str, dict[str, Any]]], call: Call) -> Response:
    """Return the next page of the entries. The token is the key of the last entry of a page."""
    keys = [key for key, _ in found]
    after = call.parameters.get("nextToken")
    begin = keys.index(after) + 1 if after in keys else 0
    end = begin + call.parameters.get("maxResults", _PER_PAGE)
    next_token = {"nextToken": keys[end - 1]} if end < len(found) else {}
    return Response.of({name: [entry for _, entry in found[begin:end]], **next_token})


def _summary_of_job(job: FakeJob) -> dict[str, Any]:
    completed_at: datetime | None = job.completed_at
    return {
        "jobArn": job.job_arn,
        "jobId": job.job_id,
        "targetSelection": job.target_selection,
        "status": job.status,
        "createdAt": _epoch_seconds(job.created_at),
        "lastUpdatedAt": _epoch_seconds(job.last_updated_at),
        **({"completedAt": _epoch_seconds(completed_at)} if completed_at else {}),
    }


def _summary_of_execution(execution: FakeJobExecution) -> dict[str, Any]:
    return {"status": execution.status} | {
        name: value for name, value in _summary(execution).items() if name not in {"jobId", "versionNumber"}
    }


def _summary(execution: FakeJobExecution) -> dict[str, Any]:
    started_at: datetime | None = execution.started_at
    return {
        "jobId": execution.job_id,
        "queuedAt": _epoch_seconds(execution.queued_at),
        "lastUpdatedAt": _epoch_seconds(execution.last_updated_at),
        "versionNumber": execution.version_number,
        "executionNumber": execution.execution_number,
        **({"startedAt": _epoch_seconds(started_at)} if started_at else {}),
    }


def _description(execution: FakeJobExecution, call: Call, account: Account) -> dict[str, Any]:
    return _summary(execution) | {
        "thingName": call.parameters["thingName"],
        "status": execution.status,
        "statusDetails": execution.status_details_map,
        "jobDocument": account.iot(call.region).jobs[execution.job_id].document,
    }


def _epoch_seconds(moment: datetime) -> int:
    return int(moment.replace(tzinfo=UTC).timestamp())


DIFFERENCES: Mapping[str, Difference] = {
    "iot:CreateJob": create_job,
    "iot:DescribeJob": describe_job,
    "iot:ListJobs": list_jobs,
    "iot:CancelJob": cancel_job,
    "iot:DeleteJob": delete_job,
    "iot:GetJobDocument": require_job,
    "iot:ListJobExecutionsForJob": list_job_executions_for_job,
    "iot:ListJobExecutionsForThing": list_job_executions_for_thing,
    "iot:DescribeJobExecution": require_execution,
    "iot:CancelJobExecution": cancel_job_execution,
    "iot:DeleteJobExecution": delete_job_execution,
    "iot-jobs-data:GetPendingJobExecutions": get_pending_job_executions,
    "iot-jobs-data:StartNextPendingJobExecution": start_next_pending_job_execution,
    "iot-jobs-data:DescribeJobExecution": describe_device_job_execution,
    "iot-jobs-data:UpdateJobExecution": update_job_execution,
}
