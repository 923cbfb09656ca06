"""The demo of desired state: a change becomes a job of the device, and the end of the job an event."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from cloudevents.core.formats.json import JSONFormat
from rich.console import Console
from rich.markup import escape
from sqlalchemy import Engine
from sqlmodel import Session, col, select
from temporalio.client import Client

from cli.connected_devices import ConnectedDevice
from db.models import AwsThingBinding, OutboxRow
from domain.names import SHADOW_DELTA_POLL_SCHEDULE
from domain.outgoing_event import OutgoingEventType
from embedded.simulated_device import desire
from events.cloud_events import cloud_event
from examples.device.device import APPLY_DESIRED_STATE, Event, EventKind

_DESIRED: Final = {"telemetry": {"intervalSeconds": 60, "channels": ["temperature", "pressure"]}}
_TIMEOUT_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.25

Found = TypeVar("Found")


class DesiredStateDemo:
    """A change of the desired state of one device that is connected over MQTT.

    Args:
        console: prints each step.
        aws_endpoint_url: the URL of the emulator.
        client: triggers the shadow poll, instead of waiting for its next time.
        engine: the bridge's database, which contains the events.
    """

    def __init__(self, console: Console, aws_endpoint_url: str, client: Client, engine: Engine) -> None:
        self._console = console
        self._aws_endpoint_url = aws_endpoint_url
        self._client = client
        self._engine = engine

    async def run(self, binding: AwsThingBinding, device: ConnectedDevice) -> bool:
        """Change the desired state, print each step that follows, and return whether all steps followed."""
        if binding.thing_name is None:
            return self._fail("the binding has no Thing")
        thing_name = binding.thing_name
        await asyncio.to_thread(desire, self._aws_endpoint_url, thing_name, _DESIRED)
        self._print(f"desired state of {thing_name}: {json.dumps(_DESIRED)}")
        await self._client.get_schedule_handle(SHADOW_DELTA_POLL_SCHEDULE).trigger()

        async def job_end() -> Event | None:
            return device.find(EventKind.JOB_ENDED, APPLY_DESIRED_STATE)

        job = await _until(job_end)
        if job is None or job.outcome is None:
            return self._fail(f"the device ended no job within {_TIMEOUT_SECONDS:g} s")
        self._print(
            f"the device received the job {job.operation} over MQTT, reported the state and ended the job "
            f"as {job.outcome.status}"
        )
        sent = await _until(lambda: asyncio.to_thread(self._completion, binding))
        if sent is None:
            return self._fail(f"no event for the end of the job was sent within {_TIMEOUT_SECONDS:g} s")
        self._print(f"event sent: {sent}")
        return True

    def _completion(self, binding: AwsThingBinding) -> str | None:
        """Return the event for the end of the command, once it has been sent."""
        with Session(self._engine) as session:
            row = session.exec(
                select(OutboxRow).where(
                    OutboxRow.device_id == binding.device_id,
                    OutboxRow.type == OutgoingEventType.COMMAND_COMPLETED,
                    col(OutboxRow.published_at).is_not(None),
                )
            ).first()
        return JSONFormat().write(cloud_event(row)).decode() if row else None

    def _print(self, step: str) -> None:
        self._console.print(escape(step), soft_wrap=True)

    def _fail(self, reason: str) -> bool:
        self._console.print(f"[red]{escape(reason)}[/red]")
        return False


async def _until(find: Callable[[], Awaitable[Found | None]]) -> Found | None:
    """Return the first result of `find` that is not None, or None after the timeout."""
    ends = time.monotonic() + _TIMEOUT_SECONDS
    while True:
        found = await find()
        if found is not None or time.monotonic() > ends:
            return found
        await asyncio.sleep(_POLL_SECONDS)
