"""Commands to devices: their jobs are watched to the end or cancelled, and the end is published once."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from sqlalchemy import Engine
from sqlmodel import Session
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import WorkflowHandle
from temporalio.common import RawValue
from temporalio.testing import ActivityEnvironment

from activities.commands import CommandActivities
from aws.clients import AwsClients
from aws.groups import ThingGroups
from aws.jobs import Jobs
from db.models import DeviceStateRow
from domain.failure import FailureCode, RetryLaterError
from domain.job import CommandPlan, JobWatch, TargetSelection
from domain.names import job_queue
from settings import Settings
from tests.harness.bridge import Bridge, command_workers_on, until
from tests.harness.commands import PREFIX, RARELY_POLLED, Commands, command_for

# --- Commands to a device


async def test_a_device_that_succeeds_completes_the_command(commands: Commands) -> None:
    """An execution ends with SUCCEEDED, not with COMPLETED; the event contains its status details."""
    device = commands.device("CMD-OK")
    parameters = {"fan": {"speed": [1, {"max": 2.5}], "on": True}, "mode": "eco"}
    command = command_for(device, "configure", parameters=parameters)
    handle = await commands.send(command)
    await commands.wait_until_described(handle, 1)
    document = commands.execute_job(device, firmware="1.2.3")
    assert document == {
        "operation": "configure",
        "correlationId": str(command.correlation_id),
        "parameters": parameters,
    }
    ended = await commands.wait_for_end(handle)
    assert (ended["status"], ended["outcome"], ended["step"]) == ("SUCCEEDED", "succeeded", "ended")
    assert ended["statusDetails"] == {"firmware": "1.2.3"}
    assert await handle.query("status") == ended
    job = commands.job(handle)
    assert job is not None
    assert (handle.id, job["targetSelection"]) == (f"{PREFIX}-{command.correlation_id}", "SNAPSHOT")
    assert commands.event(handle.id) == (
        "DeviceCommandCompletedEvent",
        {
            "deviceId": str(device.device_id),
            "tenantId": str(device.tenant_id),
            "thingName": device.thing_name,
            "jobId": handle.id,
            "correlationId": str(command.correlation_id),
            "operation": "configure",
            "target": {"kind": "device", "value": str(device.device_id)},
            "statusDetails": {"firmware": "1.2.3"},
            "counts": None,
            "outcome": "succeeded",
        },
    )
    found = (await handle.describe()).typed_search_attributes
    indexed = {pair.key.name: pair.value for pair in found}
    assert indexed.items() >= {"TenantId": str(device.tenant_id), "ThingName": device.thing_name}.items()


async def test_each_failed_execution_status_is_published(commands: Commands) -> None:
    """The event contains the status of the execution and the status details of the device."""
    device = commands.device("CMD-FAILS")

    async def send_and_fail(status: str, **details: str) -> WorkflowHandle[Any, Any]:
        handle = await commands.send(command_for(device))
        await commands.wait_for_job(handle)
        if status in {"FAILED", "REJECTED"}:
            commands.execute_job(device, status, **details)
        elif status == "TIMED_OUT":
            commands.emulator.time_out_execution(handle.id, device.thing_name)
        else:
            commands.iot.cancel_job_execution(jobId=handle.id, thingName=device.thing_name, force=True)
        return handle

    for status, details in {
        "FAILED": {"error": "disk full"},
        "REJECTED": {"why": "busy"},
        "TIMED_OUT": {},
        "CANCELED": {},
    }.items():
        handle = await send_and_fail(status, **details)
        ended = await commands.wait_for_end(handle)
        assert (ended["status"], ended["outcome"]) == (status, None)
        event_type, data = commands.event(handle.id)
        assert (event_type, data["status"]) == ("DeviceCommandFailedEvent", status)
        assert data["statusDetails"] == details
        assert data["reason"]


async def test_a_job_without_an_execution_yet_is_watched(commands: Commands) -> None:
    """A missing execution of an open job is not an end: AWS may roll the job out later."""
    device = commands.device("CMD-LATE")
    commands.emulator.settings(job_rollout_seconds=1)
    handle = await commands.send(command_for(device))
    await commands.wait_for_job(handle)
    with pytest.raises(ClientError, match="ResourceNotFound"):
        commands.execution(handle, device)
    await commands.wait_until_described(handle, 2)

    async def executed() -> bool:
        return commands.execute_job(device) is not None

    await until(executed, "the job is rolled out")
    assert (await commands.wait_for_end(handle))["status"] == "SUCCEEDED"


async def test_the_decommission_of_its_device_ends_a_command(commands: Commands) -> None:
    """The job is deleted with the Thing, and the published status is REMOVED."""
    device = commands.device("CMD-GONE")
    handle = await commands.send(command_for(device))
    await commands.wait_for_job(handle)
    await commands.bridge.send_and_wait(device, device.event("Decommissioned", 1))
    assert (await commands.wait_for_end(handle))["status"] == "REMOVED"
    event_type, data = commands.event(handle.id)
    assert (event_type, data["status"], data["thingName"]) == (
        "DeviceCommandFailedEvent",
        "REMOVED",
        device.thing_name,
    )


async def test_a_command_is_not_sent_to_a_later_device_of_the_same_name(commands: Commands) -> None:
    """A command whose device is replaced while CreateJob is retried creates no job for the later device."""
    device = commands.device("CMD-HEIR")
    fault = commands.emulator.add_fault(
        "iot:CreateJob", resource=device.thing_name, code="LimitExceededException", status=410
    )
    handle = await commands.send(command_for(device))
    await commands.wait_for_activity(handle, "create_job", attempts=2)
    assert commands.emulator.is_fault_active(fault)
    await commands.bridge.send_and_wait(device, device.event("Decommissioned", 1))
    successor = commands.device("CMD-HEIR", device.tenant_id)
    commands.emulator.clear_faults()
    assert (await commands.wait_for_end(handle))["status"] == "NoSuchTarget"
    assert commands.job(handle) is None
    assert commands.execute_job(successor) is None


async def test_a_device_that_is_being_decommissioned_gets_no_job(commands: Commands) -> None:
    """Its binding is Active until the teardown ends; a job created meanwhile would be left behind."""
    device = commands.device("CMD-DOOMED")
    with Session(commands.bridge.engine) as session, session.begin():
        session.add(
            DeviceStateRow(
                device_id=device.device_id, tenant_id=device.tenant_id, decommissioned_at=datetime.now(UTC)
            )
        )
    ended = await commands.run_to_end(command_for(device))
    assert (ended["status"], ended["jobArn"]) == ("NoSuchTarget", None)


async def test_a_job_deleted_in_aws_ends_its_command(commands: Commands) -> None:
    """Without an execution and without a job the status is REMOVED."""
    device = commands.device("CMD-DELETED")
    handle = await commands.send(command_for(device))
    await commands.wait_for_job(handle)
    commands.iot.delete_job(jobId=handle.id, force=True)
    assert (await commands.wait_for_end(handle))["status"] == "REMOVED"


async def test_watching_a_job_adds_no_history_events(commands: Commands) -> None:
    """The history is as long after 24 requests for the job's state as after the first one."""
    device = commands.device("CMD-WATCHED")
    handle = await commands.send(command_for(device))
    await commands.wait_until_described(handle, 1)
    before = (await handle.describe()).history_length
    await commands.wait_until_described(handle, 24)
    assert (await handle.describe()).history_length == before
    commands.execute_job(device)
    assert (await commands.wait_for_end(handle))["status"] == "SUCCEEDED"
    assert (await handle.describe()).history_length < 40


async def test_a_refused_description_of_a_job_is_retried(commands: Commands) -> None:
    """A missing permission does not end the command: it can be granted while the job continues."""
    device = commands.device("CMD-UNSEEN")
    fault = commands.emulator.add_fault(
        "iot:DescribeJobExecution",
        resource=device.thing_name,
        code="AccessDeniedException",
        status=403,
        times=2,
    )
    handle = await commands.send(command_for(device))
    await commands.bridge.wait_for_fault(fault)
    commands.execute_job(device)
    assert (await commands.wait_for_end(handle))["status"] == "SUCCEEDED"


async def test_a_refused_description_is_retried_before_the_deadline(
    commands: Commands, aws: AwsClients, engine: Engine
) -> None:
    """Temporal fails an activity at once whose next retry would be after its timeout."""
    hour = timedelta(hours=1)
    activities = CommandActivities(
        engine, Jobs(aws), ThingGroups(aws), job_id_prefix=PREFIX, tracking=hour, poll=hour
    )
    device = commands.device("CMD-SELDOM")
    commands.emulator.add_fault(
        "iot:DescribeJobExecution", resource=device.thing_name, code="AccessDeniedException", status=403
    )
    plan = CommandPlan(
        target_arn="",
        selection=TargetSelection.SNAPSHOT,
        thing_name=device.thing_name,
        tracking_seconds=3600,
        poll_seconds=3600,
    )
    watch = JobWatch(job_id="none", plan=plan, deadline=datetime.now(UTC) + timedelta(minutes=1))
    with pytest.raises(RetryLaterError, match=FailureCode.ACCESS_DENIED.remedy) as refused:
        ActivityEnvironment().run(activities.watch_job, watch)
    assert 0 < refused.value.seconds <= 60


# --- Cancellation


async def test_the_cancel_signal_cancels_the_job(commands: Commands) -> None:
    """The signal cancels the job in AWS at once, also if the device has started it."""
    device = commands.device("CNL-1")
    handle = await commands.send(command_for(device))
    await commands.wait_until_described(handle, 1)
    commands.start_execution(device)
    await handle.signal("cancel")
    ended = await commands.wait_for_end(handle)
    assert (ended["status"], ended["reason"]) == ("CANCELED", "cancelled on request")
    assert commands.execution(handle, device) == "CANCELED"
    event_type, data = commands.event(handle.id)
    assert (event_type, data["status"]) == ("DeviceCommandFailedEvent", "CANCELED")


async def test_a_command_cancelled_before_its_job_exists_creates_none(commands: Commands) -> None:
    """The cancellation ends the retries of CreateJob."""
    device = commands.device("CNL-2")
    fault = commands.emulator.add_fault(
        "iot:CreateJob", resource=device.thing_name, code="LimitExceededException", status=410
    )
    handle = await commands.send(command_for(device))
    await commands.wait_for_activity(handle, "create_job", attempts=2)
    assert commands.emulator.is_fault_active(fault)
    await handle.signal("cancel")
    assert (await commands.wait_for_end(handle))["status"] == "CANCELED"
    assert commands.job(handle) is None
    assert commands.event(handle.id)[1]["status"] == "CANCELED"


async def test_a_job_created_during_the_cancellation_is_cancelled_too(commands: Commands) -> None:
    """The signal arrives during CreateJob, whose response is lost: the job is found by its id."""
    device = commands.device("CNL-3")
    commands.emulator.add_fault(
        "iot:CreateJob",
        resource=device.thing_name,
        code="InternalFailureException",
        status=500,
        when="after",
        delay_seconds=0.5,
        times=1,
    )
    handle = await commands.send(command_for(device))

    async def created() -> bool:
        return commands.job(handle) is not None

    await until(created, "the job is created")
    await handle.signal("cancel")
    assert (await commands.wait_for_end(handle))["status"] == "CANCELED"
    assert commands.execution(handle, device) == "CANCELED"


async def test_cancelling_the_workflow_cancels_the_command(commands: Commands) -> None:
    """A cancellation in the Temporal UI also cancels the job and publishes the end."""
    device = commands.device("CNL-4")
    handle = await commands.send(command_for(device))
    await commands.wait_until_described(handle, 1)
    await handle.cancel()
    assert (await commands.wait_for_end(handle))["status"] == "CANCELED"
    assert commands.execution(handle, device) == "CANCELED"
    assert commands.event(handle.id)[1]["status"] == "CANCELED"


async def test_a_job_that_ended_before_the_cancellation_keeps_its_end(commands: Commands) -> None:
    """A late cancellation publishes the status that the device reported."""
    device = commands.device("CNL-5")
    handle = await commands.send(command_for(device), RARELY_POLLED)
    await commands.wait_until_described(handle, 1)
    commands.execute_job(device, done="all")
    await handle.signal("cancel")
    ended = await commands.wait_for_end(handle)
    assert (ended["status"], ended["statusDetails"]) == ("SUCCEEDED", {"done": "all"})


async def test_a_refused_cancellation_is_retried(commands: Commands) -> None:
    """A missing permission delays the end; no end is published before the job is cancelled."""
    device = commands.device("CNL-6")
    fault = commands.emulator.add_fault(
        "iot:CancelJob", code="AccessDeniedException", status=403, times=2, resource=PREFIX
    )
    handle = await commands.send(command_for(device))
    await commands.wait_for_job(handle)
    await handle.signal("cancel")
    await commands.bridge.wait_for_fault(fault)
    assert (await commands.wait_for_end(handle))["status"] == "CANCELED"
    assert commands.execution(handle, device) == "CANCELED"


async def test_other_signals_are_ignored_and_cancel_accepts_any_arguments(commands: Commands) -> None:
    """No signal blocks or fails the workflow, whatever its name and its arguments."""
    device = commands.device("CNL-7")
    handle = await commands.send(command_for(device))
    await commands.wait_for_job(handle)
    broken = RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b'{"a":'))
    for arguments in ([], [1, 2], [None], [broken], [{"reason": "x"}]):
        await handle.signal("reboot", args=arguments)
    assert (await handle.query("status"))["step"] == "Watch the job"
    await handle.signal("cancel", args=[broken, 7])
    assert (await commands.wait_for_end(handle))["status"] == "CANCELED"


# --- The job


async def test_the_quota_of_open_jobs_delays_a_command(commands: Commands) -> None:
    """CreateJob is retried until AWS accepts another job."""
    device = commands.device("JOB-1")
    fault = commands.emulator.add_fault(
        "iot:CreateJob", resource=device.thing_name, code="LimitExceededException", status=410, times=2
    )
    handle = await commands.send(command_for(device))
    await commands.bridge.wait_for_fault(fault)
    await commands.wait_for_job(handle)
    commands.execute_job(device)
    assert (await commands.wait_for_end(handle))["status"] == "SUCCEEDED"


async def test_an_existing_job_with_the_same_document_is_used(commands: Commands) -> None:
    """A job with the same document is used, because an attempt whose response was lost created it."""
    device = commands.device("JOB-2")
    command = command_for(device, parameters={"a": 1, "b": [2]})
    document = dict(reversed(command.document().items()))
    job_id = commands.create_foreign_job(command, document, device)
    handle = await commands.send(command)
    await commands.wait_for_job(handle)
    assert handle.id == job_id
    commands.execute_job(device)
    assert (await commands.wait_for_end(handle))["status"] == "SUCCEEDED"


@pytest.mark.parametrize("differs", ["document", "target"])
async def test_an_existing_job_with_another_document_or_target_is_not_used(
    commands: Commands, differs: str
) -> None:
    """The command fails, and the other job continues."""
    device = commands.device(f"JOB-3-{differs}")
    command = command_for(device, parameters={"a": 1})
    if differs == "document":
        commands.create_foreign_job(command, command.document() | {"parameters": {"a": True}}, device)
    else:
        commands.create_foreign_job(command, command.document(), commands.device("JOB-4"))
    handle = await commands.send(command)
    ended = await commands.wait_for_end(handle)
    assert ended["status"] == "JobIdTaken"
    job = commands.job(handle)
    assert job is not None
    assert job["status"] == "IN_PROGRESS"
    commands.iot.cancel_job(jobId=handle.id, force=True)


async def test_a_repeated_command_starts_no_second_run(commands: Commands) -> None:
    """A repeat of a running or of an ended command returns the id of its job."""
    device = commands.device("JOB-5")
    command = command_for(device)
    handle = await commands.send(command)
    assert (await commands.send(command)).id == handle.id
    await commands.wait_for_job(handle)
    commands.execute_job(device)
    await commands.wait_for_end(handle)
    run = (await handle.describe()).run_id
    assert (await commands.send(command)).id == handle.id
    assert (await handle.describe()).run_id == run
    assert commands.execute_job(device) is None


# --- The rate of requests


async def test_the_batch_size_limits_the_requests_of_all_workers(
    bridge: Bridge, settings: Settings, aws: AwsClients, engine: Engine
) -> None:
    """The batch size per interval is the rate limit of the one task queue that all of them poll."""
    jobs = settings.jobs.model_copy(
        update={"status_poll_batch_size": 60, "status_poll_interval_seconds": 240}
    )
    async with command_workers_on("rated", settings.model_copy(update={"jobs": jobs}), bridge, aws, engine):

        async def rate_known() -> bool:
            described = await bridge.client.workflow_service.describe_task_queue(
                DescribeTaskQueueRequest(
                    namespace=bridge.client.namespace,
                    task_queue=TaskQueue(name=job_queue("rated")),
                    task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
                    include_task_queue_status=True,
                )
            )
            return bool(described.pollers) and described.pollers[0].rate_per_second == 0.25

        await until(rate_known, "the queue's pollers report the rate limit")
