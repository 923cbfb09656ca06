"""The application: its routes, and what they share for as long as it runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from api.auth import Keys
from api.aws_status import AwsCredentials
from api.database import Database
from api.docs import DOCS_POLICY, docs_page
from api.endpoints import Door, routes
from api.errors import http_problem
from api.middleware import Edge
from api.openapi import openapi_document, served_at
from api.routes.bindings import binding_doors
from api.routes.commands import Commands, command_doors
from api.routes.device_events import device_event_doors
from api.routes.fleet_provisioning import FleetProvisioning, fleet_provisioning_doors
from api.serial_policy import serial_gate
from api.temporal import Temporal
from api.tracing import tracing
from db.engine import open_engine
from db.erasure import require_hash_key
from db.migrate import require_current
from domain.area import Area, handles_device_events
from domain.erasure import SerialHashing
from observability.exposition import METRICS_CONTENT_TYPE, exposition
from settings import ApiSettings

_PATIENCE: Final = timedelta(seconds=3)
_SIGNAL_SECONDS: Final = 3.0


class Readiness:
    """What must answer before a request can be served."""

    def __init__(
        self,
        database: Database,
        temporal: Temporal,
        credentials: AwsCredentials,
        hashing: SerialHashing | None,
    ) -> None:
        self._database = database
        self._hashing = hashing
        self._temporal = temporal
        self._checks: dict[str, Callable[[], Awaitable[str]]] = {
            "database": self._schema,
            "temporal": self._health,
            "aws_credentials": credentials.age,
        }

    async def __call__(self, _: Request) -> JSONResponse:
        """Answer 200 where all is well, else 503; each by its name, with what is wrong."""
        names, checks = self._checks.keys(), self._checks.values()
        findings = await asyncio.gather(*(_finding(check()) for check in checks))
        found = {name: finding.said for name, finding in zip(names, findings, strict=True)}
        return JSONResponse(found, 200 if all(finding.well for finding in findings) else 503)

    async def _schema(self) -> str:
        await asyncio.to_thread(require_current, self._database.engine)
        await self._database(lambda session: require_hash_key(session, self._hashing))
        return ""

    async def _health(self) -> str:
        client = await self._temporal()
        await client.service_client.check_health(timeout=_PATIENCE)
        return ""


class _Finding(NamedTuple):
    """What a check of readiness found."""

    well: bool
    said: str


def compose_doors(
    settings: ApiSettings, database: Database, temporal: Temporal, credentials: AwsCredentials
) -> Sequence[Door[Any]]:
    """Every call of the HTTP surface that needs a key, in the areas there are."""
    areas, task_queue = settings.worker.areas, settings.worker.task_queue
    doors: list[Door[Any]] = []
    if handles_device_events(areas):
        doors += device_event_doors(database, temporal, task_queue)
    if Area.FLEET_PROVISIONING in areas:
        doors += fleet_provisioning_doors(_compose_enrolment(settings, database, temporal, credentials))
    doors += binding_doors(database, settings.api.temporal_ui_url)
    if Area.JOBS in areas:
        commands = Commands(
            database, temporal, task_queue=task_queue, job_id_prefix=settings.jobs.job_id_prefix
        )
        doors += command_doors(commands)
    return doors


def _compose_enrolment(
    settings: ApiSettings, database: Database, temporal: Temporal, credentials: AwsCredentials
) -> FleetProvisioning:
    own = settings.fleet_provisioning
    return FleetProvisioning(
        database,
        temporal,
        credentials,
        serial_gate(own.serial_policy, own.serial_patterns),
        task_queue=settings.worker.task_queue,
        secret_name_template=settings.provisioning.secret_name_template,
        allow_reprovision=own.allow_reprovision,
        signal_seconds=min(_SIGNAL_SECONDS, settings.api.request_timeout_seconds / 2),
        hashing=settings.erasure.hashing,
    )


def create_app(settings: ApiSettings) -> Starlette:
    """The application; it starts and answers also while its database or Temporal is away.

    Mounted in another, it needs no start; `router.lifespan_context` closes its connections at the end.
    """
    own = settings.api
    threads = own.max_concurrent_requests
    # One more, for readiness to be asked for also while all are at work. A statement that goes on when its
    # caller has been answered would keep its thread from others, for as long as somebody holds a row.
    engine = open_engine(
        settings.database_url.get_secret_value(),
        pool_size=threads + 1,
        statement_seconds=own.request_timeout_seconds,
    )
    database, temporal = Database(engine, threads), Temporal(settings.encryption.in_use)
    credentials = AwsCredentials(database, settings.credentials.fleet_credential_secret_arn)
    doors = compose_doors(settings, database, temporal, credentials)
    ready = Readiness(database, temporal, credentials, settings.erasure.hashing)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        database.close()

    app = Starlette(
        routes=[
            Route("/healthz", _alive),
            Route("/metrics", _metrics),
            Route("/readyz", ready.__call__),
            *_described(openapi_document(doors, version("thingbridge"))),
            *routes(doors, own.request_timeout_seconds),
        ],
        middleware=[
            *tracing(),
            Middleware(Edge, Keys(database, own.key_cache_seconds), own.request_timeout_seconds),
        ],
        exception_handlers={HTTPException: http_problem},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    # For what shall share its connections: a route of another application beside it.
    app.state.engine = engine
    return app


def _described(document: dict[str, Any]) -> Sequence[Route]:
    async def for_tools(request: Request) -> JSONResponse:
        return JSONResponse(served_at(document, request.scope.get("root_path", "")))

    async def for_people(request: Request) -> HTMLResponse:
        page = docs_page(served_at(document, request.scope.get("root_path", "")))
        return HTMLResponse(page, headers={"Content-Security-Policy": DOCS_POLICY})

    return Route("/openapi.json", for_tools), Route("/docs", for_people)


async def _alive(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


async def _metrics(_: Request) -> Response:
    return Response(await asyncio.to_thread(exposition), headers={"Content-Type": METRICS_CONTENT_TYPE})


async def _finding(check: Awaitable[str]) -> _Finding:
    """What a check comes to: all is well where it ends, with what it has to add to that."""
    try:
        added = await asyncio.wait_for(check, 2 * _PATIENCE.total_seconds())
    except TimeoutError:
        return _Finding(well=False, said="does not answer in time")
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what the operator asks for
        # The first line: what follows may be a stack of the driver's own.
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return _Finding(well=False, said=said)
    return _Finding(well=True, said=f"ok, {added}" if added else "ok")
