"""The host's HTTP application: its own route, and the bridge's routes under /bridge.

uvicorn --factory greenhouse.web:create_app
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from greenhouse.connection import connect
from greenhouse.labels import LabelDevice
from thingbridge import ApiSettings, thingbridge_api


def create_app() -> Starlette:
    """Return the application of the host."""
    settings = ApiSettings.load()
    bridge = thingbridge_api(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        # A host without its own lifespan can pass `lifespan=bridge.router.lifespan_context` to Starlette.
        async with bridge.router.lifespan_context(bridge):
            yield {"temporal": await connect()}

    async def label(request: Request) -> JSONResponse:
        printed = await request.state.temporal.execute_workflow(
            LabelDevice.run,
            request.path_params["serial_number"],
            id=f"label-{uuid4()}",
            task_queue=settings.worker.task_queue,
        )
        return JSONResponse({"label": printed})

    return Starlette(
        routes=[
            Route("/labels/{serial_number}", label, methods=["POST"]),
            Mount("/bridge", bridge),
        ],
        lifespan=lifespan,
    )
