"""Run `thingbridge` in tests: in this process, or as a separate process."""

import asyncio
import atexit
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from asyncio import StreamReader
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import Engine, text
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from typer.testing import CliRunner

from cli import app

THINGBRIDGE = Path(sys.executable).with_name("thingbridge")

# Without a cache for bytecode, each start of a process would compile all modules.
_BYTECODE = tempfile.mkdtemp(prefix="thingbridge-bytecode-")
atexit.register(shutil.rmtree, _BYTECODE, ignore_errors=True)


@dataclass(frozen=True)
class Result:
    """The exit code and the output of a command."""

    exit_code: int | None
    stdout: str
    stderr: str


def call(*arguments: str, **environment: str | None) -> Result:
    """Run a command in this process. A variable that is None is removed from its environment."""
    with restored_logging():
        result = CliRunner().invoke(app, arguments, env=environment, catch_exceptions=False)
    return Result(result.exit_code, result.stdout, result.stderr)


async def call_in_thread(*arguments: str, **environment: str | None) -> Result:
    """Run a command in a thread, so that the worker in the event loop continues."""
    return await asyncio.to_thread(call, *arguments, **environment)


@contextmanager
def restored_logging() -> Iterator[None]:
    """Restore the logging configuration at the end: a command logs to a stream that is then closed."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def process_environment(**changes: str | None) -> dict[str, str]:
    """Return this process's environment with changes; a variable that is None is removed."""
    merged: dict[str, str | None] = {**os.environ, **changes, "PYTHONPYCACHEPREFIX": _BYTECODE}
    merged["PYTHONDONTWRITEBYTECODE"] = None
    return {name: value for name, value in merged.items() if value is not None}


def without_configuration() -> dict[str, str | None]:
    """Return changes that remove every setting of the bridge, Temporal and AWS from the environment."""
    prefixes = ("DATABASE_URL", "IOT_AWS_", "TEMPORAL_", "AWS_")
    return {name: None for name in os.environ if name.startswith(prefixes)}


async def run(*arguments: str | Path, **changes: str | None) -> Result:
    """Run the executable to its end."""
    async with running(*arguments, **changes) as process:
        stdout, stderr = await process.communicate()
    return Result(process.returncode, stdout.decode(), stderr.decode())


_OUTPUT_LIMIT = 2**28


@asynccontextmanager
async def running(*arguments: str | Path, **changes: str | None) -> AsyncIterator[Process]:
    """Run the executable in its own process group, as a terminal does, and kill it if it is left running."""
    process = await asyncio.create_subprocess_exec(
        THINGBRIDGE,
        *arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=process_environment(**changes),
        process_group=0,
        # A worker's log sink prints every event of the outbox. A full pipe would
        # block the worker, because nothing reads it here.
        limit=_OUTPUT_LIMIT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def read_until(output: StreamReader | None, expected: str) -> str:
    """Read the output of a process up to and including the line that contains a text, and return it."""
    assert output is not None
    lines: list[str] = []
    while not lines or expected not in lines[-1]:
        lines.append((await output.readline()).decode())
        assert lines[-1], f"the process ended without {expected!r} after:\n{''.join(lines)}"
    return "".join(lines)


async def interrupt(process: Process, times: int = 1) -> Result:
    """Interrupt a process as Ctrl-C in its terminal does, and return the rest of its output.

    Args:
        process: of `running`.
        times: how often, a twentieth of a second apart.
    """
    for _ in range(times):
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGINT)
        await asyncio.sleep(0.05)
    stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
    return Result(process.returncode, stdout.decode(), stderr.decode())


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of the processes that use a folder."""
    listed = subprocess.run(["ps", "-Awwo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if str(folder) in line]


def empty_database(engine: Engine, database_url: str) -> str:
    """Create an empty database on the server of the tests, and return its URL."""
    name = f"empty_{uuid4().hex}"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return database_url.replace("/thingbridge?", f"/{name}?")


async def empty_namespace(client: Client) -> str:
    """Register an empty Temporal namespace, and return its name."""
    name = f"empty-{uuid4().hex}"
    day = Duration(seconds=86_400)
    await client.workflow_service.register_namespace(
        RegisterNamespaceRequest(namespace=name, workflow_execution_retention_period=day)
    )
    return name
