"""Record the histories that `test_replay.py` replays: `uv run python -m tests.workflows.record_histories`.

It takes three to four minutes, and records only the scenarios that have no history in `histories/`.

Until 0.1.0 is cut, histories are recorded anew: a change of a workflow that does not replay deletes the
histories concerned and runs the recorder. From 0.1.0 on a history is never recorded again, because runs in
production look like it: a change that does not replay needs `workflow.patched`, and a new path through a
workflow gets a new scenario.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import text
from sqlmodel import Session

from activities.events import EventActivities
from aws.clients import AwsClients
from aws.credentials import FleetCredentials
from db.bindings import Actor
from db.engine import open_engine
from db.enrolment import enrol
from db.migrate import upgrade
from domain.enrolment import Registration
from domain.names import (
    CLAIM_CERTIFICATE_CHECK,
    COMMAND_GROUP_SWEEP,
    DEVICE_COMMAND,
    ERASURE_SWEEP,
    OUTBOX_PUBLISHER,
    TASK_QUEUE,
    event_queue,
    outbox_publisher_id,
)
from domain.outbox import OutboxShard
from domain.provisioning_status import ProvisioningStatus
from embedded.policy import create_device_policy
from embedded.stack import Addresses, Stack, isolate
from events.publisher import Publisher
from events.sinks.log import LogSink
from orchestration.client import connect
from orchestration.search_attributes import register_search_attributes
from settings import Settings
from tests.conftest import clients_of_tests
from tests.harness.active_fleet import Fleet, polling_worker
from tests.harness.bridge import HASH_KEY, POLICY, Bridge, Device, command_workers_on, until, worker_on
from tests.harness.commands import (
    PREFIX,
    QUEUE,
    SHORT_DEADLINE,
    Commands,
    command_for,
    command_for_query,
    queues,
)
from tests.workflows.test_database_outage import Outage
from worker import compose_event_worker, compose_worker

HISTORIES: Final = Path(__file__).parent / "histories"


async def provisioned(bridge: Bridge, device: Device) -> None:
    await bridge.send_and_wait(device, device.event("Provisioned"))


async def status_before_active(bridge: Bridge, device: Device) -> None:
    bridge.emulator.add_fault("iot:CreateThing", delay_seconds=0.5, times=1)
    await bridge.send_and_wait(device, device.event("Provisioned"), device.event("Suspended", 1))


async def failed_and_retried(bridge: Bridge, device: Device) -> None:
    bridge.emulator.add_fault("iot:CreateThing", code="AccessDeniedException", status=403)
    await bridge.signal(device, device.event("Provisioned"))
    await bridge.wait_for_status(device, ProvisioningStatus.FAILED)
    await bridge.signal(device, device.event("Activated", 1))
    bridge.emulator.clear_faults()
    await bridge.signal(device, signal="retry")
    await bridge.wait_for_end(device)


async def decommissioned(bridge: Bridge, device: Device) -> None:
    await provisioned(bridge, device)
    await bridge.send_and_wait(device, device.event("Decommissioned", 1))


async def decommissioned_while_provisioning(bridge: Bridge, device: Device) -> None:
    bridge.emulator.add_fault("iot:AttachPolicy", code="ThrottlingException", status=429)
    await bridge.signal(device, device.event("Provisioned"))
    await bridge.wait_for_activity(device, "attach_certificate", attempts=2)
    bridge.emulator.clear_faults()
    await bridge.send_and_wait(device, device.event("Decommissioned", 1))


async def decommissioned_while_failed(bridge: Bridge, device: Device) -> None:
    bridge.emulator.add_fault("iot:AttachPolicy", code="AccessDeniedException", status=403)
    await bridge.signal(device, device.event("Provisioned"))
    await bridge.wait_for_status(device, ProvisioningStatus.FAILED)
    bridge.emulator.clear_faults()
    await bridge.send_and_wait(device, device.event("Decommissioned", 1))


async def teardown_refused(bridge: Bridge, device: Device) -> None:
    await provisioned(bridge, device)
    bridge.emulator.add_fault("secretsmanager:DeleteSecret", code="AccessDeniedException", times=1)
    await bridge.signal(device, device.event("Decommissioned", 1))
    await bridge.wait_until_idle(device)
    await bridge.signal(device, signal="retry")
    await bridge.wait_for_end(device)


async def report_refused(bridge: Bridge, device: Device) -> None:
    await provisioned(bridge, device)
    bridge.emulator.add_fault("iot-data:UpdateThingShadow", code="ForbiddenException", status=403, times=1)
    await bridge.send_and_wait(device, device.event("Activated", 1))


async def rejected(bridge: Bridge, device: Device) -> None:
    bridge.emulator.add_fault("iot:CreateThing", delay_seconds=0.5, times=1)
    await bridge.signal(device)
    await bridge.signal(device, device.event("Provisioned"))
    await bridge.signal(device, device.event("Provisioned", serialNumber="OTHER"))
    await bridge.signal(device, 1, 2)
    await bridge.signal(device, signal="reboot")
    await bridge.wait_for_end(device)


async def without_aws_keys(bridge: Bridge, device: Device) -> None:
    settings, secret, queue = Settings.load(), ["{}"], "without-aws-keys"
    short_retries = settings.provisioning.model_copy(update={"step_retry_seconds": 1})
    credentials = FleetCredentials("arn", lambda: secret[-1])
    aws = AwsClients(4, None, credentials)
    async with worker_on(
        queue, settings.model_copy(update={"provisioning": short_retries}), bridge, aws, bridge.engine
    ):
        await bridge.signal(device, device.event("Provisioned"), queue=queue)
        await bridge.wait_for_reschedule(device, "ensure_thing")
        secret.append('{"accessKeyId": "AKIAIOSFODNN7EXAMPLE", "secretAccessKey": "embedded"}')
        credentials.refresh()
        await bridge.wait_for_end(device)


async def cancelled_by_operator(bridge: Bridge, device: Device) -> None:
    bridge.emulator.add_fault("iot:CreateThing", code="ThrottlingException", status=429)
    handle = await bridge.signal(device, device.event("Provisioned"))
    await bridge.wait_for_activity(device, "ensure_thing", attempts=2)
    await bridge.signal(device, device.event("Suspended", 1))
    await handle.cancel()
    await bridge.wait_until_idle(device)


async def cancelled_while_applying_an_event(bridge: Bridge, device: Device) -> None:
    outage, queue = Outage(Settings.load().database_url.get_secret_value()), "cancelled-while-applying"
    async with worker_on(queue, Settings.load(), bridge, AwsClients(4), outage.engine):
        handle = await bridge.signal(device, device.event("Provisioned"), queue=queue)
        await bridge.wait_for_activity(device, "apply_event", attempts=2)
        await handle.cancel()
        await bridge.wait_for_reschedule(device, "apply_event")
        outage.lasts = False
        await bridge.wait_until_idle(device)
    outage.engine.dispose()


async def retry_during_a_retry(bridge: Bridge, device: Device) -> None:
    await provisioned(bridge, device)
    refused = {"code": "ForbiddenException", "status": 403, "times": 1}
    bridge.emulator.add_fault("iot-data:UpdateThingShadow", **refused)  # type: ignore[arg-type]
    await bridge.send_and_wait(device, device.event("Activated", 1))
    in_progress = bridge.emulator.add_fault("iot-data:UpdateThingShadow", **refused, delay_seconds=1)  # type: ignore[arg-type]
    await bridge.signal(device, signal="retry")
    await bridge.wait_for_fault(in_progress)
    await bridge.signal(device, signal="retry")
    await bridge.wait_for_end(device)


async def continued_as_new(bridge: Bridge, device: Device) -> None:
    bridge.emulator.add_fault("iot:CreateThing", delay_seconds=1, times=1)
    await bridge.signal(device, device.event("Provisioned"))
    await bridge.send(device, *(device.event("Activated", minute) for minute in range(40)))
    await bridge.wait_for_end(device)


async def outbox_publisher(bridge: Bridge, device: Device) -> Sequence[str]:
    settings = Settings.load()
    queue = settings.worker.task_queue
    publisher = await bridge.client.start_workflow(
        OUTBOX_PUBLISHER,
        OutboxShard(number=0),
        id=outbox_publisher_id(queue, 0),
        task_queue=event_queue(queue),
    )

    async def continued_as_new() -> bool:
        return (await publisher.describe()).run_id != publisher.first_execution_run_id

    sending = Publisher(bridge.engine, LogSink(), park_after=timedelta(days=1), retention=timedelta(days=30))
    events = EventActivities(sending, round_seconds=0.1)
    async with compose_event_worker(settings, bridge.client, events):
        await until(continued_as_new, "the publisher continues as new")
    return [publisher.id]


async def shadow_delta_poll(bridge: Bridge, device: Device) -> Sequence[str]:
    """Poll more pages than a batch has, then pages that AWS refuses to read."""
    fleet = Fleet(bridge, "", device.serial_number)
    changed, *_ = fleet.bind(51)
    fleet.desire(changed, {"interval": 10})
    async with polling_worker(fleet, AwsClients(20), page_size=1):
        long = await fleet.start_poll()
        await long.result()
    bridge.emulator.add_fault("iot-data:GetThingShadow", code="ForbiddenException", status=403)
    async with polling_worker(fleet, AwsClients(20), page_size=40):
        refused = await fleet.start_poll()
        await refused.result()
    return [long.id, refused.id]


@asynccontextmanager
async def running_command_workers(bridge: Bridge) -> AsyncIterator[Commands]:
    """Run the workers of commands on the task queues of the tests."""
    async with AsyncExitStack() as running:
        for queue, own in queues(Settings.load()).items():
            await running.enter_async_context(
                command_workers_on(queue, own, bridge, AwsClients(4), bridge.engine)
            )
        yield Commands(bridge)


async def command_succeeded(bridge: Bridge, device: Device) -> Sequence[str]:
    async with running_command_workers(bridge) as commands:
        device = commands.device(device.serial_number)
        handle = await commands.send(command_for(device, parameters={"level": [1]}))
        await commands.wait_until_described(handle, 2)
        commands.execute_job(device, note="done")
        await commands.wait_for_end(handle)
    return [handle.id]


async def command_refused(bridge: Bridge, device: Device) -> Sequence[str]:
    async with running_command_workers(bridge) as commands:
        refused = await commands.send(command_for(device))
        broken = await bridge.client.start_workflow(
            DEVICE_COMMAND, 7, id=f"{PREFIX}-{uuid4()}", task_queue=QUEUE
        )
        await commands.wait_for_end(refused)
        await commands.wait_for_end(broken)
    return [refused.id, broken.id]


async def command_cancelled(bridge: Bridge, device: Device) -> Sequence[str]:
    async with running_command_workers(bridge) as commands:
        device = commands.device(device.serial_number)
        watched = await commands.send(command_for(device))
        await commands.wait_until_described(watched, 1)
        await watched.signal("cancel")
        by_operator = await commands.send(command_for(device))
        await commands.wait_until_described(by_operator, 1)
        await by_operator.cancel()
        fault = bridge.emulator.add_fault("iot:CreateJob", delay_seconds=1, times=1)
        being_created = await commands.send(command_for(device))
        await bridge.wait_for_fault(fault)
        await being_created.signal("cancel")
        bridge.emulator.add_fault("iot:CreateJob", code="LimitExceededException", status=410)
        not_created = await commands.send(command_for(device))
        await commands.wait_for_activity(not_created, "create_job", attempts=2)
        await not_created.signal("cancel")
        cancelled = [watched, by_operator, being_created, not_created]
        for handle in cancelled:
            await commands.wait_for_end(handle)
    return [handle.id for handle in cancelled]


async def command_at_its_deadline(bridge: Bridge, device: Device) -> Sequence[str]:
    async with running_command_workers(bridge) as commands:
        device = commands.device(device.serial_number)
        window = await commands.send(command_for_query(f"thingName:{device.thing_name}"), SHORT_DEADLINE)
        timed_out = await commands.send(command_for(device), SHORT_DEADLINE)
        for handle in (window, timed_out):
            await commands.wait_for_end(handle)
    return [window.id, timed_out.id]


async def command_group_sweep(bridge: Bridge, _device: Device) -> Sequence[str]:
    async with running_command_workers(bridge) as commands:
        handle = await bridge.client.start_workflow(COMMAND_GROUP_SWEEP, id="sweep", task_queue=QUEUE)
        await commands.wait_for_end(handle)
    return [handle.id]


async def certificate_replaced(bridge: Bridge, device: Device) -> Sequence[str]:
    device = enrolled_twice(bridge, device)
    await bridge.send_and_wait(device, device.event("Activated"))
    return [device.workflow_id]


async def retirement_refused(bridge: Bridge, device: Device) -> Sequence[str]:
    device = enrolled_twice(bridge, device)
    bridge.emulator.add_fault("iot:DeleteCertificate", code="AccessDeniedException", status=403, times=1)
    await bridge.send_and_wait(device, device.event("Activated"))
    await bridge.send_and_wait(device, device.event("Suspended", 1))
    return [device.workflow_id]


async def claim_certificate_check(bridge: Bridge, device: Device) -> Sequence[str]:
    expired = datetime(2026, 1, 1, tzinfo=UTC)
    device = enrolled_twice(bridge, device, claim_certificate_expires_at=expired)
    handle = await bridge.client.start_workflow(
        CLAIM_CERTIFICATE_CHECK, id="claim-certificate-check", task_queue=TASK_QUEUE
    )
    await handle.result()
    await bridge.wait_for_end(device)
    return [handle.id]


async def erasure_sweep(bridge: Bridge, device: Device) -> Sequence[str]:
    await bridge.send_and_wait(device, device.event("Provisioned"))
    await bridge.send_and_wait(device, device.event("Decommissioned", 1))
    with bridge.engine.begin() as connection:
        for change in (
            "UPDATE iotaws_outbox SET published_at = now()",
            "UPDATE iotaws_thing_bindings SET deleted_at = now() - interval '2 days'",
            "UPDATE iotaws_device_states SET decommissioned_at = now() - interval '2 days'",
        ):
            connection.execute(text(f"{change} WHERE device_id = :device"), {"device": device.device_id})
    handle = await bridge.client.start_workflow(ERASURE_SWEEP, id="erasure-sweep", task_queue=TASK_QUEUE)
    await handle.result()
    return [handle.id]


def enrolled_twice(bridge: Bridge, device: Device, **columns: Any) -> Device:
    """Return a device that has enrolled with one certificate, then with another, and has had no event."""
    bridge.iot.create_thing(thingName=device.thing_name)
    for _ in range(2):
        certificate = bridge.iot.create_keys_and_certificate(setAsActive=True)["certificateArn"]
        bridge.iot.attach_thing_principal(thingName=device.thing_name, principal=certificate)
        arns = {"certificate_arn": certificate, "thing_arn": f"arn:thing/{device.thing_name}"}
        registration = Registration(
            tenant_id=device.tenant_id,
            serial_number=device.serial_number,
            thing_name=device.thing_name,
            certificate_secret_arn=None,
            model="MX-3",
            firmware_version="1.0",
            label=None,
            **{"claim_certificate_expires_at": None} | columns | arns,
        )
        with Session(bridge.engine, expire_on_commit=False) as session, session.begin():
            enrolled = enrol(
                session,
                registration,
                device.thing_name,
                Actor("a recording"),
                allow_reprovision=True,
                hashing=None,
            )
    return Device(device.serial_number, device.tenant_id, enrolled.binding.device_id)


Scenario = Callable[[Bridge, Device], Awaitable[Sequence[str] | None]]
"""Runs the workflow of a device, or other workflows, whose ids it returns."""

SCENARIOS: Final[tuple[Scenario, ...]] = (
    provisioned,
    status_before_active,
    failed_and_retried,
    decommissioned,
    decommissioned_while_provisioning,
    decommissioned_while_failed,
    teardown_refused,
    report_refused,
    rejected,
    without_aws_keys,
    cancelled_by_operator,
    cancelled_while_applying_an_event,
    retry_during_a_retry,
    continued_as_new,
    outbox_publisher,
    shadow_delta_poll,
    command_succeeded,
    command_refused,
    command_cancelled,
    command_at_its_deadline,
    command_group_sweep,
    certificate_replaced,
    retirement_refused,
    claim_certificate_check,
    erasure_sweep,
)


async def record(addresses: Addresses) -> None:
    client, settings = await connect(None), Settings.load()
    await register_search_attributes(client)
    engine = open_engine(addresses.database_url, pool_size=20)
    upgrade(engine)
    create_device_policy(addresses.aws_endpoint_url, POLICY)
    async with compose_worker(settings, client, AwsClients(20), engine):
        bridge = Bridge(client, engine, addresses.aws_endpoint_url, clients_of_tests())
        for scenario in SCENARIOS:
            name = scenario.__name__.replace("_", "-")
            if list(HISTORIES.glob(f"{name}-*.json")):
                continue
            device = Device(f"HISTORY-{name}")
            workflow_ids = await scenario(bridge, device) or [device.workflow_id]
            bridge.emulator.clear_faults()
            runs = [run for each in workflow_ids async for run in bridge.runs(each)]
            for number, run in enumerate(sorted(runs, key=lambda run: run.start_time), 1):
                history = await client.get_workflow_handle(run.id, run_id=run.run_id).fetch_history()
                file = HISTORIES / f"{name}-{number}.json"
                file.write_text(json.dumps(_without_machine(json.loads(history.to_json())), indent=1) + "\n")
                sys.stdout.write(f"{file.name}: {len(history.events)} events\n")
    engine.dispose()


def _without_machine(recorded: Any) -> Any:
    """Return a history without identities and stack traces, which show the machine it was recorded on."""
    if isinstance(recorded, list):
        return [_without_machine(each) for each in recorded]
    if isinstance(recorded, dict):
        return {
            key: "worker" if key == "identity" else _without_machine(value)
            for key, value in recorded.items()
            if key != "stackTrace"
        }
    return recorded


def main() -> None:
    HISTORIES.mkdir(exist_ok=True)
    long = {"limit.historyCount.suggestContinueAsNew": 60}
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(
            Path(folder), temporal_port=0, ui_port=0, aws_port=0, mqtt_port=0, temporal_settings=long
        ) as addresses,
    ):
        isolate(os.environ, addresses)
        os.environ["IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME"] = POLICY
        os.environ["IOT_AWS_ERASURE__HASH_KEY"] = HASH_KEY
        os.environ["IOT_AWS_ERASURE__RETENTION_DAYS"] = "1"
        asyncio.run(record(addresses))


if __name__ == "__main__":
    main()
