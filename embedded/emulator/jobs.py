"""Jobs: AWS IoT's rules for them, and the calls by which a device takes one and reports, unknown to moto."""

from __future__ import annotations

from collections import Counter
from datetime import UTC
from typing import TYPE_CHECKING, Any

from moto.core.utils import utcnow
from moto.iot.models import FakeJobExecution

from embedded.emulator.calls import Answer, AwsError
from embedded.emulator.groups import DynamicGroup, things_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from moto.iot.models import FakeJob

    from embedded.emulator.account import Account, Difference, Forward
    from embedded.emulator.calls import Call

_OPEN = ("QUEUED", "IN_PROGRESS")
_REPORTED = ("IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED")
"""What a device may say of an execution; the other statuses are for AWS to give."""
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


def create_job(call: Call, account: Account, forward: Forward) -> Answer:
    """AWS refuses an id in use, what is too large or too much, and targets that are not there or not ready.

    Moto overwrites the job, and takes any document, number and target.
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
    _settle(account, call.region, *iot.jobs.values())
    active = [job for job in iot.jobs.values() if job.status == "IN_PROGRESS"]
    if sum(job.target_selection == selection for job in active) >= account.settings.active_jobs_at_most:
        message = f"There are {account.settings.active_jobs_at_most} active {selection} jobs already."
        raise AwsError(410, "LimitExceededException", message)
    answer = forward()
    if answer.is_success:
        job = iot.jobs[job_id]
        job.status, job.target_selection = "IN_PROGRESS", selection
        # Moto's are one for each target, be it a group; those of AWS come with the rollout.
        for key in [key for key in iot.job_executions if key[0] == job_id]:
            del iot.job_executions[key]
        _settle(account, call.region, job)
    return answer


def describe_job(call: Call, account: Account, forward: Forward) -> Answer:
    """AWS counts the executions by status, and ends the job with the last of them; moto does neither."""
    _settle(account, call.region, _job(call, account))
    return forward()


def list_jobs(call: Call, account: Account, _forward: Forward) -> Answer:
    """AWS lists the newest first, of one status, target selection or group; moto all, and in no pages."""
    iot, wanted = account.iot(call.region), call.parameters
    _settle(account, call.region, *iot.jobs.values())
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


def cancel_job(call: Call, account: Account, forward: Forward) -> Answer:
    """AWS cancels the queued executions too, and with `force` those in progress; moto none."""
    job = _job(call, account)
    _settle(account, call.region, job)
    if job.status == "COMPLETED":
        raise AwsError(400, "InvalidRequestException", f"Job {job.job_id} is completed.")
    answer = forward()
    to_cancel = _OPEN if call.parameters.get("force") else ("QUEUED",)
    for execution in _executions(account, call.region, job):
        if execution.status in to_cancel:
            _change(execution, "CANCELED")
            execution.force_canceled = bool(call.parameters.get("force"))
    return answer


def delete_job(call: Call, account: Account, forward: Forward) -> Answer:
    """AWS deletes the executions with the job; moto leaves them, and fails where there is no such job."""
    job = _job(call, account)
    _settle(account, call.region, job)
    answer = forward()
    iot = account.iot(call.region)
    if job.job_id not in iot.jobs:
        for key in [key for key in iot.job_executions if key[0] == job.job_id]:
            del iot.job_executions[key]
        account.reached.pop((call.region, job.job_id), None)
    return answer


def list_job_executions_for_job(call: Call, account: Account, _forward: Forward) -> Answer:
    """AWS answers 404 where there is no such job, and in pages; moto with nothing, and in none."""
    job = _job(call, account)
    _settle(account, call.region, job)
    found = [
        (arn, {"thingArn": arn, "jobExecutionSummary": _summary_of_execution(execution)})
        for execution in _of_status(_executions(account, call.region, job), call)
        for arn in [execution.thing_arn]
    ]
    return _paged("executionSummaries", found, call)


def list_job_executions_for_thing(call: Call, account: Account, _forward: Forward) -> Answer:
    """As `list_job_executions_for_job`, for one Thing and all jobs or one."""
    _settle(account, call.region, *account.iot(call.region).jobs.values())
    found = [
        (job_id, {"jobId": job_id, "jobExecutionSummary": _summary_of_execution(execution)})
        for execution in _of_status(_of_thing(call, account), call)
        for job_id in [execution.job_id]
        if call.parameters.get("jobId") in {None, job_id}
    ]
    return _paged("executionSummaries", found, call)


def cancel_job_execution(call: Call, account: Account, _forward: Forward) -> Answer:
    """AWS cancels a queued execution, with `force` one in progress, and none that has ended, as moto does."""
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
    return Answer.of({})


def delete_job_execution(call: Call, account: Account, forward: Forward) -> Answer:
    """AWS deletes one that has not ended with `force` alone; moto also one that is queued."""
    execution = _execution(call, account)
    if execution.status in _OPEN and not call.parameters.get("force"):
        raise AwsError(409, "InvalidStateTransitionException", f"The execution is {execution.status}.")
    return forward()


def existing_job(call: Call, account: Account, forward: Forward) -> Answer:
    """AWS answers 404 where there is no such job; moto fails, or answers as though there were."""
    _job(call, account)
    return forward()


def existing_execution(call: Call, account: Account, forward: Forward) -> Answer:
    """AWS answers 404 where there is no such execution; moto fails."""
    _execution(call, account)
    return forward()


def get_pending_job_executions(call: Call, account: Account, _forward: Forward) -> Answer:
    """What a device still has to do."""
    pending = _pending(call, account)
    return Answer.of(
        {
            "inProgressJobs": [_summary(each) for each in pending if each.status == "IN_PROGRESS"],
            "queuedJobs": [_summary(each) for each in pending if each.status == "QUEUED"],
        }
    )


def start_next_pending_job_execution(call: Call, account: Account, _forward: Forward) -> Answer:
    """Give a device the job it is at, or else start its oldest; no execution where there is neither."""
    pending = _pending(call, account)
    if not pending:
        return Answer.of({})
    execution = pending[0]
    if execution.status == "QUEUED":
        _change(execution, "IN_PROGRESS")
    execution.status_details_map.update(call.parameters.get("statusDetails", {}))
    return Answer.of({"execution": _told(execution, call, account)})


def describe_device_job_execution(call: Call, account: Account, _forward: Forward) -> Answer:
    """Tell a device of one execution that has not ended, or, as `$next`, of the one it should do."""
    if call.parameters["jobId"] == "$next":
        pending = _pending(call, account)
        return Answer.of({"execution": _told(pending[0], call, account)} if pending else {})
    execution = _execution(call, account)
    if execution.status not in _OPEN:
        raise AwsError(410, "TerminalStateException", f"The execution is {execution.status}.")
    return Answer.of({"execution": _told(execution, call, account)})


def update_job_execution(call: Call, account: Account, _forward: Forward) -> Answer:
    """Take a device's report of how far it is, unless the execution has ended."""
    execution = _execution(call, account)
    status, expected = call.parameters["status"], call.parameters.get("expectedVersion")
    if status not in _REPORTED:
        message = f"A device cannot report {status}, but {', '.join(_REPORTED)}."
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
    return Answer.of({"executionState": state} if call.parameters.get("includeJobExecutionState") else {})


def time_out(account: Account, region: str, job_id: str, thing_name: str) -> bool:
    """End an execution as AWS's timer does; false where there is none that has not ended."""
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
        _settle(account, call.region, iot.jobs[key[0]])
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
    """A device's executions that have not ended, in the order in which they are its turn."""
    _settle(account, call.region, *account.iot(call.region).jobs.values())
    pending = [each for each in _of_thing(call, account) if each.status in _OPEN]
    return sorted(pending, key=lambda each: (each.status != "IN_PROGRESS", each.queued_at))


def _change(execution: FakeJobExecution, status: str) -> None:
    now = utcnow()
    if execution.started_at is None and status in _REPORTED:
        execution.started_at = now
    execution.status = status
    execution.last_updated_at = now
    execution.version_number += 1


def _settle(account: Account, region: str, *jobs: FakeJob) -> None:
    """Let happen what AWS has done of itself since jobs were last looked at."""
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
            job.completed_at = utcnow()  # type: ignore[assignment] # moto knows of no job that completes


def _roll_out(account: Account, region: str, job: FakeJob) -> None:
    """Make an execution for each Thing, of a continuous job also for those that come to its groups later.

    Those of Things that are deleted, or leave a continuous job's groups, are removed.
    """
    if (utcnow() - job.created_at).total_seconds() < account.settings.job_rolls_out_seconds:
        return
    iot, is_first = account.iot(region), (region, job.job_id) not in account.reached
    reached = account.reached.setdefault((region, job.job_id), set())
    arns = _targeted(account, region, job) if is_first or job.target_selection == "CONTINUOUS" else reached
    for arn in sorted(arns - reached):
        # Not anew where there is one: a state file of an earlier version does not say who was reached.
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
    # Moto knows of no execution that has not begun, nor of one without a timer.
    execution.started_at = execution.approximate_seconds_before_time_out = None  # type: ignore[assignment]
    return execution


def _paged(name: str, found: Sequence[tuple[str, dict[str, Any]]], call: Call) -> Answer:
    """A page of what was found, each under its key, from where the last page ended."""
    keys = [key for key, _ in found]
    after = call.parameters.get("nextToken")
    begin = keys.index(after) + 1 if after in keys else 0
    end = begin + call.parameters.get("maxResults", _PER_PAGE)
    next_token = {"nextToken": keys[end - 1]} if end < len(found) else {}
    return Answer.of({name: [told for _, told in found[begin:end]], **next_token})


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


def _told(execution: FakeJobExecution, call: Call, account: Account) -> dict[str, Any]:
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
    "iot:GetJobDocument": existing_job,
    "iot:ListJobExecutionsForJob": list_job_executions_for_job,
    "iot:ListJobExecutionsForThing": list_job_executions_for_thing,
    "iot:DescribeJobExecution": existing_execution,
    "iot:CancelJobExecution": cancel_job_execution,
    "iot:DeleteJobExecution": delete_job_execution,
    "iot-jobs-data:GetPendingJobExecutions": get_pending_job_executions,
    "iot-jobs-data:StartNextPendingJobExecution": start_next_pending_job_execution,
    "iot-jobs-data:DescribeJobExecution": describe_device_job_execution,
    "iot-jobs-data:UpdateJobExecution": update_job_execution,
}
