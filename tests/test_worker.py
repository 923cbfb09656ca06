"""The worker as a process: when it starts, how it stops, who takes over, and what it says meanwhile."""

import asyncio
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio
from cloudevents.core.v1.event import CloudEvent
from pydantic import SecretStr
from sqlalchemy import Engine
from temporalio.client import Client

from aws.clients import AwsClients, AwsConfigurationError
from db.engine import open_engine
from db.migrate import SchemaOutdatedError
from domain.lifecycle_event import LifecycleEvent
from domain.provisioning_status import ProvisioningStatus
from events.sinks.log import LogSink
from observability import telemetry
from orchestration.client import connect
from orchestration.requests import send_event
from orchestration.search_attributes import SearchAttributesError
from settings import Settings
from tests import ROOT
from tests.harness.bridge import Bridge, Device, until
from tests.harness.command_line import (
    empty_database,
    empty_namespace,
    environment_of,
    logging_as_it_was,
    run,
    running,
)
from tests.workflows.test_device_lifecycle import fits
from worker import compose_worker, run_worker


@dataclass(frozen=True)
class Orphan:
    """A device whose worker was killed, and the certificate it had just been issued."""

    device: Device
    certificate_arn: str


@asynccontextmanager
async def working_on(queue: str, bridge: Bridge, settings: Settings, aws: AwsClients) -> AsyncIterator[None]:
    """Another worker, in this process."""
    own = settings.worker.model_copy(update={"task_queue": queue})
    engine = open_engine(settings.database_url.get_secret_value(), pool_size=5)
    async with compose_worker(settings.model_copy(update={"worker": own}), bridge.client, aws, engine):
        yield
    engine.dispose()


async def send(bridge: Bridge, device: Device, queue: str) -> None:
    event = LifecycleEvent.from_json(json.dumps(device.event("Provisioned")))
    await send_event(bridge.client, event, queue)


@pytest_asyncio.fixture(scope="module")
async def orphan(bridge: Bridge, settings: Settings, aws: AwsClients) -> AsyncIterator[Orphan]:
    """A worker killed with a key in its hand; first of all, since another may go on half a minute later."""
    device, queue = Device("ORPHAN-1"), "killed-worker"
    bridge.emulator.add_fault(
        "secretsmanager:CreateSecret",
        resource=device.thing_name,
        code="InternalServiceError",
        status=500,
        delay_seconds=2,
        times=1,
    )
    async with running("worker", IOT_AWS_WORKER__TASK_QUEUE=queue) as process:
        await send(bridge, device, queue)

        async def issued() -> bool:
            binding = bridge.binding(device)
            return binding is not None and binding.provisioning_status is ProvisioningStatus.CERT_ISSUED

        await until(issued, "a certificate is issued")
        process.send_signal(signal.SIGKILL)
        await process.wait()
    certificate_arn = bridge.require_binding(device).certificate_arn
    assert certificate_arn is not None
    async with working_on(queue, bridge, settings, aws):
        yield Orphan(device, certificate_arn)


pytestmark = pytest.mark.usefixtures("orphan")


async def told(process: asyncio.subprocess.Process, what: str) -> bytes:
    """All that a process says on standard error until it says something."""
    assert process.stderr is not None
    said = b""
    while what.encode() not in said:
        line = await asyncio.wait_for(process.stderr.readline(), 60)
        assert line, f"ended after {said!r}"
        said += line
    return said


# --- When it starts


@pytest.mark.parametrize("command", [["thingbridge", "worker"], ["python", "worker.py"]], ids=" ".join)
def test_a_worker_without_its_settings_names_them(command: list[str]) -> None:
    """Started either way, it ends at once and says which variables it needs, and nothing else."""
    given = environment_of(DATABASE_URL=None, IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME=None)
    executable = Path(sys.executable).with_name(command[0])
    said = subprocess.run(
        [executable, *command[1:]], cwd=ROOT, env=given, capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout) == (2, "")
    first, second = said.stderr.splitlines()
    assert first.startswith("error: DATABASE_URL: is required")
    assert second.startswith("IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME: is required")


async def test_a_worker_without_a_temporal_server_says_where_it_looked() -> None:
    """Where nothing answers it ends with the address it tried."""
    said = await run("worker", TEMPORAL_ADDRESS="127.0.0.1:1")
    assert (said.exit_code, said.stdout) == (2, "")
    assert (
        said.stderr
        == "error: no Temporal server answers at 127.0.0.1:1 (TEMPORAL_ADDRESS): Connection refused\n"
    )


async def start(settings: Settings, client: Client) -> None:
    """Start a worker that must refuse."""
    await asyncio.wait_for(run_worker(settings, client, asyncio.Event()), 60)


async def test_a_worker_refuses_a_database_that_is_not_migrated(bridge: Bridge, settings: Settings) -> None:
    """On an empty database it says what to run, and does nothing."""
    url = SecretStr(empty_database(bridge.engine, settings.database_url.get_secret_value()))
    with pytest.raises(SchemaOutdatedError, match=r"at schema none, .*: run `thingbridge migrate`"):
        await start(settings.model_copy(update={"database_url": url}), bridge.client)


async def test_a_worker_refuses_a_namespace_without_its_search_attributes(
    bridge: Bridge, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every workflow would block there: it says what to run, here or by who may."""
    namespace = await empty_namespace(bridge.client)
    monkeypatch.setenv("TEMPORAL_NAMESPACE", namespace)
    with pytest.raises(SearchAttributesError, match="run `thingbridge migrate`") as refused:
        await start(settings, await connect(None))
    assert (
        f"temporal operator search-attribute create --namespace {namespace} --name TenantId --type Keyword"
    ) in str(refused.value)


async def test_a_worker_refuses_to_guess_a_region(
    bridge: Bridge, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a region from anywhere it names the variable."""
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(AwsConfigurationError, match=r"^AWS_REGION: is required"):
        await start(settings, bridge.client)


# --- How it stops


async def test_a_worker_told_to_stop_finishes_what_is_at_work(
    bridge: Bridge, settings: Settings, aws: AwsClients
) -> None:
    """On SIGTERM it takes nothing new, ends the step it is at, exits with 0; another goes on from there."""
    queue, device, later = "stopped-worker", Device("STOPPED-1"), Device("STOPPED-2")
    dawdling = bridge.emulator.add_fault(
        "iot:CreateThing", resource=device.thing_name, delay_seconds=3, times=1
    )
    # AWS_REGION alone will do, although boto3 itself does not read it.
    async with running("worker", IOT_AWS_WORKER__TASK_QUEUE=queue, AWS_DEFAULT_REGION=None) as process:
        await send(bridge, device, queue)
        await bridge.wait_for_fault(dawdling)
        process.send_signal(signal.SIGTERM)
        stderr = await told(process, "worker stopping")
        await asyncio.sleep(0.5)
        await send(bridge, later, queue)
        stdout, rest = await asyncio.wait_for(process.communicate(), 60)
        stderr += rest
    assert (process.returncode, stdout) == (0, b"")
    assert bridge.transitions(device) == ["Pending", "ThingCreated"]
    assert bridge.binding(later) is None
    said = [json.loads(line) for line in stderr.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in said)
    assert said[-1]["message"] == "worker stopped"
    async with working_on(queue, bridge, settings, aws):
        handle = await bridge.wait_for_end(device)
        await bridge.wait_for_end(later)
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE
    attempts = [
        event.activity_task_started_event_attributes.attempt
        async for event in handle.fetch_history_events()
        if event.HasField("activity_task_started_event_attributes")
    ]
    assert attempts == [1, 1, 1, 1]


# --- Versions


async def test_a_versioned_worker_works_once_the_command_it_prints_has_been_run(bridge: Bridge) -> None:
    """With a build id nothing runs until that version is made current, by the very command in its log.

    Then the saga runs, and what it tells goes out, by default into the log.
    """
    queue, device = "versioned-worker", Device("VERSIONED-1")
    version = {"IOT_AWS_WORKER__BUILD_ID": "1.0 beta", "IOT_AWS_WORKER__DEPLOYMENT_NAME": "versioned bridge"}
    async with running("worker", IOT_AWS_WORKER__TASK_QUEUE=queue, **version) as process:
        await send(bridge, device, queue)
        assert process.stderr is not None
        command = ""
        while not command:
            command = json.loads(await process.stderr.readline()).get("command", "")

        async def made_current() -> bool:
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            shell = await asyncio.create_subprocess_shell(
                command, env=environment_of(PATH=path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            await shell.communicate()
            return shell.returncode == 0

        await until(made_current, "the version, registered by its worker, is made current")
        handle = await bridge.wait_for_end(device)
        told: dict[str, str] = {}
        while told.get("subject") != str(device.device_id):
            told = json.loads(await process.stderr.readline()).get("event", {})
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE
    assert told["type"] == "AwsThingProvisionedEvent"
    described = (await handle.describe()).raw_description.workflow_execution_info
    assert described.versioning_info.deployment_version.build_id == "1.0 beta"


# --- What it says


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """A log to write to, instead of standard error."""
    with logging_as_it_was():
        yield io.StringIO()


def test_a_line_of_the_log_is_one_json_object(log: io.StringIO) -> None:
    """Whatever is logged, with a stack trace too, is one line with time, level, logger and message."""
    telemetry.configure("INFO", "json", log)
    logger = logging.getLogger("thingbridge.test")
    try:
        json.loads("two\nlines")
    except ValueError:
        logger.exception("it failed: %s", "twice\nover", extra={"task_queue": "q"})
    logger.debug("not said")
    (line,) = log.getvalue().splitlines()
    said = json.loads(line)
    assert datetime.fromisoformat(said["time"]).tzinfo is not None
    assert (said["level"], said["logger"], said["message"]) == (
        "ERROR",
        "thingbridge.test",
        "it failed: twice\nover",
    )
    assert said["task_queue"] == "q"
    assert said["exc_info"].startswith("Traceback (most recent call last):\n")


async def test_a_line_about_a_workflow_names_it(bridge: Bridge, log: io.StringIO) -> None:
    """What a workflow or an activity logs bears its type, ids and run."""
    telemetry.configure("DEBUG", "json", log)
    device = Device("LOGGED-1")
    await bridge.send(device, {"no": "event"}, device.event("Provisioned"))
    handle = await bridge.wait_for_end(device)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    run_id = (await handle.describe()).run_id
    of_workflow = [line["temporal_workflow"] for line in lines if "temporal_workflow" in line]
    of_activity = [line["temporal_activity"] for line in lines if "temporal_activity" in line]
    assert {(each["workflow_id"], each["run_id"]) for each in of_workflow} == {(device.workflow_id, run_id)}
    assert {each["workflow_id"] for each in of_activity} == {device.workflow_id}
    assert {each["activity_type"] for each in of_activity} >= {"ensure_thing", "issue_certificate"}


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING"])
def test_the_libraries_that_see_keys_never_say_all(log: io.StringIO, bridge: Bridge, level: str) -> None:
    """Even at DEBUG boto3 and what is below it do not log requests, for these carry private keys."""
    telemetry.configure(level, "json", log)
    bridge.secrets.create_secret(Name=f"log-{level}", SecretString="hush")
    logging.getLogger("thingbridge.test").debug("said")
    assert ("said" in log.getvalue()) == (level == "DEBUG")
    assert "hush" not in log.getvalue()
    least = logging.INFO if level == "DEBUG" else logging.WARNING
    for name in ("boto3", "botocore", "botocore.endpoint", "urllib3.connectionpool"):
        assert logging.getLogger(name).getEffectiveLevel() == least
    bridge.secrets.delete_secret(SecretId=f"log-{level}", ForceDeleteWithoutRecovery=True)


def test_events_reach_the_log_whatever_its_level(log: io.StringIO) -> None:
    """A level says which chatter is let through; what the log is the sink for is not chatter."""
    telemetry.configure("ERROR", "json", log)
    LogSink().send(CloudEvent({"id": "1", "source": "/thingbridge", "type": "Told", "subject": "d"}))
    logging.getLogger("thingbridge.test").warning("chatter")
    (line,) = log.getvalue().splitlines()
    assert json.loads(line)["event"]["type"] == "Told"


# --- Who takes over, last: by now the half minute has mostly passed


async def test_a_killed_workers_device_is_healed_by_another(bridge: Bridge, orphan: Orphan) -> None:
    """A device whose key was lost with its worker ends Active, and has no certificate too many."""
    await bridge.wait_for_end(orphan.device, 45)
    binding = bridge.require_binding(orphan.device)
    assert binding.provisioning_status is ProvisioningStatus.ACTIVE
    traces = bridge.traces(orphan.device, orphan.certificate_arn)
    (certificate,) = traces.certificates
    assert (certificate.arn, certificate.status) == (binding.certificate_arn, "ACTIVE")
    assert certificate.arn != orphan.certificate_arn
    assert fits(traces.key, bridge.certificate_pem(certificate.arn))


async def test_calls_to_aws_are_limited_for_all_workers_together(
    bridge: Bridge, settings: Settings, aws: AwsClients, engine: Engine
) -> None:
    """The queue's rate, which Temporal holds over every worker, is the one that is set."""
    limited = settings.worker.model_copy(update={"max_activities_per_second": 7.5, "task_queue": "limited"})
    worker = compose_worker(settings.model_copy(update={"worker": limited}), bridge.client, aws, engine)
    assert worker.config()["max_task_queue_activities_per_second"] == 7.5
