"""The HTTP API as an ASGI application: its endpoints, its middleware, and the connections they share."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from api.auth import Authenticator
from api.aws_status import AwsCredentials
from api.database import Database
from api.docs import DOCS_POLICY, docs_page
from api.endpoints import Endpoint, endpoint_routes
from api.errors import http_problem
from api.middleware import middleware_stack
from api.openapi import openapi_document, with_server
from api.routes.bindings import binding_endpoints
from api.routes.commands import Commands, command_endpoints
from api.routes.device_events import device_event_endpoints
from api.routes.fleet_provisioning import FleetProvisioning, fleet_provisioning_endpoints
from api.routes.health import Readiness, liveness_route, metrics_route, readiness_route
from api.serial_policy import load_serial_check
from api.temporal import Temporal
from api.tracing import tracing_middleware
from db.engine import open_engine
from domain.area import Area, handles_device_events
from settings import ApiSettings

_PROTECTED_PATHS: Final = ("/api/",)
_SIGNAL_SECONDS: Final = 3.0


def compose_endpoints(
    settings: ApiSettings, database: Database, temporal: Temporal, credentials: AwsCredentials
) -> Sequence[Endpoint[Any]]:
    """Return the endpoints of the enabled areas. Each requires an API key."""
    areas, task_queue = settings.worker.areas, settings.worker.task_queue
    endpoints: list[Endpoint[Any]] = []
    if handles_device_events(areas):
        endpoints += device_event_endpoints(database, temporal, task_queue)
    if Area.FLEET_PROVISIONING in areas:
        endpoints += fleet_provisioning_endpoints(
            _compose_fleet_provisioning(settings, database, temporal, credentials)
        )
    endpoints += binding_endpoints(database, settings.api.temporal_ui_url)
    if Area.JOBS in areas:
        commands = Commands(
            database, temporal, task_queue=task_queue, job_id_prefix=settings.jobs.job_id_prefix
        )
        endpoints += command_endpoints(commands)
    return endpoints


def _compose_fleet_provisioning(
    settings: ApiSettings, database: Database, temporal: Temporal, credentials: AwsCredentials
) -> FleetProvisioning:
    own = settings.fleet_provisioning
    return FleetProvisioning(
        database,
        temporal,
        credentials,
        load_serial_check(own.serial_policy, own.serial_patterns),
        task_queue=settings.worker.task_queue,
        secret_name_template=settings.provisioning.secret_name_template,
        allow_reprovision=own.allow_reprovision,
        signal_seconds=min(_SIGNAL_SECONDS, settings.api.request_timeout_seconds / 2),
        hashing=settings.erasure.hashing,
    )


def create_app(settings: ApiSettings) -> Starlette:
    """Create the application. It can start while the database or Temporal is unavailable.

    A host that mounts it does not have to run its lifespan; `router.lifespan_context` closes its connections.
    """
    own = settings.api
    threads = own.max_concurrent_requests
    # One connection more than threads, so that readiness can be checked while all threads are busy. The
    # statement timeout frees the thread of a request that was already answered: otherwise a locked row would
    # block it for as long as the lock is held.
    engine = open_engine(
        settings.database_url.get_secret_value(),
        pool_size=threads + 1,
        statement_seconds=own.request_timeout_seconds,
    )
    database, temporal = Database(engine, threads), Temporal(settings.encryption.decoded_keys)
    credentials = AwsCredentials(database, settings.credentials.fleet_credential_secret_arn)
    endpoints = compose_endpoints(settings, database, temporal, credentials)
    readiness = Readiness(database, temporal, credentials, settings.erasure.hashing)
    authenticator = Authenticator(database, own.key_cache_seconds)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        database.close()

    app = Starlette(
        routes=[
            liveness_route(),
            metrics_route(),
            readiness_route(readiness),
            *_documentation_routes(openapi_document(endpoints, version("thingbridge"))),
            *endpoint_routes(endpoints, own.request_timeout_seconds),
        ],
        middleware=[
            *tracing_middleware(),
            *middleware_stack(authenticator, own.request_timeout_seconds, _PROTECTED_PATHS),
        ],
        exception_handlers={HTTPException: http_problem},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    # For a host application's own routes that share these connections.
    app.state.engine = engine
    return app


def _documentation_routes(document: dict[str, Any]) -> Sequence[Route]:
    async def openapi(request: Request) -> JSONResponse:
        return JSONResponse(with_server(document, request.scope.get("root_path", "")))

    async def docs(request: Request) -> HTMLResponse:
        page = docs_page(with_server(document, request.scope.get("root_path", "")))
        return HTMLResponse(page, headers={"Content-Security-Policy": DOCS_POLICY})

    return Route("/openapi.json", openapi), Route("/docs", docs)
