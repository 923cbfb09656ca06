"""Poll the shadows of a large fleet twice: the first poll must find every delta, the second none.

    uv run python -m benchmarks.shadow_poll --bindings 5000 --deltas 50 [--kill]

It runs on the dev stack. The exit code is 1 if a number is wrong. With `--kill` the worker is killed in the
middle of the first poll, and another worker continues it.
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Final
from uuid import UUID, uuid4

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import Engine, func
from sqlmodel import Session, col, select
from temporalio.client import Client, WorkflowHandle

from aws.clients import AwsClients
from db.engine import open_engine
from db.migrate import upgrade
from db.models import AwsThingBinding, OutboxRow, ShadowDeltaRow
from domain.delta_poll import PollTotals
from domain.names import SHADOW_DELTA_POLL, TASK_QUEUE, thing_name
from domain.outgoing_event import OutgoingEventType
from domain.provisioning_status import ProvisioningStatus
from embedded.emulator_control import EmulatorControl
from embedded.stack import Addresses, Stack, isolate
from orchestration.client import connect, end_process
from orchestration.schedules import schedules, upsert_schedules
from orchestration.search_attributes import register_search_attributes

_THREADS: Final = 16
_REFRESH_SECONDS: Final = 0.2


def main(
    bindings: Annotated[int, typer.Option(min=1, help="Number of Active bindings.")] = 5000,
    deltas: Annotated[int, typer.Option(min=0, help="Number of shadows with a delta.")] = 50,
    *,
    kill: Annotated[bool, typer.Option(help="Kill the worker in the middle of the first poll.")] = False,
) -> None:
    """Poll twice, and print the numbers of both polls."""
    console = Console()
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(
            Path(folder), temporal_port=0, ui_port=0, aws_port=0, mqtt_port=0, on_progress=console.print
        ) as addresses,
    ):
        isolate(os.environ, addresses)
        os.environ["IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME"] = "benchmark"
        correct = asyncio.run(_Benchmark(console, addresses, bindings, min(deltas, bindings)).run(kill=kill))
    end_process(0 if correct else 1)


class _Benchmark:
    def __init__(self, console: Console, addresses: Addresses, bindings: int, deltas: int) -> None:
        self._console = console
        self._addresses = addresses
        self._emulator = EmulatorControl(addresses.aws_endpoint_url)
        self._bindings = bindings
        self._deltas = deltas
        self._table = Table("poll", "s", "visited", "changed", "failed", "reads", "events", "commands")

    async def run(self, *, kill: bool) -> bool:
        client = await connect(None)
        await register_search_attributes(client)
        # The benchmark starts its polls itself, so the schedules are paused.
        specifications = schedules(TASK_QUEUE, poll_interval_seconds=600, claim_check_interval_hours=24)
        await upsert_schedules(client, specifications)
        for schedule_id in specifications:
            await client.get_schedule_handle(schedule_id).pause()
        engine = open_engine(self._addresses.database_url)
        await asyncio.to_thread(self._prepare, engine)
        first = await self._poll(client, engine, "first", kill=kill)
        second = await self._poll(client, engine, "second")
        self._console.print(self._table)
        correct = (
            (first.visited, first.changed, first.failed) == (self._bindings, self._deltas, 0)
            and (second.visited, second.changed, second.failed) == (self._bindings, 0, 0)
            and self._events(engine) == self._commands(engine) == self._deltas
        )
        engine.dispose()
        self._console.print("all numbers are correct" if correct else "[red]some numbers are wrong[/red]")
        return correct

    def _prepare(self, engine: Engine) -> None:
        upgrade(engine)
        tenant = uuid4()
        names = [thing_name(tenant, f"BENCH-{number:07}") for number in range(self._bindings)]
        with Session(engine) as session:
            session.add_all(_binding(tenant, name) for name in names)
            session.commit()
        iot_data = AwsClients(_THREADS).iot_data
        changed = names[:: max(1, self._bindings // max(1, self._deltas))][: self._deltas]
        with ThreadPoolExecutor(_THREADS) as pool:
            document = b'{"state": {"desired": {"interval": 10, "network": {"mtu": 1500}}}}'
            list(
                pool.map(lambda name: iot_data.update_thing_shadow(thingName=name, payload=document), changed)
            )

    async def _poll(self, client: Client, engine: Engine, name: str, *, kill: bool = False) -> PollTotals:
        self._emulator.forget_calls()
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("shadows"),
            TimeElapsedColumn(),
            console=self._console,
        ) as progress:
            bar = progress.add_task(f"{name} poll", total=self._bindings)
            began = time.monotonic()
            handle: WorkflowHandle[PollTotals, PollTotals] = await client.start_workflow(
                SHADOW_DELTA_POLL, id=f"benchmark-{name}", task_queue=TASK_QUEUE, result_type=PollTotals
            )
            if kill:
                async with _worker() as worker:
                    while self._reads() < self._bindings // 2:
                        progress.update(bar, completed=self._reads())
                        await asyncio.sleep(_REFRESH_SECONDS)
                    worker.send_signal(signal.SIGKILL)
                progress.console.print(f"worker killed after {self._reads()} reads")
            async with _worker():
                ended = asyncio.ensure_future(handle.result())
                while not ended.done():
                    progress.update(bar, completed=min(self._reads(), self._bindings))
                    await asyncio.wait([ended], timeout=_REFRESH_SECONDS)
            progress.update(bar, completed=self._bindings)
        totals = ended.result()
        numbers = (totals.visited, totals.changed, totals.failed, self._reads())
        seconds = f"{time.monotonic() - began:.1f}"
        self._table.add_row(
            name, seconds, *map(str, numbers), str(self._events(engine)), str(self._commands(engine))
        )
        return totals

    def _reads(self) -> int:
        return self._emulator.calls().get("iot-data:GetThingShadow", 0)

    @staticmethod
    def _events(engine: Engine) -> int:
        with Session(engine) as session:
            desired_state_changed = OutboxRow.type == OutgoingEventType.DESIRED_STATE_CHANGED
            count = select(func.count()).select_from(OutboxRow).where(desired_state_changed)
            return session.exec(count).one()

    @staticmethod
    def _commands(engine: Engine) -> int:
        with Session(engine) as session:
            started = col(ShadowDeltaRow.command_started_at).is_not(None)
            return session.exec(select(func.count()).select_from(ShadowDeltaRow).where(started)).one()


def _binding(tenant: UUID, name: str) -> AwsThingBinding:
    return AwsThingBinding(
        device_id=uuid4(),
        tenant_id=tenant,
        thing_name=name,
        thing_arn=f"arn:aws:iot:eu-west-1:123456789012:thing/{name}",
        provisioning_status=ProvisioningStatus.ACTIVE,
    )


@asynccontextmanager
async def _worker() -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `thingbridge worker`, and kill it at the end of the context."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("thingbridge"), "worker", stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


if __name__ == "__main__":
    typer.run(main)
