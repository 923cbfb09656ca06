"""Jobs: the quotas of AWS, a rollout that takes time, and executions that time out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ministack.services import iot

from embedded.emulator.calls import AwsError, Response
from embedded.emulator.groups import is_building
from embedded.emulator.settings import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedded.emulator.calls import Call, Difference, Forward


async def create_job(call: Call, forward: Forward) -> Response:
    """Refuse too many jobs in progress, and a dynamic group that is still being built."""
    if any(is_building(target) for target in call.parameters["targets"]):
        raise AwsError(400, "InvalidRequestException", "The dynamic thing group is not ACTIVE yet.")
    selection = call.parameters.get("targetSelection", "SNAPSHOT")
    active = [job for job in iot._jobs.values() if job["status"] == "IN_PROGRESS"]
    in_progress = sum(job["targetSelection"] == selection for job in active)
    if in_progress >= SETTINGS.active_jobs_at_most and call.parameters["jobId"] not in iot._jobs:
        message = f"There are {SETTINGS.active_jobs_at_most} active {selection} jobs already."
        raise AwsError(410, "LimitExceededException", message)
    return await forward()


def time_out(job_id: str, thing_name: str) -> bool:
    """Set an execution to TIMED_OUT. Return false if it does not exist or has ended."""
    execution = iot._job_executions.get((thing_name, job_id))
    if execution is None or execution["status"] in iot._JOB_EXECUTION_TERMINAL:
        return False
    execution |= {"status": "TIMED_OUT", "lastUpdatedAt": int(time.time() * 1000)}
    execution["versionNumber"] += 1
    iot._job_execution_event(execution)
    iot._jobs_maybe_complete(job_id)
    return True


DIFFERENCES: Mapping[str, Difference] = {"iot:CreateJob": create_job}
