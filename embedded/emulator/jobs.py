"""Jobs: the differences of ministack from AWS."""

from ministack.services import iot

from embedded.emulator.calls import SETTINGS, AwsError, Call, Forward, Response, difference, paged
from embedded.emulator.groups import is_building


@difference("iot:CreateJob")
async def create_job(call: Call, forward: Forward) -> Response:
    """Refuse a dynamic group that is still being built, and create the executions some time later."""
    if any(is_building(target) for target in call.parameters["targets"]):
        raise AwsError(400, "InvalidRequestException", "The dynamic thing group is not ACTIVE yet.")
    response = await forward()
    if SETTINGS.job_rollout_seconds:
        job = iot._jobs[call.parameters["jobId"]]
        executions = [key for key in list(iot._job_executions) if key[1] == job["jobId"]]
        for key in executions:
            del iot._job_executions[key]
        # Ministack releases the first of the waiting Things one interval after this time.
        started_at = iot._jobs_now_ms() + SETTINGS.job_rollout_seconds * 1000 - iot._JOB_ROLLOUT_INTERVAL_MS
        job |= {"rolloutQueue": [name for name, _ in executions], "rolloutBatchAt": started_at}
        iot._jobs_rollout_start(iot.get_account_id(), call.region, job)
    return response


@difference("iot:ListJobExecutionsForThing")
async def list_job_executions_for_thing(call: Call, forward: Forward) -> Response:
    """List the executions of a Thing in pages."""
    executions = (await forward()).members["executionSummaries"]
    return paged("executionSummaries", {each["jobId"]: each for each in executions}, call)


def time_out(job_id: str, thing_name: str) -> None:
    """Set an execution that has not ended to TIMED_OUT."""
    execution = iot._job_executions[thing_name, job_id]
    if execution["status"] not in iot._JOB_EXECUTION_TERMINAL:
        execution |= {"status": "TIMED_OUT", "lastUpdatedAt": iot._jobs_now_ms()}
        execution["versionNumber"] += 1
        iot._job_execution_event(execution)
        iot._jobs_maybe_complete(job_id)
