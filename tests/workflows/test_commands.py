"""Commands to devices: watched durably to their end, cancelled, and told of once."""

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
from domain.failure import RetryLaterError
from domain.job import CommandPlan, JobWatch, TargetSelection
from domain.names import job_queue
from settings import Settings
from tests.harness.bridge import Bridge, commands_on, until
from tests.harness.commands import PREFIX, UNHURRIED, Commands, to

# --- To a device


async def test_a_device_that_succeeds_completes_the_command(commands: Commands) -> None:
    """The end of an execution is SUCCEEDED, for which COMPLETED is not waited; its details are told."""
    device = commands.device("CMD-OK")
    parameters = {"fan": {"speed": [1, {"max": 2.5}], "on": True}, "mode": None}
    command = to(device, "configure", parameters=parameters)
    handle = await commands.send(command)
    await commands.looked_at(handle, 1)
    document = commands.carries_out(device, firmware="1.2.3")
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


async def test_how_a_device_fails_is_told(commands: Commands) -> None:
    """Each way an execution can end but one is a failure, with AWS's word for it and the device's details."""
    device = commands.device("CMD-FAILS")

    async def fails(status: str, **details: str) -> WorkflowHandle[Any, Any]:
        handle = await commands.send(to(device))
        await commands.has_job(handle)
        if status in {"FAILED", "REJECTED"}:
            commands.carries_out(device, status, **details)
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
        handle = await fails(status, **details)
        ended = await commands.wait_for_end(handle)
        assert (ended["status"], ended["outcome"]) == (status, None)
        kind, data = commands.event(handle.id)
        assert (kind, data["status"]) == ("DeviceCommandFailedEvent", status)
        assert data["statusDetails"] == details
        assert data["reason"]


async def test_a_job_that_is_rolled_out_late_is_waited_for(commands: Commands) -> None:
    """An execution that is not there yet has not ended."""
    device = commands.device("CMD-LATE")
    commands.emulator.settings(job_rolls_out_seconds=1)
    handle = await commands.send(to(device))
    await commands.has_job(handle)
    with pytest.raises(ClientError, match="ResourceNotFound"):
        commands.execution(handle, device)
    await commands.looked_at(handle, 2)
    commands.emulator.settings(job_rolls_out_seconds=0)
    commands.carries_out(device)
    assert (await commands.wait_for_end(handle))["status"] == "SUCCEEDED"


async def test_a_device_decommissioned_meanwhile_ends_its_command(commands: Commands) -> None:
    """Its job is erased with the Thing, and the command is told of as removed."""
    device = commands.device("CMD-GONE")
    handle = await commands.send(to(device))
    await commands.has_job(handle)
    await commands.bridge.send_and_wait(device, device.event("Decommissioned", 1))
    assert (await commands.wait_for_end(handle))["status"] == "REMOVED"
    kind, data = commands.event(handle.id)
    assert (kind, data["status"], data["thingName"]) == (
        "DeviceCommandFailedEvent",
        "REMOVED",
        device.thing_name,
    )


async def test_a_command_is_not_carried_out_by_its_devices_successor(commands: Commands) -> None:
    """While its job waits to be made its device is decommissioned, and its serial provisioned anew."""
    device = commands.device("CMD-HEIR")
    fault = commands.emulator.add_fault(
        "iot:CreateJob", resource=device.thing_name, code="LimitExceededException", status=410
    )
    handle = await commands.send(to(device))
    await commands.wait_for_activity(handle, "create_job", attempts=2)
    assert commands.emulator.awaits(fault)
    await commands.bridge.send_and_wait(device, device.event("Decommissioned", 1))
    heir = commands.device("CMD-HEIR", device.tenant_id)
    commands.emulator.clear_faults()
    assert (await commands.wait_for_end(handle))["status"] == "NoSuchTarget"
    assert commands.job(handle) is None
    assert commands.carries_out(heir) is None


async def test_a_device_that_is_being_torn_down_gets_no_command(commands: Commands) -> None:
    """Its binding is Active until all is erased; a job made meanwhile would be left behind."""
    device = commands.device("CMD-DOOMED")
    with Session(commands.bridge.engine) as session, session.begin():
        session.add(
            DeviceStateRow(
                device_id=device.device_id, tenant_id=device.tenant_id, decommissioned_at=datetime.now(UTC)
            )
        )
    ended = await commands.done(to(device))
    assert (ended["status"], ended["jobArn"]) == ("NoSuchTarget", None)


async def test_a_job_deleted_in_aws_ends_its_command(commands: Commands) -> None:
    """Where neither execution nor job is to be found, there is nothing left to wait for."""
    device = commands.device("CMD-DELETED")
    handle = await commands.send(to(device))
    await commands.has_job(handle)
    commands.iot.delete_job(jobId=handle.id, force=True)
    assert (await commands.wait_for_end(handle))["status"] == "REMOVED"


async def test_watching_adds_nothing_to_the_history(commands: Commands) -> None:
    """Dozens of looks at a job leave the workflow's history as long as the first one did."""
    device = commands.device("CMD-WATCHED")
    handle = await commands.send(to(device))
    await commands.looked_at(handle, 1)
    before = (await handle.describe()).history_length
    await commands.looked_at(handle, 24)
    assert (await handle.describe()).history_length == before
    commands.carries_out(device)
    assert (await commands.wait_for_end(handle))["status"] == "SUCCEEDED"
    assert (await handle.describe()).history_length < 40


async def test_what_aws_refuses_to_show_is_asked_for_again(commands: Commands) -> None:
    """A permission that is missing while the job goes on ends nothing: it can be given."""
    device = commands.device("CMD-UNSEEN")
    fault = commands.emulator.add_fault(
        "iot:DescribeJobExecution",
        resource=device.thing_name,
        code="AccessDeniedException",
        status=403,
        times=2,
    )
    handle = await commands.send(to(device))
    await commands.bridge.wait_for_fault(fault)
    commands.carries_out(device)
    assert (await commands.wait_for_end(handle))["status"] == "SUCCEEDED"


async def test_what_aws_refuses_to_show_does_not_end_the_watching(
    commands: Commands, aws: AwsClients, engine: Engine
) -> None:
    """A look that comes seldom comes at the deadline: Temporal ends what would wait for longer, at once."""
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
    with pytest.raises(RetryLaterError, match="AccessDenied") as refused:
        ActivityEnvironment().run(activities.watch_job, watch)
    assert 0 < refused.value.seconds <= 60


# --- Cancelled


async def test_a_cancelled_command_cancels_its_job(commands: Commands) -> None:
    """The signal ends the watching at once and the job in AWS, also where the device is at it."""
    device = commands.device("CNL-1")
    handle = await commands.send(to(device))
    await commands.looked_at(handle, 1)
    commands.starts(device)
    await handle.signal("cancel")
    ended = await commands.wait_for_end(handle)
    assert (ended["status"], ended["reason"]) == ("CANCELED", "cancelled on request")
    assert commands.execution(handle, device) == "CANCELED"
    kind, data = commands.event(handle.id)
    assert (kind, data["status"]) == ("DeviceCommandFailedEvent", "CANCELED")


async def test_a_command_cancelled_before_its_job_makes_none(commands: Commands) -> None:
    """Where the job waits to be made, it is not made any more."""
    device = commands.device("CNL-2")
    fault = commands.emulator.add_fault(
        "iot:CreateJob", resource=device.thing_name, code="LimitExceededException", status=410
    )
    handle = await commands.send(to(device))
    await commands.wait_for_activity(handle, "create_job", attempts=2)
    assert commands.emulator.awaits(fault)
    await handle.signal("cancel")
    assert (await commands.wait_for_end(handle))["status"] == "CANCELED"
    assert commands.job(handle) is None
    assert commands.event(handle.id)[1]["status"] == "CANCELED"


async def test_a_job_made_while_its_command_is_cancelled_is_cancelled_too(commands: Commands) -> None:
    """AWS has the call in its hands when the signal comes, and the answer is lost: the job is found."""
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
    handle = await commands.send(to(device))

    async def made() -> bool:
        return commands.job(handle) is not None

    await until(made, "the job is made")
    await handle.signal("cancel")
    assert (await commands.wait_for_end(handle))["status"] == "CANCELED"
    assert commands.execution(handle, device) == "CANCELED"


async def test_a_run_cancelled_by_hand_is_a_cancelled_command(commands: Commands) -> None:
    """Whoever cancels the workflow in the Temporal UI has the job cancelled and the end told too."""
    device = commands.device("CNL-4")
    handle = await commands.send(to(device))
    await commands.looked_at(handle, 1)
    await handle.cancel()
    assert (await commands.wait_for_end(handle))["status"] == "CANCELED"
    assert commands.execution(handle, device) == "CANCELED"
    assert commands.event(handle.id)[1]["status"] == "CANCELED"


async def test_a_job_that_ended_is_not_reported_as_cancelled(commands: Commands) -> None:
    """A cancellation that comes too late finds the device's own end, and that is what is told."""
    device = commands.device("CNL-5")
    handle = await commands.send(to(device), UNHURRIED)
    await commands.looked_at(handle, 1)
    commands.carries_out(device, done="all")
    await handle.signal("cancel")
    ended = await commands.wait_for_end(handle)
    assert (ended["status"], ended["statusDetails"]) == ("SUCCEEDED", {"done": "all"})


async def test_a_cancellation_that_aws_refuses_is_asked_for_again(commands: Commands) -> None:
    """A permission missing at first delays the end, and no end is told that is not so."""
    device = commands.device("CNL-6")
    fault = commands.emulator.add_fault(
        "iot:CancelJob", code="AccessDeniedException", status=403, times=2, resource=PREFIX
    )
    handle = await commands.send(to(device))
    await commands.has_job(handle)
    await handle.signal("cancel")
    await commands.bridge.wait_for_fault(fault)
    assert (await commands.wait_for_end(handle))["status"] == "CANCELED"
    assert commands.execution(handle, device) == "CANCELED"


async def test_no_signal_does_a_command_any_harm(commands: Commands) -> None:
    """What is no cancellation changes nothing; a cancellation may carry whatever it likes."""
    device = commands.device("CNL-7")
    handle = await commands.send(to(device))
    await commands.has_job(handle)
    broken = RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b'{"a":'))
    for arguments in ([], [1, 2], [None], [broken], [{"reason": "x"}]):
        await handle.signal("reboot", args=arguments)
    assert (await handle.query("status"))["step"] == "Watch the job"
    await handle.signal("cancel", args=[broken, 7])
    assert (await commands.wait_for_end(handle))["status"] == "CANCELED"


# --- The job


async def test_as_many_jobs_as_aws_allows_are_waited_out(commands: Commands) -> None:
    """A limit of jobs at once delays the command and does not fail it."""
    device = commands.device("JOB-1")
    fault = commands.emulator.add_fault(
        "iot:CreateJob", resource=device.thing_name, code="LimitExceededException", status=410, times=2
    )
    handle = await commands.send(to(device))
    await commands.bridge.wait_for_fault(fault)
    await commands.has_job(handle)
    commands.carries_out(device)
    assert (await commands.wait_for_end(handle))["status"] == "SUCCEEDED"


async def test_a_job_of_that_id_that_does_the_same_is_the_commands(commands: Commands) -> None:
    """A job made by an attempt whose answer was lost is taken up, whatever the order of its document."""
    device = commands.device("JOB-2")
    command = to(device, parameters={"a": 1, "b": [2]})
    document = dict(reversed(command.document().items()))
    job_id = commands.make_job(command, document, device)
    handle = await commands.send(command)
    await commands.has_job(handle)
    assert handle.id == job_id
    commands.carries_out(device)
    assert (await commands.wait_for_end(handle))["status"] == "SUCCEEDED"


@pytest.mark.parametrize("differs", ["document", "target"])
async def test_a_job_of_that_id_that_does_something_else_is_left_alone(
    commands: Commands, differs: str
) -> None:
    """The command fails, and the other job goes on."""
    device = commands.device(f"JOB-3-{differs}")
    command = to(device, parameters={"a": 1})
    if differs == "document":
        commands.make_job(command, command.document() | {"parameters": {"a": True}}, device)
    else:
        commands.make_job(command, command.document(), commands.device("JOB-4"))
    handle = await commands.send(command)
    ended = await commands.wait_for_end(handle)
    assert ended["status"] == "JobIdTaken"
    job = commands.job(handle)
    assert job is not None
    assert job["status"] == "IN_PROGRESS"
    commands.iot.cancel_job(jobId=handle.id, force=True)


async def test_a_command_sent_again_starts_nothing(commands: Commands) -> None:
    """A repeat of a command at work, or of one that has ended, is answered with its job's id."""
    device = commands.device("JOB-5")
    command = to(device)
    handle = await commands.send(command)
    assert (await commands.send(command)).id == handle.id
    await commands.has_job(handle)
    commands.carries_out(device)
    await commands.wait_for_end(handle)
    run = (await handle.describe()).run_id
    assert (await commands.send(command)).id == handle.id
    assert (await handle.describe()).run_id == run
    assert commands.carries_out(device) is None


# --- How often


async def test_the_batch_size_bounds_the_looks_of_all_workers(
    bridge: Bridge, settings: Settings, aws: AwsClients, engine: Engine
) -> None:
    """So many looks an interval is the rate of the one queue that they all come from."""
    jobs = settings.jobs.model_copy(
        update={"status_poll_batch_size": 60, "status_poll_interval_seconds": 240}
    )
    async with commands_on("rated", settings.model_copy(update={"jobs": jobs}), bridge, aws, engine):

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

        await until(rate_known, "the queue's pollers bring the rate")
