"""The routes for monitoring: liveness, readiness and metrics."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from api.aws_status import AwsCredentials
from api.database import Database
from api.temporal import Temporal
from db.erasure import require_hash_key
from db.migrate import require_current
from domain.erasure import SerialHashing
from observability.exposition import METRICS_CONTENT_TYPE, exposition

_CHECK_TIMEOUT_SECONDS: Final = 6.0


def liveness_route() -> Route:
    """Return the route of `GET /healthz`: 200 while the process responds."""

    async def liveness(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Route("/healthz", liveness)


def metrics_route() -> Route:
    """Return the route of `GET /metrics`, for Prometheus."""

    async def metrics(_: Request) -> Response:
        return Response(await asyncio.to_thread(exposition), headers={"Content-Type": METRICS_CONTENT_TYPE})

    return Route("/metrics", metrics)


def readiness_route(readiness: "Readiness") -> Route:
    """Return the route of `GET /readyz`: 200 if every dependency is ready, else 503, with all results."""

    async def ready(_: Request) -> JSONResponse:
        results = await readiness.check()
        status = 200 if all(result.ready for result in results.values()) else 503
        return JSONResponse({name: result.text for name, result in results.items()}, status)

    return Route("/readyz", ready)


class CheckResult(NamedTuple):
    """The result of the check of one dependency."""

    ready: bool
    text: str


class Readiness:
    """The checks of everything that a request depends on.

    Args:
        database: must answer, and have the current schema.
        temporal: must answer.
        credentials: must have been read by a worker.
        hashing: must be the key with which the serial numbers of erased devices were hashed.
    """

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
            "database": self._check_database,
            "temporal": self._check_temporal,
            "aws_credentials": credentials.age,
        }

    async def check(self) -> dict[str, CheckResult]:
        """Check every dependency at the same time, and return the results by name."""
        results = await asyncio.gather(*(_result(check()) for check in self._checks.values()))
        return dict(zip(self._checks, results, strict=True))

    async def _check_database(self) -> str:
        await asyncio.to_thread(require_current, self._database.engine)
        await self._database(lambda session: require_hash_key(session, self._hashing))
        return ""

    async def _check_temporal(self) -> str:
        await self._temporal.check_health()
        return ""


async def _result(check: Awaitable[str]) -> CheckResult:
    """Return the result of a check: ready if it completes, with the detail that it returns."""
    try:
        detail = await asyncio.wait_for(check, _CHECK_TIMEOUT_SECONDS)
    except TimeoutError:
        return CheckResult(ready=False, text=f"no answer within {_CHECK_TIMEOUT_SECONDS:g} s")
    except Exception as error:  # noqa: BLE001  # the operator needs the reason, whatever the exception is
        # Only the first line: the rest may be a stack trace of the database driver.
        lines = str(error).strip().splitlines()
        return CheckResult(ready=False, text=lines[0] if lines else type(error).__name__)
    return CheckResult(ready=True, text=f"ok, {detail}" if detail else "ok")
