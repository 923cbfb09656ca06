"""The HTTP doors in an application of a host's own."""

from collections.abc import AsyncIterator

import pytest_asyncio
from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.routing import Mount
from temporalio.client import Client

from settings import ApiSettings
from tests.harness.http_api import HttpApi, open_http_api, problem
from thingbridge import thingbridge_api

BINDINGS = "/iot/api/iot/bindings"


@pytest_asyncio.fixture
async def host(engine: Engine, client: Client) -> AsyncIterator[HttpApi]:
    """A host that passes on the lifespan of what it mounts."""
    bridge = thingbridge_api(ApiSettings.load())
    app = Starlette(routes=[Mount("/iot", bridge)], lifespan=bridge.router.lifespan_context)
    async with open_http_api(engine, app) as http_api:
        yield http_api


async def test_a_mounted_door_needs_a_key(host: HttpApi) -> None:
    """As it does without a host, whatever the path."""
    async with host.client() as nobody, host.operator() as operator:
        for path in (BINDINGS, "/iot/api/iot/device-events", "/iot/api/nothing"):
            assert problem(await nobody.get(path))["status"] == 401
        assert (await operator.get(BINDINGS)).status_code == 200
        assert problem(await operator.get("/iot/api/nothing"))["status"] == 404


async def test_the_document_says_where_the_doors_are_mounted(host: HttpApi) -> None:
    """Tools find them by its server, people by the paths on the page."""
    async with host.client() as http:
        document = (await http.get("/iot/openapi.json")).json()
        page = (await http.get("/iot/docs")).text
    assert document["servers"] == [{"url": "/iot"}]
    assert "/api/iot/bindings" in document["paths"]
    assert f"GET {BINDINGS}" in page


async def test_a_host_that_runs_no_lifespan_is_answered_too(engine: Engine, client: Client) -> None:
    """Starlette runs none for what is mounted."""
    bridge = thingbridge_api(ApiSettings.load())
    async with open_http_api(engine, Starlette(routes=[Mount("/iot", bridge)])) as host:
        async with host.operator() as http:
            ready = await http.get("/iot/readyz")
        assert (ready.status_code, ready.json()["database"]) == (200, "ok")
    # So that no connection is left open here.
    async with bridge.router.lifespan_context(bridge):
        pass
