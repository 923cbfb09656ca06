"""The bridge under test: send the events of the platform, and read the results."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from botocore.exceptions import ClientError
from sqlalchemy import Engine
from sqlmodel import Session, col, select
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowExecution, WorkflowHandle
from temporalio.worker import Worker

from aws.clients import AwsClients
from db.bindings import newest_binding
from db.models import AwsThingBinding, BindingTransition, OutboxRow
from domain.names import TASK_QUEUE, device_workflow_id, thing_name
from domain.provisioning_status import ProvisioningStatus
from embedded.emulator_control import EmulatorControl
from embedded.inventory import Certificate, take_inventory
from settings import Settings
from worker import compose_job_worker, compose_worker

POLICY = "test-device-policy"
HASH_KEY = "a key of the tests, and no secret"
_STARTED = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Device:
    """A device of the platform, and the events that the platform sends about it."""

    serial_number: str
    tenant_id: UUID | None = field(default_factory=uuid4)
    device_id: UUID = field(default_factory=uuid4)

    @property
    def thing_name(self) -> str:
        return thing_name(self.tenant_id, self.serial_number)

    @property
    def workflow_id(self) -> str:
        return device_workflow_id(self.device_id)

    def event(self, kind: str, minute: int = 0, **changes: Any) -> dict[str, Any]:
        """Return a lifecycle event in the format of docs/reference.md; its type is `Device{kind}Event`."""
        event: dict[str, Any] = {
            "eventId": str(uuid4()),
            "type": f"Device{kind}Event",
            "deviceId": str(self.device_id),
            "tenantId": str(self.tenant_id) if self.tenant_id else None,
            "serialNumber": self.serial_number,
            "occurredAt": (NOON + timedelta(minutes=minute)).isoformat(),
        }
        return event | changes


@dataclass(frozen=True)
class AwsResources:
    """The resources in AWS that belong to one Thing name."""

    thing: dict[str, str] | None
    certificates: list[Certificate]
    secret_arn: str | None
    key: str | None


class Bridge:
    """A worker on the embedded servers, with clients for Temporal, the database and AWS."""

    def __init__(
        self,
        client: Client,
        engine: Engine,
        aws_endpoint_url: str,
        aws: dict[str, Any],
        queue: str = TASK_QUEUE,
    ) -> None:
        self.client = client
        self.queue = queue
        self.engine = engine
        self.aws_endpoint_url = aws_endpoint_url
        self.emulator = EmulatorControl(aws_endpoint_url)
        self.iot = aws["iot"]
        self.iot_data = aws["iot-data"]
        self.secrets = aws["secretsmanager"]

    # Actions of the platform

    async def signal(
        self, device: Device, *arguments: Any, signal: str = "device_event", queue: str | None = None
    ) -> WorkflowHandle[Any, Any]:
        """Send a signal-with-start, and return a handle for the run that receives the signal."""
        handle = await self.client.start_workflow(
            "DeviceLifecycle",
            id=device.workflow_id,
            task_queue=queue or self.queue,
            start_signal=signal,
            start_signal_args=list(arguments),
        )
        return self.client.get_workflow_handle(
            handle.id, run_id=handle.first_execution_run_id or handle.result_run_id
        )

    async def send(self, device: Device, *events: dict[str, Any]) -> None:
        for event in events:
            await self.signal(device, event)

    async def send_and_wait(
        self, device: Device, *events: dict[str, Any], seconds: float = 60
    ) -> WorkflowHandle[Any, Any]:
        """Send events, and wait until the device's workflow ends."""
        await self.send(device, *events)
        return await self.wait_for_end(device, seconds)

    async def wait_for_end(self, device: Device, seconds: float = 60) -> WorkflowHandle[Any, Any]:
        handle = self.client.get_workflow_handle(device.workflow_id)
        await asyncio.wait_for(handle.result(), seconds)
        return handle

    async def status(self, device: Device) -> dict[str, Any]:
        status: dict[str, Any] = await self.client.get_workflow_handle(device.workflow_id).query("status")
        return status

    async def wait_for_status(
        self, device: Device, status: ProvisioningStatus, seconds: float = 60
    ) -> AwsThingBinding:
        """Wait until the device's binding has a status, both in the database and in the workflow's query."""

        async def reached() -> bool:
            binding = self.binding(device)
            stored = binding is not None and binding.provisioning_status is status
            return stored and (await self.status(device))["provisioningStatus"] == status

        await until(reached, f"{device.thing_name} is {status}", seconds)
        return self.require_binding(device)

    async def wait_for_activity(
        self, device: Device, activity: str, attempts: int = 1, seconds: float = 60
    ) -> None:
        """Wait until an attempt of an activity of the device's workflow has started or failed."""

        async def reached() -> bool:
            described = await self.client.get_workflow_handle(device.workflow_id).describe()
            return any(
                pending.activity_type.name == activity
                and pending.attempt >= attempts
                and (pending.state == _STARTED or pending.HasField("last_failure"))
                for pending in described.raw_description.pending_activities
            )

        await until(reached, f"{activity} is at attempt {attempts}", seconds)

    async def wait_for_reschedule(self, device: Device, activity: str) -> None:
        """Wait until the device's workflow has scheduled an activity for the second time."""
        handle = self.client.get_workflow_handle(device.workflow_id)

        async def rescheduled() -> bool:
            scheduled = [
                event
                async for event in handle.fetch_history_events()
                if event.activity_task_scheduled_event_attributes.activity_type.name == activity
            ]
            return len(scheduled) > 1

        await until(rescheduled, f"{activity} is scheduled again")

    async def wait_for_fault(self, fault: str, seconds: float = 60) -> None:
        """Wait until the emulator has received the last call that a fault applies to."""

        async def received() -> bool:
            return not self.emulator.is_fault_active(fault)

        await until(received, f"fault {fault} is used up", seconds)

    async def wait_until_idle(self, device: Device) -> None:
        """Wait until the device's workflow does no work: it has ended, or waits for an operator."""

        async def idle() -> bool:
            described = await self.client.get_workflow_handle(device.workflow_id).describe()
            pending = described.raw_description.pending_activities
            return not pending and not described.raw_description.HasField("pending_workflow_task")

        await until(idle, f"{device.thing_name} is idle")

    async def runs(self, workflow_id: str) -> AsyncIterator[WorkflowExecution]:
        """Return every run of a workflow, after visibility lists the newest one."""
        newest = (await self.client.get_workflow_handle(workflow_id).describe()).run_id
        query, found = f"WorkflowId = '{workflow_id}'", list[WorkflowExecution]()

        async def listed() -> bool:
            found[:] = [run async for run in self.client.list_workflows(query)]
            return newest in {run.run_id for run in found}

        await until(listed, f"visibility lists run {newest}")
        for run in found:
            yield run

    # Results

    def binding(self, device: Device) -> AwsThingBinding | None:
        with Session(self.engine) as session:
            return newest_binding(session, device.device_id)

    def require_binding(self, device: Device) -> AwsThingBinding:
        binding = self.binding(device)
        assert binding is not None
        return binding

    def transitions(self, device: Device) -> list[str]:
        """Return the statuses of the device's bindings, in order."""
        return [row.to_status.value for row in self.transition_rows(device)]

    def transition_rows(self, device: Device) -> Sequence[BindingTransition]:
        with Session(self.engine) as session:
            return session.exec(
                select(BindingTransition)
                .where(BindingTransition.device_id == device.device_id)
                .order_by(col(BindingTransition.id))
            ).all()

    def published(self, device: Device) -> list[str]:
        """Return the types of the device's events in the outbox, in order."""
        return [row.type for row in self.outbox(device)]

    def outbox(self, device: Device) -> Sequence[OutboxRow]:
        with Session(self.engine) as session:
            return session.exec(
                select(OutboxRow)
                .where(OutboxRow.device_id == device.device_id)
                .order_by(col(OutboxRow.sequence))
            ).all()

    def aws_resources(self, device: Device, *more_certificates: str) -> AwsResources:
        """Return the resources of the device's Thing name in AWS, and the additional certificates."""
        name = device.thing_name
        attributes = self._or_none(lambda: self.iot.describe_thing(thingName=name)["attributes"])
        arns = set(more_certificates)
        if attributes is not None:
            arns |= set(self.iot.list_thing_principals(thingName=name)["principals"])
        if (binding := self.binding(device)) and binding.certificate_arn:
            arns.add(binding.certificate_arn)
        secret = f"iot/devices/{name}/key"
        return AwsResources(
            thing=attributes,
            certificates=[found for arn in sorted(arns) if (found := self.certificate(arn))],
            secret_arn=self._or_none(lambda: self.secrets.describe_secret(SecretId=secret)["ARN"]),
            key=self._or_none(lambda: self.secrets.get_secret_value(SecretId=secret)["SecretString"]),
        )

    def certificate(self, arn: str) -> Certificate | None:
        found = self._or_none(lambda: self.iot.describe_certificate(certificateId=arn.rpartition("/")[2]))
        if found is None:
            return None
        policies = self.iot.list_attached_policies(target=arn)["policies"]
        return Certificate(
            arn=arn,
            status=found["certificateDescription"]["status"],
            policies=tuple(policy["policyName"] for policy in policies),
        )

    def certificate_pem(self, arn: str) -> str:
        described = self.iot.describe_certificate(certificateId=arn.rpartition("/")[2])
        return str(described["certificateDescription"]["certificatePem"])

    def shadow_names(self, device: Device) -> list[str]:
        """Return the names of the Thing's shadows; an empty name for the classic one."""
        name = device.thing_name
        names = (
            self._or_none(lambda: self.iot_data.list_named_shadows_for_thing(thingName=name)["results"]) or []
        )
        classic = self._or_none(lambda: self.iot_data.get_thing_shadow(thingName=name))
        return [*names, *([""] if classic else [])]

    def inventory(self) -> Any:
        return take_inventory(self.aws_endpoint_url)

    @staticmethod
    def _or_none(read: Callable[[], Any]) -> Any:
        """Return the result of a call to AWS; None if the resource does not exist."""
        try:
            return read()
        except ClientError as error:
            if error.response["Error"]["Code"] in {"ResourceNotFoundException", "InvalidRequestException"}:
                return None
            raise


def worker_on(queue: str, settings: Settings, bridge: Bridge, aws: AwsClients, engine: Engine) -> Worker:
    """Return a worker, not yet started, on a separate task queue."""
    return compose_worker(_settings_for(queue, settings), bridge.client, aws, engine)


@asynccontextmanager
async def command_workers_on(
    queue: str, settings: Settings, bridge: Bridge, aws: AwsClients, engine: Engine
) -> AsyncIterator[None]:
    """Run the workers that commands need, on a separate task queue and its job queue."""
    queue_settings = _settings_for(queue, settings)
    async with (
        compose_worker(queue_settings, bridge.client, aws, engine),
        compose_job_worker(queue_settings, bridge.client, aws, engine),
    ):
        yield


def _settings_for(queue: str, settings: Settings) -> Settings:
    worker = settings.worker.model_copy(update={"task_queue": queue})
    return settings.model_copy(update={"worker": worker})


async def until(condition: Callable[[], Awaitable[bool]], description: str, seconds: float = 60) -> None:
    """Poll a condition until it is true, or fail.

    Args:
        condition: returns whether the awaited state is reached.
        description: the condition in words, for the failure message.
        seconds: how long to wait.
    """
    ends = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < ends, f"not reached after {seconds} s: {description}"
        await asyncio.sleep(0.05)
