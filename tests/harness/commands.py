"""The tests' hand on commands: send them, take the devices' part, look at what came of it."""

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
UNHURRIED: Final = "unhurried-commands"
"""Here a job is looked at once, and not again while a test lasts."""
SHORT: Final = "short-commands"
"""Here a command's time is short: its job is looked at when it is made, and when the time is over."""

# How often a job is looked at, in seconds; a setting allows 15 to 3600.
_OFTEN: Final = 0.1
_SELDOM: Final = 3600.0
# Time for a group to be built and a job to be made, on a slow machine too; the tests wait for its end.
_SHORT_TIME: Final = timedelta(seconds=12)
_LONG_TIME: Final = timedelta(hours=72)


def queues(settings: Settings) -> dict[str, Settings]:
    """The settings of the workers of each queue, which no one else may set so."""
    return {
        QUEUE: tracking(settings, _LONG_TIME, _OFTEN),
        UNHURRIED: tracking(settings, _LONG_TIME, _SELDOM),
        SHORT: tracking(settings, _SHORT_TIME, _SELDOM),
    }


def tracking(settings: Settings, limit: timedelta, often: float) -> Settings:
    """Settings by which commands are tracked for so long and looked at so often."""
    jobs = settings.jobs.model_copy(
        update={
            "job_tracking_ttl_hours": limit / timedelta(hours=1),
            "status_poll_interval_seconds": often,
            # As many as there may be, so that none waits for its turn.
            "status_poll_batch_size": 500 * often,
        }
    )
    return settings.model_copy(update={"jobs": jobs})


class Commands:
    """The tests' hand on commands and on the devices that take them."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.emulator = bridge.emulator
        self.iot = bridge.iot
        self.jobs_data = boto3.client("iot-jobs-data", endpoint_url=bridge.aws_endpoint_url)

    def device(self, serial_number: str, tenant_id: UUID | None = None) -> Device:
        """A device whose binding is Active; it has a Thing and nothing else, since commands need no more."""
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
        """A static thing group of these."""
        self.iot.create_thing_group(thingGroupName=name)
        for device in devices:
            self.iot.add_thing_to_thing_group(thingGroupName=name, thingName=device.thing_name)
        return name

    async def send(self, command: Command, queue: str = QUEUE) -> WorkflowHandle[Any, Any]:
        return self.bridge.client.get_workflow_handle(
            await send_command(self.bridge.client, command, queue, PREFIX)
        )

    async def done(self, command: Command, queue: str = QUEUE) -> dict[str, Any]:
        """Send a command that ends without anyone's doing, and return how."""
        return await self.wait_for_end(await self.send(command, queue))

    async def wait_for_end(self, handle: WorkflowHandle[Any, Any]) -> dict[str, Any]:
        """Wait until a command has ended, and return how."""
        ended: dict[str, Any] = await asyncio.wait_for(handle.result(), 60)
        return ended

    async def has_job(self, handle: WorkflowHandle[Any, Any]) -> None:
        async def there() -> bool:
            return (await handle.query("status"))["jobArn"] is not None

        await until(there, f"{handle.id} has a job")

    async def looked_at(self, handle: WorkflowHandle[Any, Any], times: int) -> None:
        """Wait until the job has been looked at so often."""
        await self.wait_for_activity(handle, "watch_job", attempts=times + 1)

    async def wait_for_activity(self, handle: WorkflowHandle[Any, Any], activity: str, attempts: int) -> None:
        """Wait until an activity is at some attempt, or waits for it."""

        async def there() -> bool:
            pending = (await handle.describe()).raw_description.pending_activities
            return any(each.activity_type.name == activity and each.attempt >= attempts for each in pending)

        await until(there, f"{handle.id} is at attempt {attempts} of {activity}")

    def carries_out(
        self, device: Device, outcome: str = "SUCCEEDED", **status_details: str
    ) -> dict[str, Any] | None:
        """The device takes its next job and ends it; the document it was given."""
        simulated = SimulatedDevice(self.bridge.aws_endpoint_url, device.thing_name)
        return simulated.take_one(outcome, status_details)

    def starts(self, device: Device) -> None:
        """The device takes its next job and is at it."""
        self.jobs_data.start_next_pending_job_execution(thingName=device.thing_name)

    def make_job(self, command: Command, document: dict[str, Any], device: Device) -> str:
        """A job under the command's id, made by someone else."""
        name = job_id(PREFIX, command.correlation_id)
        arn = self.iot.describe_thing(thingName=device.thing_name)["thingArn"]
        self.iot.create_job(jobId=name, targets=[arn], document=json.dumps(document, indent=1))
        return name

    def known_group(self, query: str, last_used: datetime, query_in_aws: str | None = "") -> str:
        """A dynamic group that commands used until then, and its name; None where AWS no longer holds it."""
        name = dynamic_group_name(PREFIX, query)
        with Session(self.bridge.engine) as session, session.begin():
            session.add(CommandGroupRow(name=name, query=query, last_used_at=last_used))
        if query_in_aws is not None:
            self.iot.create_dynamic_thing_group(thingGroupName=name, queryString=query_in_aws or query)
        return name

    def known_groups(self) -> set[str]:
        with Session(self.bridge.engine) as session:
            return set(session.exec(select(CommandGroupRow.name)).all())

    def last_used(self, name: str) -> datetime:
        with Session(self.bridge.engine) as session:
            return session.exec(
                select(CommandGroupRow.last_used_at).where(CommandGroupRow.name == name)
            ).one()

    def groups_in_aws(self) -> set[str]:
        return {group["groupName"] for group in self.iot.list_thing_groups()["thingGroups"]}

    def job(self, handle: WorkflowHandle[Any, Any]) -> dict[str, Any] | None:
        """The command's job in AWS, if there is one."""
        return self.job_named(handle.id)

    def job_named(self, name: str) -> dict[str, Any] | None:
        try:
            job: dict[str, Any] = self.iot.describe_job(jobId=name)["job"]
        except self.iot.exceptions.ResourceNotFoundException:
            return None
        return job

    def execution(self, handle: WorkflowHandle[Any, Any], device: Device) -> str:
        described = self.iot.describe_job_execution(jobId=handle.id, thingName=device.thing_name)
        return str(described["execution"]["status"])

    def event(self, job_id: str) -> tuple[str, dict[str, Any]]:
        """Type and data of the one event that tells of a command."""
        with Session(self.bridge.engine) as session:
            (row,) = [row for row in session.exec(select(OutboxRow)).all() if row.data.get("jobId") == job_id]
        assert row.device_id == (UUID(row.data["deviceId"]) if row.data["deviceId"] else None)
        return row.type, row.data


def to(target: Device | str | CommandTarget, operation: str = "reboot", **more: Any) -> Command:
    """A command to a device, or to a group of that name."""
    if isinstance(target, Device):
        target = CommandTarget(kind=TargetKind.DEVICE, value=str(target.device_id))
    elif isinstance(target, str):
        target = CommandTarget(kind=TargetKind.GROUP, value=target)
    return Command(correlation_id=uuid4(), target=target, operation=operation, **more)


def to_all(query: str) -> Command:
    """A command to whatever a query finds."""
    return to(CommandTarget(kind=TargetKind.QUERY, value=query))
