"""Fixtures of all tests: one stack and one worker on the real engine, database and AWS emulator."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import boto3
import pytest
import pytest_asyncio
from botocore.config import Config
from sqlalchemy import Engine
from sqlmodel import Session
from temporalio.client import Client

from aws.clients import AwsClients
from db.aws_location import save_location
from db.engine import open_engine
from db.migrate import upgrade
from domain.names import TASK_QUEUE
from embedded.policy import create_device_policy
from embedded.stack import Addresses, Stack, isolate
from orchestration.client import connect
from orchestration.schedules import schedules, upsert_schedules
from orchestration.search_attributes import register_search_attributes
from settings import Settings
from tests.harness.bridge import HASH_KEY, POLICY, Bridge, command_workers_on, worker_on
from tests.harness.commands import Commands, queues
from tests.harness.enrolment import EnrolmentHarness
from tests.harness.http_api import HttpApi, open_http_api
from tests.harness.moto import moto_server, without_connections
from worker import compose_worker

EMULATORS = ("ministack", "moto")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test marked `both_emulators` once on each."""
    if metafunc.definition.get_closest_marker("both_emulators") is not None:
        metafunc.parametrize("emulator_name", EMULATORS, indirect=True)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """The embedded servers; this process's environment points at them."""
    before = dict(os.environ)
    faster_than_production: dict[str, int | str] = {
        # Continue-as-new is suggested at a twentieth of the default length, so that bursts can be small.
        "limit.historyCount.suggestContinueAsNew": 200,
        # Retries are due within 50 ms; by default the server checks its timers once a second.
        "history.timerProcessorMaxTimeShift": "50ms",
    }
    folder = tmp_path_factory.mktemp("stack")
    with Stack(
        folder, temporal_port=0, ui_port=0, aws_port=0, mqtt_port=0, temporal_settings=faster_than_production
    ) as addresses:
        isolate(os.environ, addresses)
        os.environ["IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME"] = POLICY
        # One key for all tests: a serial number erased in the shared database must stay denied.
        os.environ["IOT_AWS_ERASURE__HASH_KEY"] = HASH_KEY
        # A throttled fleet must finish its retries within seconds.
        os.environ["IOT_AWS_WORKER__MAX_ACTIVITIES_PER_SECOND"] = "500"
        yield addresses
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def engine(stack: Addresses) -> Iterator[Engine]:
    opened = open_engine(stack.database_url, pool_size=10)
    upgrade(opened)
    yield opened
    opened.dispose()


@pytest_asyncio.fixture(scope="session")
async def client(stack: Addresses) -> Client:
    connected = await connect(None)
    await register_search_attributes(connected)
    # Paused as an operator would pause them: workers keep the pause, and no poll adds to the calls that a
    # test counts.
    wanted = schedules(TASK_QUEUE, poll_interval_seconds=30, claim_check_interval_hours=24)
    await upsert_schedules(connected, wanted)
    for schedule_id in wanted:
        await connected.get_schedule_handle(schedule_id).pause(note="tests trigger polls themselves")
    return connected


@pytest.fixture(scope="session")
def settings(stack: Addresses) -> Settings:
    return Settings.load()


@pytest.fixture(scope="session")
def aws(stack: Addresses, settings: Settings) -> AwsClients:
    """The AWS clients of the worker under test; tests that crash it add hooks to them."""
    return AwsClients(settings.worker.max_concurrent_activities)


@pytest_asyncio.fixture(scope="session")
async def bridge(
    stack: Addresses, engine: Engine, client: Client, settings: Settings, aws: AwsClients
) -> AsyncIterator[Bridge]:
    """The bridge with a running worker."""
    create_device_policy(stack.aws_endpoint_url, POLICY)
    clients = clients_of_tests()
    worker_engine = open_engine(stack.database_url, pool_size=settings.worker.max_concurrent_activities)
    async with compose_worker(settings, client, aws, worker_engine):
        yield Bridge(client, engine, stack.aws_endpoint_url, clients)
    worker_engine.dispose()


@pytest.fixture(scope="session")
def moto_url(stack: Addresses) -> Iterator[str]:
    """A server of moto, for tests marked `both_emulators`."""
    with moto_server(Path(stack.ca_file).with_name("moto.log")) as url:
        create_device_policy(url, POLICY)
        yield url


@pytest.fixture(scope="session")
def moto_aws_clients(moto_url: str, settings: Settings) -> AwsClients:
    """The AWS clients of the worker on moto."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", moto_url)
        return without_connections(AwsClients(settings.worker.max_concurrent_activities))


@pytest_asyncio.fixture(scope="session")
async def moto_bridge(
    moto_url: str, moto_aws_clients: AwsClients, engine: Engine, client: Client, settings: Settings
) -> AsyncIterator[Bridge]:
    """The bridge with a worker on moto. It shares Temporal and the database with `bridge`, but no queue."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", moto_url)
        clients = clients_of_tests()
    bridge = Bridge(client, engine, moto_url, clients, queue="moto")
    async with worker_on(bridge.queue, settings, bridge, moto_aws_clients, engine):
        yield bridge


@pytest.fixture
def emulator_name(request: pytest.FixtureRequest) -> str:
    """The emulator of the test: ministack's, unless the mark `both_emulators` selects moto."""
    return str(getattr(request, "param", EMULATORS[0]))


@pytest.fixture
def bridge_on_emulator(emulator_name: str, request: pytest.FixtureRequest) -> Bridge:
    """The bridge on the emulator of the test. A module with marked tests overrides `bridge` with it."""
    bridge = request.getfixturevalue("moto_bridge" if emulator_name == "moto" else "bridge")
    assert isinstance(bridge, Bridge)
    return bridge


@pytest.fixture
def aws_on_emulator(emulator_name: str, request: pytest.FixtureRequest) -> AwsClients:
    """The AWS clients of the worker of `bridge_on_emulator`."""
    aws = request.getfixturevalue("moto_aws_clients" if emulator_name == "moto" else "aws")
    assert isinstance(aws, AwsClients)
    return aws


@pytest_asyncio.fixture(scope="session")
async def http_api(engine: Engine, client: Client) -> AsyncIterator[HttpApi]:
    """The HTTP API; a worker handles its events only if a test also uses `bridge`."""
    async with open_http_api(engine) as opened:
        yield opened


@pytest.fixture(scope="session")
def enrolment(engine: Engine, aws: AwsClients) -> EnrolmentHarness:
    """Devices that enrol themselves in the AWS location that a worker has stored."""
    location = aws.find_location(None)
    with Session(engine) as session, session.begin():
        save_location(session, location)
    return EnrolmentHarness(location, engine)


@pytest_asyncio.fixture(scope="session")
async def _command_workers(
    bridge: Bridge, settings: Settings, aws: AwsClients, engine: Engine
) -> AsyncIterator[None]:
    async with AsyncExitStack() as running_workers:
        for queue, queue_settings in queues(settings).items():
            await running_workers.enter_async_context(
                command_workers_on(queue, queue_settings, bridge, aws, engine)
            )
        yield


@pytest.fixture
def commands(_command_workers: None, bridge: Bridge) -> Iterator[Commands]:
    """The bridge with workers for commands; the emulator is reset afterwards."""
    bridge.emulator.settings(detach_seconds=0)
    yield Commands(bridge)
    bridge.emulator.clear_faults()
    bridge.emulator.default_settings()


@pytest.fixture
def faulty_bridge(bridge: Bridge) -> Iterator[Bridge]:
    """The bridge, for tests that add faults to the emulator; they are cleared afterwards."""
    yield bridge
    bridge.emulator.clear_faults()


def clients_of_tests() -> dict[str, Any]:
    """Return the AWS clients of the tests, which do not trigger the faults meant for the bridge."""
    config = Config(retries={"total_max_attempts": 1}, max_pool_connections=32)
    return {name: boto3.client(name, config=config) for name in ("iot", "iot-data", "secretsmanager")}
