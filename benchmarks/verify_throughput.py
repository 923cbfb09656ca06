"""Compare the throughput of `/verify` with that of a bare route, to measure the cost of the middleware.

    uv run python -m benchmarks.verify_throughput

One server process has both routes and one database connection pool. The bare Starlette route runs one indexed
SELECT, without the application around it. Another process sends requests to the two routes in turn, on 32
connections. The exit code is 1 if the ratio is below 0.8.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID, uuid4

import anyio.to_thread
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import bindparam
from sqlmodel import Session, col, select
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from api.app import create_app
from api.server import serve_app
from db.api_keys import create_key
from db.engine import open_engine
from db.migrate import upgrade
from db.models import AwsThingBinding
from domain.names import thing_name
from domain.provisioning_status import ProvisioningStatus
from embedded.processes import choose_ports
from embedded.stack import Stack, isolate
from observability import telemetry
from settings import ApiSettings

CONNECTIONS: Final = 32
MINIMUM_RATIO: Final = 0.8
VERIFY: Final = "/api/iot/fleet-provisioning/verify"
BARE: Final = "/bare"
_HOST: Final = "127.0.0.1"

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    bindings: Annotated[int, typer.Option(min=1, help="Number of bindings in the table.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds for each route.")] = 6,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds per round.")] = 5,
) -> None:
    """Measure and print the throughput, and exit with 0 if the ratio is high enough."""
    if context.invoked_subcommand is not None:
        return
    console = Console()
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(
            Path(folder), temporal_port=0, ui_port=0, aws_port=0, mqtt_port=0, on_progress=console.print
        ) as addresses,
    ):
        isolate(os.environ, addresses)
        console.print(f"inserting {bindings} bindings")
        tenant, key = _prepare(addresses.database_url, bindings)
        (port,) = choose_ports(0)
        log = Path(folder, "server.log")
        with log.open("w") as output:
            server = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.verify_throughput", "serve", str(port)], stderr=output
            )
            try:
                asyncio.run(_wait_until_listening(port))
                load = [sys.executable, "-m", "benchmarks.verify_throughput", "load", str(port), key]
                load += [str(tenant), str(bindings), str(rounds), str(seconds)]
                found = json.loads(subprocess.run(load, check=True, stdout=subprocess.PIPE).stdout)
            finally:
                server.terminate()
                server.wait()
    raise typer.Exit(0 if _report(console, found) else 1)


def _prepare(database_url: str, bindings: int) -> tuple[UUID, str]:
    engine, tenant = open_engine(database_url), uuid4()
    upgrade(engine)
    created_at = datetime.now(UTC)
    with Session(engine) as session, session.begin():
        key = create_key(session, tenant, "the benchmark")
        for start in range(0, bindings, 10_000):
            numbers = range(start, min(start + 10_000, bindings))
            session.bulk_insert_mappings(
                AwsThingBinding,
                [
                    {
                        "id": uuid4(),
                        "device_id": uuid4(),
                        "tenant_id": tenant,
                        "thing_name": thing_name(tenant, _serial(number)),
                        "provisioning_status": ProvisioningStatus.ACTIVE,
                        "created_at": created_at,
                    }
                    for number in numbers
                ],
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE iotaws_thing_bindings")
    engine.dispose()
    return tenant, key


def _serial(number: int) -> str:
    return f"BENCH-{number:08}"


def _report(console: Console, found: dict[str, list[dict[str, float]]]) -> bool:
    table = Table("route", "requests/s", "p50 ms", "p99 ms", "rounds", title=f"{CONNECTIONS} connections")
    table.columns[0].no_wrap = True
    rates = {}
    for route, rounds in found.items():
        rates[route] = statistics.median(each["rate"] for each in rounds)
        p50, p99 = (statistics.median(each[name] for each in rounds) for name in ("p50", "p99"))
        each = " ".join(f"{one['rate']:.0f}" for one in rounds)
        table.add_row(route, f"{rates[route]:.0f}", f"{p50:.1f}", f"{p99:.1f}", each)
    console.print(table)
    ratio = rates[VERIFY] / rates[BARE]
    enough = ratio >= MINIMUM_RATIO
    console.print(
        f"ratio {ratio:.2f}, "
        + ("high enough" if enough else f"[red]below[/red] the minimum of {MINIMUM_RATIO}")
    )
    return enough


# The server


@app.command(hidden=True)
def serve(port: int) -> None:
    """Serve both routes, with the server of `thingbridge api`."""
    settings = ApiSettings.load()
    telemetry.configure(settings.log.level, settings.log.format)
    bridge = create_app(settings)

    async def bare(request: Request) -> JSONResponse:
        body = await request.json()
        return JSONResponse({"deleted": await run_in_threadpool(is_known, body["thingName"])})

    # Built once and run without the ORM, as the fastest possible SELECT.
    newest = (
        select(AwsThingBinding.deleted_at)
        .where(col(AwsThingBinding.thing_name) == bindparam("thing_name"))
        .order_by(col(AwsThingBinding.created_at).desc())
        .limit(1)
    )

    def is_known(name: str) -> bool:
        with bridge.state.engine.connect() as connection:
            return connection.execute(newest, {"thing_name": name}).scalar_one_or_none() is not None

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # As many threads as the application has: more would only wait for connections.
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.api.max_concurrent_requests
        async with bridge.router.lifespan_context(bridge):
            yield

    both = Starlette(routes=[Route(BARE, bare, methods=["POST"]), Mount("/", bridge)], lifespan=lifespan)
    serve_app(both, _HOST, port)


async def _wait_until_listening(port: int) -> None:
    for _ in range(300):
        try:
            _, writer = await asyncio.open_connection(_HOST, port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return
    raise TimeoutError(f"the server does not listen on port {port}")


# The load


@app.command(hidden=True)
def load(port: int, key: str, tenant: UUID, bindings: int, rounds: int, seconds: float) -> None:
    """Send requests to the two routes in turn, and write the results as JSON."""
    found = asyncio.run(_load(port, key, tenant, bindings, rounds, seconds))
    sys.stdout.write(json.dumps(found))


async def _load(
    port: int, key: str, tenant: UUID, bindings: int, rounds: int, seconds: float
) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {BARE: [], VERIFY: []}
    # The first round of each route fills caches and connection pools, and is not counted.
    for number in range(rounds + 1):
        for route in found if number % 2 else reversed(found):
            measured = await _round(port, route, key, tenant, bindings, seconds)
            if number:
                found[route].append(measured)
    return found


async def _round(
    port: int, route: str, key: str, tenant: UUID, bindings: int, seconds: float
) -> dict[str, float]:
    ends = time.perf_counter() + seconds
    connections = (
        _send_requests(port, route, key, tenant, bindings, number, ends) for number in range(CONNECTIONS)
    )
    times = sorted(duration for each in await asyncio.gather(*connections) for duration in each)
    return {
        "rate": len(times) / seconds,
        "p50": times[len(times) // 2] * 1000,
        "p99": times[len(times) * 99 // 100] * 1000,
    }


async def _send_requests(
    port: int, route: str, key: str, tenant: UUID, bindings: int, connection: int, ends: float
) -> list[float]:
    """Send requests in sequence on one connection. A client library would cost more than the server."""
    reader, writer = await asyncio.open_connection(_HOST, port)
    times = []
    number = connection
    while time.perf_counter() < ends:
        number = (number + 7919) % bindings
        serial = _serial(number)
        content: dict[str, Any] = (
            {"serialNumber": serial} if route == VERIFY else {"thingName": thing_name(tenant, serial)}
        )
        body = json.dumps(content)
        began = time.perf_counter()
        writer.write(
            f"POST {route} HTTP/1.1\r\nHost: {_HOST}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{route} returned {head.splitlines()[0].decode()}")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        times.append(time.perf_counter() - began)
    writer.close()
    return times


if __name__ == "__main__":
    app()
