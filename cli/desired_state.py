"""The demo's second part: what is desired of a device becomes its job, and the job's end an event."""

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

from db.models import AwsThingBinding, OutboxRow
from domain.names import SHADOW_DELTA_POLL_SCHEDULE
from domain.outgoing_event import OutgoingEventType
from embedded.simulated_device import SimulatedDevice, desire
from events.cloud_events import cloud_event

_DESIRED: Final = {"telemetry": {"intervalSeconds": 60, "channels": ["temperature", "pressure"]}}
_PATIENCE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.25

Found = TypeVar("Found")


class DesiredStateDemo:
    """One device, simulated, and what is desired of it.

    Args:
        console: where each step is told.
        aws_endpoint_url: the emulator.
        client: has the poll run now, instead of at its next time.
        engine: the bridge's database, where the events are.
    """

    def __init__(self, console: Console, aws_endpoint_url: str, client: Client, engine: Engine) -> None:
        self._console = console
        self._aws_endpoint_url = aws_endpoint_url
        self._client = client
        self._engine = engine

    async def run(self, binding: AwsThingBinding) -> bool:
        """Change what is desired of the device, and tell what follows; whether all of it did."""
        thing_name = binding.thing_name or ""
        await asyncio.to_thread(desire, self._aws_endpoint_url, thing_name, _DESIRED)
        self._say(f"desired of {thing_name}: {json.dumps(_DESIRED)}")
        await self._client.get_schedule_handle(SHADOW_DELTA_POLL_SCHEDULE).trigger()
        device = SimulatedDevice(self._aws_endpoint_url, thing_name)
        document = await _until(lambda: asyncio.to_thread(device.take_one, "SUCCEEDED", {"applied": "all"}))
        if document is None:
            return self._missed("no job for it has reached the device")
        self._say(f"the device took the job {document['operation']} and ended it as SUCCEEDED")
        sent = await _until(lambda: asyncio.to_thread(self._completion, binding))
        if sent is None:
            return self._missed("no event has told of the job's end")
        self._say(f"event sent: {sent}")
        return True

    def _completion(self, binding: AwsThingBinding) -> str | None:
        """The event of the command's end, once it has been sent."""
        with Session(self._engine) as session:
            row = session.exec(
                select(OutboxRow).where(
                    OutboxRow.device_id == binding.device_id,
                    OutboxRow.type == OutgoingEventType.COMMAND_COMPLETED,
                    col(OutboxRow.published_at).is_not(None),
                )
            ).first()
        return JSONFormat().write(cloud_event(row)).decode() if row else None

    def _say(self, what: str) -> None:
        self._console.print(escape(what), soft_wrap=True)

    def _missed(self, what: str) -> bool:
        self._console.print(f"[red]{what} within {_PATIENCE_SECONDS:g} s[/red]")
        return False


async def _until(look: Callable[[], Awaitable[Found | None]]) -> Found | None:
    """What there is to find, as soon as it is there; None where that takes too long."""
    ends = time.monotonic() + _PATIENCE_SECONDS
    while True:
        found = await look()
        if found is not None or time.monotonic() > ends:
            return found
        await asyncio.sleep(_POLL_SECONDS)
