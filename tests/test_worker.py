"""The worker as a process: start, shutdown, failover, versions and logs."""

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
    process_environment,
    restored_logging,
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
async def worker_on_queue(
    queue: str, bridge: Bridge, settings: Settings, aws: AwsClients
) -> AsyncIterator[None]:
    """Run another worker in this process."""
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
    """Kill a worker that has a private key in memory; first, because another continues 45 s later."""
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
    async with worker_on_queue(queue, bridge, settings, aws):
        yield Orphan(device, certificate_arn)


pytestmark = pytest.mark.usefixtures("orphan")


async def stderr_until(process: asyncio.subprocess.Process, text: str) -> bytes:
    """Return the standard error of a process up to the line that contains a text."""
    assert process.stderr is not None
    output = b""
    while text.encode() not in output:
        line = await asyncio.wait_for(process.stderr.readline(), 60)
        assert line, f"ended after {output!r}"
        output += line
    return output


# --- Start


@pytest.mark.parametrize("command", [["thingbridge", "worker"], ["python", "worker.py"]], ids=" ".join)
def test_worker_without_required_settings_names_them(command: list[str]) -> None:
    """Started either way, it ends at once and prints the names of the missing variables, and nothing else."""
    environment = process_environment(DATABASE_URL=None, IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME=None)
    executable = Path(sys.executable).with_name(command[0])
    result = subprocess.run(
        [executable, *command[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    first, second = result.stderr.splitlines()
    assert first.startswith("error: DATABASE_URL: is required")
    assert second.startswith("IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME: is required")


async def test_worker_without_a_temporal_server_prints_the_address() -> None:
    """If no server answers, it ends and prints the address that it tried."""
    result = await run("worker", TEMPORAL_ADDRESS="127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert (
        result.stderr
        == "error: no Temporal server answers at 127.0.0.1:1 (TEMPORAL_ADDRESS): Connection refused\n"
    )


async def start(settings: Settings, client: Client) -> None:
    """Start a worker that has to refuse."""
    await asyncio.wait_for(run_worker(settings, client, asyncio.Event()), 60)


async def test_worker_refuses_a_database_that_is_not_migrated(bridge: Bridge, settings: Settings) -> None:
    """On an empty database it raises an error with the command to run."""
    url = SecretStr(empty_database(bridge.engine, settings.database_url.get_secret_value()))
    with pytest.raises(SchemaOutdatedError, match=r"at schema none, .*: run `thingbridge migrate`"):
        await start(settings.model_copy(update={"database_url": url}), bridge.client)


async def test_worker_refuses_a_namespace_without_search_attributes(
    bridge: Bridge, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every workflow would block there; the error has the commands to run."""
    namespace = await empty_namespace(bridge.client)
    monkeypatch.setenv("TEMPORAL_NAMESPACE", namespace)
    with pytest.raises(SearchAttributesError, match="run `thingbridge migrate`") as refused:
        await start(settings, await connect(None))
    assert (
        f"temporal operator search-attribute create --namespace {namespace} --name TenantId --type Keyword"
    ) in str(refused.value)


async def test_worker_refuses_to_start_without_a_region(
    bridge: Bridge, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a region in environment or profile, the error names the variable."""
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(AwsConfigurationError, match=r"^AWS_REGION: is required"):
        await start(settings, bridge.client)


# --- Shutdown


async def test_stopped_worker_completes_the_step_in_progress(
    bridge: Bridge, settings: Settings, aws: AwsClients
) -> None:
    """On SIGTERM it accepts no new work, completes the step and exits with 0; another worker continues."""
    queue, device, later = "stopped-worker", Device("STOPPED-1"), Device("STOPPED-2")
    slow_call = bridge.emulator.add_fault(
        "iot:CreateThing", resource=device.thing_name, delay_seconds=3, times=1
    )
    # AWS_REGION is enough, although boto3 itself does not read it.
    async with running("worker", IOT_AWS_WORKER__TASK_QUEUE=queue, AWS_DEFAULT_REGION=None) as process:
        await send(bridge, device, queue)
        await bridge.wait_for_fault(slow_call)
        process.send_signal(signal.SIGTERM)
        stderr = await stderr_until(process, "worker stopping")
        await asyncio.sleep(0.5)
        await send(bridge, later, queue)
        stdout, rest = await asyncio.wait_for(process.communicate(), 60)
        stderr += rest
    assert (process.returncode, stdout) == (0, b"")
    assert bridge.transitions(device) == ["Pending", "ThingCreated"]
    assert bridge.binding(later) is None
    lines = [json.loads(line) for line in stderr.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert lines[-1]["message"] == "worker stopped"
    async with worker_on_queue(queue, bridge, settings, aws):
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


async def test_versioned_worker_runs_after_the_command_it_logs(bridge: Bridge) -> None:
    """With a build id nothing runs until the logged command has made that version current.

    Then the saga runs, and its event is published, by default to the log.
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
                command, env=process_environment(PATH=path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            await shell.communicate()
            return shell.returncode == 0

        await until(made_current, "the version, registered by its worker, is made current")
        handle = await bridge.wait_for_end(device)
        event: dict[str, str] = {}
        while event.get("subject") != str(device.device_id):
            event = json.loads(await process.stderr.readline()).get("event", {})
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE
    assert event["type"] == "AwsThingProvisionedEvent"
    described = (await handle.describe()).raw_description.workflow_execution_info
    assert described.versioning_info.deployment_version.build_id == "1.0 beta"


# --- Logs


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Return a stream for the log in place of standard error."""
    with restored_logging():
        yield io.StringIO()


def test_log_line_is_one_json_object(log: io.StringIO) -> None:
    """Every record, also one with a stack trace, is one line with time, level, logger and message."""
    telemetry.configure("INFO", "json", log)
    logger = logging.getLogger("thingbridge.test")
    try:
        json.loads("two\nlines")
    except ValueError:
        logger.exception("it failed: %s", "twice\nover", extra={"task_queue": "q"})
    logger.debug("not logged")
    (line,) = log.getvalue().splitlines()
    logged = json.loads(line)
    assert datetime.fromisoformat(logged["time"]).tzinfo is not None
    assert (logged["level"], logged["logger"], logged["message"]) == (
        "ERROR",
        "thingbridge.test",
        "it failed: twice\nover",
    )
    assert logged["task_queue"] == "q"
    assert logged["exc_info"].startswith("Traceback (most recent call last):\n")


async def test_log_line_of_a_workflow_has_its_ids(bridge: Bridge, log: io.StringIO) -> None:
    """A log line of a workflow or an activity has its type, workflow id and run id."""
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
def test_aws_libraries_never_log_requests(log: io.StringIO, bridge: Bridge, level: str) -> None:
    """Even at DEBUG, boto3 and its dependencies do not log requests, which contain private keys."""
    telemetry.configure(level, "json", log)
    bridge.secrets.create_secret(Name=f"log-{level}", SecretString="hush")
    logging.getLogger("thingbridge.test").debug("logged")
    assert ("logged" in log.getvalue()) == (level == "DEBUG")
    assert "hush" not in log.getvalue()
    lowest = logging.INFO if level == "DEBUG" else logging.WARNING
    for name in ("boto3", "botocore", "botocore.endpoint", "urllib3.connectionpool"):
        assert logging.getLogger(name).getEffectiveLevel() == lowest
    bridge.secrets.delete_secret(SecretId=f"log-{level}", ForceDeleteWithoutRecovery=True)


def test_published_events_are_logged_at_every_level(log: io.StringIO) -> None:
    """The log level filters log lines, but not the events that the log sink publishes."""
    telemetry.configure("ERROR", "json", log)
    LogSink().send(CloudEvent({"id": "1", "source": "/thingbridge", "type": "Published", "subject": "d"}))
    logging.getLogger("thingbridge.test").warning("filtered")
    (line,) = log.getvalue().splitlines()
    assert json.loads(line)["event"]["type"] == "Published"


# --- Failover; last, because most of the 45 seconds have passed by now


async def test_device_of_a_killed_worker_is_healed_by_another(bridge: Bridge, orphan: Orphan) -> None:
    """A device whose private key was lost with its worker ends Active, with one certificate only."""
    await bridge.wait_for_end(orphan.device, 45)
    binding = bridge.require_binding(orphan.device)
    assert binding.provisioning_status is ProvisioningStatus.ACTIVE
    resources = bridge.aws_resources(orphan.device, orphan.certificate_arn)
    (certificate,) = resources.certificates
    assert (certificate.arn, certificate.status) == (binding.certificate_arn, "ACTIVE")
    assert certificate.arn != orphan.certificate_arn
    assert fits(resources.key, bridge.certificate_pem(certificate.arn))


async def test_activity_rate_limit_is_that_of_the_task_queue(
    bridge: Bridge, settings: Settings, aws: AwsClients, engine: Engine
) -> None:
    """The rate limit of the settings is the task queue's, so Temporal applies it to all workers together."""
    limited = settings.worker.model_copy(update={"max_activities_per_second": 7.5, "task_queue": "limited"})
    worker = compose_worker(settings.model_copy(update={"worker": limited}), bridge.client, aws, engine)
    assert worker.config()["max_task_queue_activities_per_second"] == 7.5
