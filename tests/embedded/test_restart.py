"""A command survives a restart of the processes that run it: the worker and the Temporal server."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlmodel import Session, select
from temporalio.client import Client, WorkflowHandle
from temporalio.contrib.pydantic import pydantic_data_converter

from db.engine import open_engine
from db.models import OutboxRow
from domain.command import Command, CommandTarget, TargetKind
from domain.lifecycle_event import LifecycleEvent
from domain.names import TASK_QUEUE
from embedded.policy import create_device_policy
from embedded.simulated_device import SimulatedDevice
from embedded.stack import Addresses, Stack, isolate
from orchestration.requests import send_command, send_event
from tests.harness.bridge import POLICY, Device, until
from tests.harness.command_line import run, running
from tests.harness.commands import PREFIX

# The shortest interval: after the restart the test waits for the next poll.
SETTINGS = {
    "IOT_AWS_JOBS__STATUS_POLL_INTERVAL_SECONDS": "15",
    "IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME": POLICY,
}


async def test_a_command_survives_a_restart_of_worker_and_servers(tmp_path: Path) -> None:
    """The worker and all servers stop before the device ends the job, and the event is still written."""
    device = Device("RESTARTED")
    with stack_in(tmp_path) as addresses:
        environment = environment_at(addresses)
        assert (await run("migrate", **environment)).exit_code == 0
        create_device_policy(addresses.aws_endpoint_url, POLICY)
        client = await client_at(addresses)
        async with running("worker", **environment) as worker:
            event = LifecycleEvent.from_json(json.dumps(device.event("Provisioned")))
            await client.get_workflow_handle(await send_event(client, event, TASK_QUEUE)).result()
            command = Command(
                correlation_id=uuid4(),
                target=CommandTarget(kind=TargetKind.DEVICE, value=str(device.device_id)),
                operation="reboot",
            )
            handle = client.get_workflow_handle(await send_command(client, command, TASK_QUEUE, PREFIX))
            await until(lambda: is_watched(handle), "the job status is polled")
            worker.kill()
            await worker.wait()
    with stack_in(tmp_path) as addresses:
        SimulatedDevice(addresses.aws_endpoint_url, device.thing_name).execute_next_job(
            "SUCCEEDED", {"rebooted": "yes"}
        )
        client = await client_at(addresses)
        async with running("worker", **environment_at(addresses)):
            ended: dict[str, Any] = await asyncio.wait_for(client.get_workflow_handle(handle.id).result(), 60)
        assert (ended["status"], ended["statusDetails"]) == ("SUCCEEDED", {"rebooted": "yes"})
        engine = open_engine(addresses.database_url)
        with Session(engine) as session:
            events = [
                row for row in session.exec(select(OutboxRow)).all() if row.data.get("jobId") == handle.id
            ]
        engine.dispose()
        assert [row.type for row in events] == ["DeviceCommandCompletedEvent"]


def stack_in(folder: Path) -> Stack:
    return Stack(folder / "stack", temporal_port=0, ui_port=0, aws_port=0, mqtt_port=0)


def environment_at(addresses: Addresses) -> dict[str, str]:
    environment = dict(SETTINGS)
    isolate(environment, addresses)
    return environment


async def client_at(addresses: Addresses) -> Client:
    return await Client.connect(addresses.temporal_address, data_converter=pydantic_data_converter)


async def is_watched(handle: WorkflowHandle[Any, Any]) -> bool:
    """Return whether the job status was polled and will be polled again."""
    pending = (await handle.describe()).raw_description.pending_activities
    return any(each.activity_type.name == "watch_job" and each.attempt > 1 for each in pending)
