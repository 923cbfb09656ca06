"""A fleet of active bindings in a separate database, so that a poll counts only this fleet."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlmodel import Session, col, select
from temporalio.client import WorkflowHandle
from temporalio.worker import Worker

from activities.attempt import AttemptInterceptor
from activities.shadow_deltas import ShadowDeltaActivities
from aws.clients import AwsClients
from aws.shadows import Shadows
from db.engine import open_engine
from db.migrate import upgrade
from db.models import AwsThingBinding, ShadowDeltaRow
from domain.delta_poll import PollTotals
from domain.names import SHADOW_DELTA_POLL
from domain.provisioning_status import ProvisioningStatus
from orchestration.requests import send_command
from orchestration.sandbox import WORKFLOW_RUNNER
from tests.harness.bridge import Bridge, Device
from tests.harness.command_line import empty_database
from workflows.shadow_delta_poll import ShadowDeltaPoll


@dataclass(frozen=True)
class Member:
    """A device of the fleet, with the id of its binding."""

    device: Device
    binding_id: UUID

    @property
    def device_id(self) -> UUID:
        return self.device.device_id

    @property
    def thing_name(self) -> str:
        return self.device.thing_name


class Fleet:
    """Bindings inserted into the database, their shadows, and the results of polls."""

    def __init__(self, bridge: Bridge, database_url: str, queue: str) -> None:
        self.bridge = bridge
        self.database_url = database_url
        self.queue = queue

    def bind(self, count: int, status: ProvisioningStatus = ProvisioningStatus.ACTIVE) -> list[Member]:
        """Insert bindings, and return their devices in the order in which a poll visits them."""
        tenant, batch = uuid4(), uuid4().hex[:8]
        members = [Member(Device(f"{batch}-{number:04}", tenant), uuid4()) for number in range(count)]
        with Session(self.bridge.engine) as session:
            session.add_all(
                AwsThingBinding(
                    id=member.binding_id,
                    device_id=member.device_id,
                    tenant_id=tenant,
                    thing_name=member.thing_name,
                    thing_arn=f"arn:aws:iot:eu-west-1:123456789012:thing/{member.thing_name}",
                    provisioning_status=status,
                )
                for member in members
            )
            session.commit()
        return sorted(members, key=lambda member: member.binding_id)

    def desire(self, member: Member, state: dict[str, Any] | None) -> None:
        """Write the desired state of a device's shadow."""
        self._update(member, {"desired": state})

    def report(self, member: Member, state: dict[str, Any]) -> None:
        """Write the reported state of a device's shadow."""
        self._update(member, {"reported": state})

    def shadow_reads(self) -> int:
        """Return the number of GetThingShadow calls that the emulator has received."""
        return self.bridge.emulator.calls().get("iot-data:GetThingShadow", 0)

    async def start_poll(self) -> WorkflowHandle[Any, Any]:
        """Start a poll of the fleet."""
        return await self.bridge.client.start_workflow(
            SHADOW_DELTA_POLL,
            id=f"{self.queue}-{uuid4()}",
            task_queue=self.queue,
            result_type=PollTotals,
        )

    async def poll(self) -> PollTotals:
        """Poll the fleet once, and return the counts."""
        totals: PollTotals = await (await self.start_poll()).result()
        return totals

    def delta(self, member: Member) -> ShadowDeltaRow | None:
        """Return the stored delta of a device; None if there is none."""
        with Session(self.bridge.engine) as session:
            return session.get(ShadowDeltaRow, member.device_id)

    def require_delta(self, member: Member) -> ShadowDeltaRow:
        """Return the stored delta of a device, which must exist."""
        row = self.delta(member)
        assert row is not None
        return row

    def deltas(self) -> Sequence[ShadowDeltaRow]:
        """Return the stored deltas of the fleet."""
        with Session(self.bridge.engine) as session:
            return session.exec(select(ShadowDeltaRow).order_by(col(ShadowDeltaRow.device_id))).all()

    def published(self, member: Member) -> list[dict[str, Any]]:
        """Return the data of the device's DeviceDesiredStateChangedEvents, in order."""
        rows = self.bridge.outbox(member.device)
        return [row.data for row in rows if row.type == "DeviceDesiredStateChangedEvent"]

    async def commands(self, job_id: str) -> list[dict[str, Any]]:
        """Return the argument of each run of the command of this id."""
        handle = self.bridge.client.get_workflow_handle(job_id)
        started = [
            event.workflow_execution_started_event_attributes
            async for event in handle.fetch_history_events()
            if event.HasField("workflow_execution_started_event_attributes")
        ]
        assert {each.workflow_type.name for each in started} == {"DeviceCommand"}
        return [json.loads(payload.data) for each in started for payload in each.input.payloads]

    def execute(self, statement: str, **parameters: Any) -> None:
        """Execute an SQL statement in the fleet's database."""
        with self.bridge.engine.begin() as connection:
            connection.execute(text(statement), parameters)

    def empty(self) -> None:
        """Delete all bindings, deltas, device states and events."""
        tables = "thing_bindings", "shadow_deltas", "device_states", "outbox"
        self.execute("TRUNCATE " + ", ".join(f"iotaws_{table}" for table in tables))

    def _update(self, member: Member, state: dict[str, Any]) -> None:
        self.bridge.iot_data.update_thing_shadow(
            thingName=member.thing_name, payload=json.dumps({"state": state})
        )


def polling_worker(fleet: Fleet, aws: AwsClients, page_size: int) -> Worker:
    """Return a worker for the fleet's polls, not yet running. Commands that the polls start stay pending."""
    deltas = ShadowDeltaActivities(
        fleet.bridge.engine,
        Shadows(aws),
        partial(
            send_command,
            fleet.bridge.client,
            task_queue=f"{fleet.queue}-commands",
            job_id_prefix="granit",
        ),
        page_size=page_size,
        job_id_prefix="granit",
        starts_commands=True,
    )
    return Worker(
        fleet.bridge.client,
        task_queue=fleet.queue,
        workflows=[ShadowDeltaPoll],
        activities=[deltas.next_delta_pages, deltas.poll_delta_page, deltas.start_delta_commands],
        interceptors=[AttemptInterceptor()],
        activity_executor=ThreadPoolExecutor(16),
        workflow_runner=WORKFLOW_RUNNER,
        graceful_shutdown_timeout=timedelta(seconds=30),
        max_heartbeat_throttle_interval=timedelta(seconds=1),
    )


@contextmanager
def fleet_in_new_database(bridge: Bridge, database_url: str, queue: str) -> Iterator[Fleet]:
    """Yield an empty fleet in a new database."""
    url = empty_database(bridge.engine, database_url)
    engine = open_engine(url, pool_size=40)
    upgrade(engine)
    aws = {"iot": bridge.iot, "iot-data": bridge.iot_data, "secretsmanager": bridge.secrets}
    try:
        yield Fleet(Bridge(bridge.client, engine, bridge.aws_endpoint_url, aws), url, queue)
    finally:
        engine.dispose()
