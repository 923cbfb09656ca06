"""The tests' hand on a running bridge: send what the platform sends, look at what came of it."""

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
from embedded.emulator.control import EmulatorControl
from embedded.inventory import Certificate, take_inventory
from settings import Settings
from worker import compose_job_worker, compose_worker

POLICY = "test-device-policy"
HASH_KEY = "a key of the tests, and no secret"
_STARTED = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Device:
    """A device of the platform, and the events it tells of it."""

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
        """A lifecycle event as the contract writes it; `kind` is the type's middle word."""
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
class AwsTraces:
    """All that AWS holds of one Thing name."""

    thing: dict[str, str] | None
    certificates: list[Certificate]
    secret_arn: str | None
    key: str | None


class Bridge:
    """A worker on the embedded stack, with clients for all three servers."""

    def __init__(self, client: Client, engine: Engine, aws_endpoint_url: str, aws: dict[str, Any]) -> None:
        self.client = client
        self.engine = engine
        self.aws_endpoint_url = aws_endpoint_url
        self.emulator = EmulatorControl(aws_endpoint_url)
        self.iot = aws["iot"]
        self.iot_data = aws["iot-data"]
        self.secrets = aws["secretsmanager"]

    # what the platform does

    async def signal(
        self, device: Device, *arguments: Any, signal: str = "device_event", queue: str = TASK_QUEUE
    ) -> WorkflowHandle[Any, Any]:
        """Signal-with-start, as any client does it; the handle is of the run that took the signal."""
        handle = await self.client.start_workflow(
            "DeviceLifecycle",
            id=device.workflow_id,
            task_queue=queue,
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
        """Send events and wait until the device's workflow has ended."""
        await self.send(device, *events)
        return await self.wait_for_end(device, seconds)

    async def wait_for_end(self, device: Device, seconds: float = 60) -> WorkflowHandle[Any, Any]:
        handle = self.client.get_workflow_handle(device.workflow_id)
        await asyncio.wait_for(handle.result(), seconds)
        return handle

    async def status(self, device: Device) -> dict[str, Any]:
        answer: dict[str, Any] = await self.client.get_workflow_handle(device.workflow_id).query("status")
        return answer

    async def wait_for_status(
        self, device: Device, status: ProvisioningStatus, seconds: float = 60
    ) -> AwsThingBinding:
        """Wait until the device's binding has a status, by the database and by the workflow's own word."""

        async def there() -> bool:
            binding = self.binding(device)
            at_last = binding is not None and binding.provisioning_status is status
            return at_last and (await self.status(device))["provisioningStatus"] == status

        await until(there, f"{device.thing_name} is {status}", seconds)
        return self.require_binding(device)

    async def wait_for_activity(
        self, device: Device, activity: str, attempts: int = 1, seconds: float = 60
    ) -> None:
        """Wait until an activity of the device's workflow has been taken up, or is past some attempt."""

        async def there() -> bool:
            described = await self.client.get_workflow_handle(device.workflow_id).describe()
            return any(
                pending.activity_type.name == activity
                and pending.attempt >= attempts
                and (pending.state == _STARTED or pending.HasField("last_failure"))
                for pending in described.raw_description.pending_activities
            )

        await until(there, f"{activity} is at attempt {attempts}", seconds)

    async def wait_for_reschedule(self, device: Device, activity: str) -> None:
        """Wait until an activity of the device's workflow was given up, and is scheduled once more."""
        handle = self.client.get_workflow_handle(device.workflow_id)

        async def there() -> bool:
            begun = [
                event
                async for event in handle.fetch_history_events()
                if event.activity_task_scheduled_event_attributes.activity_type.name == activity
            ]
            return len(begun) > 1

        await until(there, f"{activity} is begun again")

    async def wait_for_fault(self, fault: str, seconds: float = 60) -> None:
        """Wait until AWS has in its hands the last call that a fault was meant for."""

        async def over() -> bool:
            return not self.emulator.awaits(fault)

        await until(over, f"fault {fault} is met", seconds)

    async def wait_until_idle(self, device: Device) -> None:
        """Wait until nothing is at work for the device: its run has ended, or waits for an operator."""

        async def resting() -> bool:
            described = await self.client.get_workflow_handle(device.workflow_id).describe()
            pending = described.raw_description.pending_activities
            return not pending and not described.raw_description.HasField("pending_workflow_task")

        await until(resting, f"{device.thing_name} is at rest")

    async def runs(self, workflow_id: str) -> AsyncIterator[WorkflowExecution]:
        """Every run of a workflow, once visibility knows the newest."""
        newest = (await self.client.get_workflow_handle(workflow_id).describe()).run_id
        query, found = f"WorkflowId = '{workflow_id}'", list[WorkflowExecution]()

        async def known() -> bool:
            found[:] = [run async for run in self.client.list_workflows(query)]
            return newest in {run.run_id for run in found}

        await until(known, f"visibility knows run {newest}")
        for run in found:
            yield run

    # what came of it

    def binding(self, device: Device) -> AwsThingBinding | None:
        with Session(self.engine) as session:
            return newest_binding(session, device.device_id)

    def require_binding(self, device: Device) -> AwsThingBinding:
        binding = self.binding(device)
        assert binding is not None
        return binding

    def transitions(self, device: Device) -> list[str]:
        """The statuses the device's binding was given, in order."""
        return [row.to_status.value for row in self.transition_rows(device)]

    def transition_rows(self, device: Device) -> Sequence[BindingTransition]:
        with Session(self.engine) as session:
            return session.exec(
                select(BindingTransition)
                .where(BindingTransition.device_id == device.device_id)
                .order_by(col(BindingTransition.id))
            ).all()

    def published(self, device: Device) -> list[str]:
        """The types of the events in the outbox, in the device's order."""
        return [row.type for row in self.outbox(device)]

    def outbox(self, device: Device) -> Sequence[OutboxRow]:
        with Session(self.engine) as session:
            return session.exec(
                select(OutboxRow)
                .where(OutboxRow.device_id == device.device_id)
                .order_by(col(OutboxRow.sequence))
            ).all()

    def traces(self, device: Device, *more_certificates: str) -> AwsTraces:
        """What AWS holds under the device's Thing name, and of the certificates named."""
        name = device.thing_name
        attributes = self._or_none(lambda: self.iot.describe_thing(thingName=name)["attributes"])
        arns = set(more_certificates)
        if attributes is not None:
            arns |= set(self.iot.list_thing_principals(thingName=name)["principals"])
        if (binding := self.binding(device)) and binding.certificate_arn:
            arns.add(binding.certificate_arn)
        secret = f"iot/devices/{name}/key"
        return AwsTraces(
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
        """The shadows under the device's Thing name; the classic one as an empty name."""
        name = device.thing_name
        names = (
            self._or_none(lambda: self.iot_data.list_named_shadows_for_thing(thingName=name)["results"]) or []
        )
        classic = self._or_none(lambda: self.iot_data.get_thing_shadow(thingName=name))
        return [*names, *([""] if classic else [])]

    def inventory(self) -> Any:
        return take_inventory(self.aws_endpoint_url)

    @staticmethod
    def _or_none(ask: Any) -> Any:
        try:
            return ask()
        except ClientError as error:
            if error.response["Error"]["Code"] in {"ResourceNotFoundException", "InvalidRequestException"}:
                return None
            raise


def worker_on(queue: str, settings: Settings, bridge: Bridge, aws: AwsClients, engine: Engine) -> Worker:
    """A worker, not yet running, on a queue of its own."""
    return compose_worker(_on(queue, settings), bridge.client, aws, engine)


@asynccontextmanager
async def commands_on(
    queue: str, settings: Settings, bridge: Bridge, aws: AwsClients, engine: Engine
) -> AsyncIterator[None]:
    """The workers that commands need, at work on a queue of their own and its jobs' queue."""
    own = _on(queue, settings)
    async with (
        compose_worker(own, bridge.client, aws, engine),
        compose_job_worker(own, bridge.client, aws, engine),
    ):
        yield


def _on(queue: str, settings: Settings) -> Settings:
    own = settings.worker.model_copy(update={"task_queue": queue})
    return settings.model_copy(update={"worker": own})


async def until(reached: Callable[[], Awaitable[bool]], what: str, seconds: float = 60) -> None:
    """Look again and again until something is so."""
    ends = time.monotonic() + seconds
    while not await reached():
        assert time.monotonic() < ends, f"not so after {seconds} s: {what}"
        await asyncio.sleep(0.05)
