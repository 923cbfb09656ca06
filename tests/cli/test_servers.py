"""`thingbridge worker`, `api` and `codec` as processes: addresses in use, and interrupts."""

import re
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import Engine
from temporalio.client import Client

from embedded.processes import choose_ports
from embedded.stack import Addresses
from tests.harness.command_line import (
    Result,
    call,
    call_in_thread,
    empty_database,
    empty_namespace,
    interrupt,
    read_until,
    running,
)

SETTINGS = {
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    "IOT_AWS_ENCRYPTION__KEYS": '{"k": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}',
}


@pytest.fixture
def port_in_use() -> Iterator[int]:
    """Return a port of 127.0.0.1 that another server listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("command", ["api", "codec"])
def test_port_in_use_is_one_sentence(command: str, port_in_use: int) -> None:
    """A port that another server listens on is refused, with what to do."""
    result = call(command, "--port", str(port_in_use), **SETTINGS)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: cannot listen on 127.0.0.1, port {port_in_use}: Address already in use; "
        "choose another --host or --port\n"
    )


@pytest.mark.parametrize("command", ["api", "codec"])
def test_address_of_another_machine_is_one_sentence(command: str) -> None:
    """An address that this machine does not have, and a name that does not resolve, are refused."""
    for host in ("192.0.2.1", "no-such-host.invalid"):
        result = call(command, "--host", host, "--port", "8080", **SETTINGS)
        assert (result.exit_code, result.stdout) == (2, "")
        address = rf"{re.escape(host)}, port 8080"
        assert re.fullmatch(
            rf"error: cannot listen on {address}: [^;\n]+; choose another --host or --port\n", result.stderr
        )


async def test_api_without_a_host_listens_on_every_address() -> None:
    """An empty host, as of a variable that is not set, is not refused before uvicorn sees it."""
    port = str(choose_ports(0)[0])
    result = await interrupted("api", "--host", "", "--port", port, until="Uvicorn running on", **SETTINGS)
    assert result.exit_code == 0


@pytest.mark.usefixtures("engine")
async def test_api_stops_in_order_at_two_interrupts() -> None:
    """A second interrupt does not shorten the shutdown."""
    result = await interrupted("api", "--port", str(choose_ports(0)[0]), until="Uvicorn running on")
    assert result.exit_code == 0
    assert "Application shutdown complete" in result.stderr


async def test_worker_stops_in_order_at_two_interrupts(
    stack: Addresses, engine: Engine, client: Client
) -> None:
    """A second interrupt does not shorten the shutdown."""
    own = {
        "DATABASE_URL": empty_database(engine, stack.database_url),
        "TEMPORAL_NAMESPACE": await empty_namespace(client),
    }
    assert (await call_in_thread("migrate", **own)).exit_code == 0
    result = await interrupted("worker", until="worker started", **own)
    assert result.exit_code == 0
    assert "worker stopped" in result.stderr


async def interrupted(*arguments: str, until: str, **environment: str) -> Result:
    """Run a command until its log contains a text, and interrupt it twice."""
    async with running(*arguments, **environment, IOT_AWS_LOG__FORMAT="text") as process:
        await read_until(process.stderr, until)
        result = await interrupt(process, 2)
    assert "Traceback" not in result.stderr
    return result
