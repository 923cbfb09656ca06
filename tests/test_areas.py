"""A deployment with some areas only: what it does and serves, and that the other areas are absent."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import pytest_asyncio
from sqlalchemy import Engine
from sqlmodel import Session
from temporalio.client import Client

from api.app import create_app
from db.engine import open_engine
from db.migrate import upgrade
from db.models import DeviceStateRow
from domain.area import ALL_AREAS, Area
from domain.names import (
    CLAIM_CERTIFICATE_CHECK_SCHEDULE,
    COMMAND_GROUP_SWEEP_SCHEDULE,
    ERASURE_SWEEP_SCHEDULE,
    SHADOW_DELTA_POLL,
    SHADOW_DELTA_POLL_SCHEDULE,
)
from domain.provisioning_status import ProvisioningStatus
from embedded.policy import create_device_policy
from embedded.stack import Addresses
from orchestration.client import connect
from orchestration.search_attributes import register_search_attributes
from settings import ApiSettings, Settings
from tests.conftest import clients_of_tests
from tests.harness.bridge import POLICY, Bridge, Device, until
from tests.harness.command_line import empty_database, empty_namespace
from tests.harness.http_api import open_http_api
from worker import run_worker

SCHEDULES = {
    Area.SHADOW: SHADOW_DELTA_POLL_SCHEDULE,
    Area.JOBS: COMMAND_GROUP_SWEEP_SCHEDULE,
    Area.FLEET_PROVISIONING: CLAIM_CERTIFICATE_CHECK_SCHEDULE,
}
PATHS = {
    Area.PROVISIONING: {"/api/iot/device-events"},
    Area.SHADOW: {"/api/iot/device-events"},
    Area.JOBS: {"/api/iot/commands", "/api/iot/commands/{commandId}"},
    Area.FLEET_PROVISIONING: {
        "/api/iot/device-events",
        "/api/iot/fleet-provisioning/verify",
        "/api/iot/fleet-provisioning/registered",
    },
}
OF_ALL = {"/api/iot/bindings", "/api/iot/bindings/{deviceId}"}


@dataclass(frozen=True)
class Deployment:
    """A database and a Temporal namespace, for one worker of some areas at a time."""

    bridge: Bridge
    settings: Settings

    @asynccontextmanager
    async def worker(self, *areas: Area) -> AsyncIterator[Bridge]:
        # A worker that is stopped at the start of its first task waits for its whole grace period.
        own = self.settings.worker.model_copy(update={"areas": areas, "shutdown_grace_seconds": 2})
        shadow = self.settings.shadow.model_copy(update={"poll_interval_seconds": 600})
        stop = asyncio.Event()
        settings = self.settings.model_copy(update={"worker": own, "shadow": shadow})
        running = asyncio.create_task(run_worker(settings, self.bridge.client, stop))
        yield self.bridge
        stop.set()
        await running


@pytest_asyncio.fixture
async def deployment(
    stack: Addresses, engine: Engine, client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Deployment]:
    """Return an empty deployment, which no other worker uses."""
    create_device_policy(stack.aws_endpoint_url, POLICY)
    monkeypatch.setenv("TEMPORAL_NAMESPACE", await empty_namespace(client))
    monkeypatch.setenv("DATABASE_URL", empty_database(engine, stack.database_url))
    own = await connect(None)
    await register_search_attributes(own)
    loaded = Settings.load()
    database = open_engine(loaded.database_url.get_secret_value())
    upgrade(database)
    yield Deployment(Bridge(own, database, stack.aws_endpoint_url, clients_of_tests()), loaded)
    database.dispose()


async def schedules_of(client: Client) -> set[str]:
    return {listed.id async for listed in await client.list_schedules()}


async def test_provisioning_alone_creates_things_and_reports_no_status(deployment: Deployment) -> None:
    """A device becomes Active, its shadow is not written, and only the erasure schedule is created."""
    device = Device("ALONE-1")
    async with deployment.worker(Area.PROVISIONING) as bridge:
        await bridge.send_and_wait(device, device.event("Provisioned"), device.event("Suspended", 1))

        async def created() -> bool:
            return await schedules_of(bridge.client) == {ERASURE_SWEEP_SCHEDULE}

        await until(created, "the schedule of all areas is created")
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE
    assert bridge.shadow_names(device) == []


async def test_without_jobs_a_delta_is_published_and_no_command_is_started(deployment: Deployment) -> None:
    """The platform receives the desired state, and decides itself what to do with it."""
    device = Device("ALONE-2")
    async with deployment.worker(Area.PROVISIONING, Area.SHADOW) as bridge:
        await bridge.send_and_wait(device, device.event("Provisioned"), device.event("Activated", 1))
        assert bridge.shadow_names(device) == [""]
        desired = json.dumps({"state": {"desired": {"interval": 60}}})
        bridge.iot_data.update_thing_shadow(thingName=device.thing_name, payload=desired)
        poll = await bridge.client.start_workflow(
            SHADOW_DELTA_POLL, id="a-poll", task_queue=deployment.settings.worker.task_queue
        )
        totals = await asyncio.wait_for(poll.result(), 60)
    assert (totals["changed"], totals["commanded"]) == (1, 0)
    assert bridge.published(device) == ["AwsThingProvisionedEvent", "DeviceDesiredStateChangedEvent"]


async def test_without_provisioning_no_thing_is_created(deployment: Deployment) -> None:
    """The platform's event is applied, the run completes, and no Thing is created in AWS."""
    device = Device("ALONE-3")
    async with deployment.worker(Area.FLEET_PROVISIONING, Area.SHADOW) as bridge:
        await bridge.send_and_wait(device, device.event("Provisioned"), device.event("Activated", 1))
    assert bridge.binding(device) is None
    assert bridge.aws_resources(device).thing is None
    with Session(bridge.engine) as session:
        assert session.get(DeviceStateRow, device.device_id) is not None


async def test_provisioned_device_is_decommissioned_without_that_area(deployment: Deployment) -> None:
    """A device that was provisioned before its area was turned off can be removed from AWS."""
    device = Device("ALONE-4")
    async with deployment.worker(Area.PROVISIONING) as bridge:
        await bridge.send_and_wait(device, device.event("Provisioned"))
    async with deployment.worker(Area.SHADOW) as bridge:
        await bridge.send_and_wait(device, device.event("Decommissioned", 1))
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.DECOMMISSIONED
    assert bridge.aws_resources(device).thing is None


@pytest.mark.parametrize("area", ALL_AREAS)
async def test_schedules_are_those_of_the_areas(deployment: Deployment, area: Area) -> None:
    """Each area with a schedule has its own, beside the erasure schedule of all areas."""
    expected = {ERASURE_SWEEP_SCHEDULE, SCHEDULES.get(area, ERASURE_SWEEP_SCHEDULE)}
    async with deployment.worker(area) as bridge:

        async def created() -> bool:
            return await schedules_of(bridge.client) == expected

        await until(created, f"the schedules are {expected}")


def api_settings(*areas: Area) -> ApiSettings:
    settings = ApiSettings.load()
    own = settings.worker.model_copy(update={"areas": areas})
    return settings.model_copy(update={"worker": own})


@pytest.mark.parametrize("area", ALL_AREAS)
async def test_openapi_document_has_the_routes_of_the_area(
    engine: Engine, client: Client, area: Area
) -> None:
    """The document has the routes of one area and those of all areas."""
    async with open_http_api(engine, create_app(api_settings(area))) as http_api, http_api.client() as http:
        document = (await http.get("/openapi.json")).json()
    assert document["paths"].keys() == PATHS[area] | OF_ALL


async def test_routes_of_an_area_that_is_off_are_absent(engine: Engine, client: Client) -> None:
    """They answer 404 to a caller with a key, and 401 without one, as every path does."""
    app = create_app(api_settings(Area.PROVISIONING, Area.SHADOW, Area.JOBS))
    async with (
        open_http_api(engine, app) as http_api,
        http_api.operator() as http,
        http_api.client() as anonymous,
    ):
        for route in ("verify", "registered"):
            path = f"/api/iot/fleet-provisioning/{route}"
            body = {"serialNumber": "SN-1"}
            assert (await http.post(path, json=body)).status_code == 404
            assert (await anonymous.post(path, json=body)).status_code == 401
        assert (await http.get("/api/iot/bindings")).status_code == 200
