"""The HTTP API mounted in a host application."""

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
    """Run a host that runs the lifespan of the mounted application."""
    bridge = thingbridge_api(ApiSettings.load())
    app = Starlette(routes=[Mount("/iot", bridge)], lifespan=bridge.router.lifespan_context)
    async with open_http_api(engine, app) as http_api:
        yield http_api


async def test_a_mounted_endpoint_requires_a_key(host: HttpApi) -> None:
    """This holds for every path, as it does without a host."""
    async with host.client() as anonymous, host.operator() as operator:
        for path in (BINDINGS, "/iot/api/iot/device-events", "/iot/api/nothing"):
            assert problem(await anonymous.get(path))["status"] == 401
        assert (await operator.get(BINDINGS)).status_code == 200
        assert problem(await operator.get("/iot/api/nothing"))["status"] == 404


async def test_the_openapi_document_has_the_mount_path(host: HttpApi) -> None:
    """The document has it as its server, and the page in its paths."""
    async with host.client() as http:
        document = (await http.get("/iot/openapi.json")).json()
        page = (await http.get("/iot/docs")).text
    assert document["servers"] == [{"url": "/iot"}]
    assert "/api/iot/bindings" in document["paths"]
    assert f"GET {BINDINGS}" in page


async def test_a_mounted_application_works_without_its_lifespan(engine: Engine, client: Client) -> None:
    """Starlette does not run the lifespan of mounted applications."""
    bridge = thingbridge_api(ApiSettings.load())
    async with open_http_api(engine, Starlette(routes=[Mount("/iot", bridge)])) as host:
        async with host.operator() as http:
            ready = await http.get("/iot/readyz")
        assert (ready.status_code, ready.json()["database"]) == (200, "ok")
    # Closes the connections that this test has opened.
    async with bridge.router.lifespan_context(bridge):
        pass
