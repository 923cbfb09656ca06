"""A client for tests of commands: send them, act as the devices, and inspect the results."""

import asyncio
import json
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import boto3
from sqlmodel import Session, select
from temporalio.client import WorkflowHandle

from db.bindings import Actor, open_binding
from db.models import CommandGroupRow, OutboxRow
from domain.command import Command, CommandTarget, TargetKind, dynamic_group_name, job_id
from domain.provisioning_status import ProvisioningStatus
from embedded.simulated_device import SimulatedDevice
from orchestration.requests import send_command
from settings import Settings
from tests.harness.bridge import Bridge, Device, until

PREFIX: Final = "granit"
QUEUE: Final = "commands"
RARELY_POLLED: Final = "rarely-polled-commands"
"""The queue of workers that describe a job once, and not again during a test."""
SHORT_DEADLINE: Final = "short-commands"
"""The queue of workers with a near deadline: they describe a job after its creation and at the deadline."""

# The poll interval of a job in seconds; the setting allows 15 to 3600.
_SHORT_INTERVAL: Final = 0.1
_LONG_INTERVAL: Final = 3600.0
# Enough to build a group and create a job on a slow machine; the tests wait until it is over.
_NEAR_DEADLINE: Final = timedelta(seconds=12)
_FAR_DEADLINE: Final = timedelta(hours=72)


def queues(settings: Settings) -> dict[str, Settings]:
    """Return the settings of the workers of each queue; some values are outside the allowed ranges."""
    return {
        QUEUE: tracking_settings(settings, _FAR_DEADLINE, _SHORT_INTERVAL),
        RARELY_POLLED: tracking_settings(settings, _FAR_DEADLINE, _LONG_INTERVAL),
        SHORT_DEADLINE: tracking_settings(settings, _NEAR_DEADLINE, _LONG_INTERVAL),
    }


def tracking_settings(settings: Settings, limit: timedelta, interval: float) -> Settings:
    """Return settings with this time limit for commands and this poll interval for jobs."""
    jobs = settings.jobs.model_copy(
        update={
            "job_tracking_ttl_hours": limit / timedelta(hours=1),
            "status_poll_interval_seconds": interval,
            # High, so that the rate limit delays no request.
            "status_poll_batch_size": 500 * interval,
        }
    )
    return settings.model_copy(update={"jobs": jobs})


class Commands:
    """Sends commands, acts as their devices, and reads the results from AWS and the database."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.emulator = bridge.emulator
        self.iot = bridge.iot
        self.jobs_data = boto3.client("iot-jobs-data", endpoint_url=bridge.aws_endpoint_url)

    def device(self, serial_number: str, tenant_id: UUID | None = None) -> Device:
        """Return a device with an Active binding and a Thing; commands need nothing else."""
        device = Device(serial_number, tenant_id or uuid4())
        thing = self.iot.create_thing(thingName=device.thing_name)
        with Session(self.bridge.engine) as session, session.begin():
            binding = open_binding(
                session,
                device_id=device.device_id,
                tenant_id=device.tenant_id,
                thing_name=device.thing_name,
                actor=Actor("test"),
                status=ProvisioningStatus.ACTIVE,
            )
            binding.thing_arn = thing["thingArn"]
        return device

    def group(self, name: str, *devices: Device) -> str:
        """Create a static thing group of these devices, and return its name."""
        self.iot.create_thing_group(thingGroupName=name)
        for device in devices:
            self.iot.add_thing_to_thing_group(thingGroupName=name, thingName=device.thing_name)
        return name

    async def send(self, command: Command, queue: str = QUEUE) -> WorkflowHandle[Any, Any]:
        """Send a command, and return the handle of its workflow."""
        return self.bridge.client.get_workflow_handle(
            await send_command(self.bridge.client, command, queue, PREFIX)
        )

    async def run_to_end(self, command: Command, queue: str = QUEUE) -> dict[str, Any]:
        """Send a command, wait until it ends, and return its final status."""
        return await self.wait_for_end(await self.send(command, queue))

    async def wait_for_end(self, handle: WorkflowHandle[Any, Any]) -> dict[str, Any]:
        """Wait until a command has ended, and return its final status."""
        status: dict[str, Any] = await asyncio.wait_for(handle.result(), 60)
        return status

    async def wait_for_job(self, handle: WorkflowHandle[Any, Any]) -> None:
        """Wait until the command has created its job."""

        async def created() -> bool:
            return (await handle.query("status"))["jobArn"] is not None

        await until(created, f"{handle.id} has a job")

    async def wait_until_described(self, handle: WorkflowHandle[Any, Any], times: int) -> None:
        """Wait until the job has been described this number of times."""
        await self.wait_for_activity(handle, "watch_job", attempts=times + 1)

    async def wait_for_activity(self, handle: WorkflowHandle[Any, Any], activity: str, attempts: int) -> None:
        """Wait until the number of an activity's current or next attempt is `attempts` or higher."""

        async def reached() -> bool:
            pending = (await handle.describe()).raw_description.pending_activities
            return any(each.activity_type.name == activity and each.attempt >= attempts for each in pending)

        await until(reached, f"{handle.id} is at attempt {attempts} of {activity}")

    def execute_job(
        self, device: Device, outcome: str = "SUCCEEDED", **status_details: str
    ) -> dict[str, Any] | None:
        """Act as the device: end its next job, and return the job's document, or None if there is no job."""
        simulated = SimulatedDevice(self.bridge.aws_endpoint_url, device.thing_name)
        return simulated.execute_next_job(outcome, status_details)

    def start_execution(self, device: Device) -> None:
        """Act as the device: start its next job and leave it in progress."""
        self.jobs_data.start_next_pending_job_execution(thingName=device.thing_name)

    def create_foreign_job(self, command: Command, document: dict[str, Any], device: Device) -> str:
        """Create a job with the command's id, as another system would, and return its id."""
        name = job_id(PREFIX, command.correlation_id)
        arn = self.iot.describe_thing(thingName=device.thing_name)["thingArn"]
        self.iot.create_job(jobId=name, targets=[arn], document=json.dumps(document, indent=1))
        return name

    def create_recorded_group(self, query: str, last_used: datetime, query_in_aws: str | None = "") -> str:
        """Create a dynamic group that commands last used at this time, and return its name.

        Args:
            query: the query in the database.
            last_used: the time of the last use.
            query_in_aws: the query in AWS; empty for the same, None for a group that AWS no longer has.
        """
        name = dynamic_group_name(PREFIX, query)
        with Session(self.bridge.engine) as session, session.begin():
            session.add(CommandGroupRow(name=name, query=query, last_used_at=last_used))
        if query_in_aws is not None:
            self.iot.create_dynamic_thing_group(thingGroupName=name, queryString=query_in_aws or query)
        return name

    def recorded_groups(self) -> set[str]:
        """Return the names of the dynamic groups in the database."""
        with Session(self.bridge.engine) as session:
            return set(session.exec(select(CommandGroupRow.name)).all())

    def last_used(self, name: str) -> datetime:
        """Return when a command last used a dynamic group."""
        with Session(self.bridge.engine) as session:
            return session.exec(
                select(CommandGroupRow.last_used_at).where(CommandGroupRow.name == name)
            ).one()

    def groups_in_aws(self) -> set[str]:
        """Return the names of the thing groups in AWS."""
        return {group["groupName"] for group in self.iot.list_thing_groups()["thingGroups"]}

    def job(self, handle: WorkflowHandle[Any, Any]) -> dict[str, Any] | None:
        """Return the command's job in AWS; None if there is none."""
        return self.job_named(handle.id)

    def job_named(self, name: str) -> dict[str, Any] | None:
        """Return the job of this id in AWS; None if there is none."""
        try:
            job: dict[str, Any] = self.iot.describe_job(jobId=name)["job"]
        except self.iot.exceptions.ResourceNotFoundException:
            return None
        return job

    def execution(self, handle: WorkflowHandle[Any, Any], device: Device) -> str:
        """Return the status of the command's execution for a device."""
        described = self.iot.describe_job_execution(jobId=handle.id, thingName=device.thing_name)
        return str(described["execution"]["status"])

    def event(self, job_id: str) -> tuple[str, dict[str, Any]]:
        """Return the type and the data of a command's only event."""
        with Session(self.bridge.engine) as session:
            (row,) = [row for row in session.exec(select(OutboxRow)).all() if row.data.get("jobId") == job_id]
        assert row.device_id == (UUID(row.data["deviceId"]) if row.data["deviceId"] else None)
        return row.type, row.data


def command_for(target: Device | str | CommandTarget, operation: str = "reboot", **fields: Any) -> Command:
    """Return a new command for a device, a thing group (by its name) or any other target."""
    if isinstance(target, Device):
        target = CommandTarget(kind=TargetKind.DEVICE, value=str(target.device_id))
    elif isinstance(target, str):
        target = CommandTarget(kind=TargetKind.GROUP, value=target)
    return Command(correlation_id=uuid4(), target=target, operation=operation, **fields)


def command_for_query(query: str) -> Command:
    """Return a new command for the devices that match a query."""
    return command_for(CommandTarget(kind=TargetKind.QUERY, value=query))
