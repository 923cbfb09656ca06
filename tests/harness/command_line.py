"""`thingbridge` as its users run it: in this process where that is enough, as a process where it matters."""

import asyncio
import atexit
import logging
import os
import shutil
import subprocess
import sys
import tempfile
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

# Where python is told to write no bytecode, each start would compile everything anew.
_BYTECODE = tempfile.mkdtemp(prefix="thingbridge-bytecode-")
atexit.register(shutil.rmtree, _BYTECODE, ignore_errors=True)


@dataclass(frozen=True)
class Said:
    """What a command printed, and how it ended."""

    exit_code: int | None
    stdout: str
    stderr: str


def call(*arguments: str, **environment: str | None) -> Said:
    """Run a command in this process; a variable that is None is not set for it."""
    with logging_as_it_was():
        result = CliRunner().invoke(app, arguments, env=environment, catch_exceptions=False)
    return Said(result.exit_code, result.stdout, result.stderr)


async def call_beside(*arguments: str, **environment: str | None) -> Said:
    """The same, while the bridge of the tests goes on working."""
    return await asyncio.to_thread(call, *arguments, **environment)


@contextmanager
def logging_as_it_was() -> Iterator[None]:
    """A command turns all logging to its own standard error, which is gone when it has ended."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def environment_of(**changes: str | None) -> dict[str, str]:
    """This process's environment with changes, for another."""
    merged: dict[str, str | None] = {**os.environ, **changes, "PYTHONPYCACHEPREFIX": _BYTECODE}
    merged["PYTHONDONTWRITEBYTECODE"] = None
    return {name: value for name, value in merged.items() if value is not None}


async def run(*arguments: str | Path, **changes: str | None) -> Said:
    """Run the executable."""
    async with running(*arguments, **changes) as process:
        stdout, stderr = await process.communicate()
    return Said(process.returncode, stdout.decode(), stderr.decode())


_MOST_SAID = 2**28


@asynccontextmanager
async def running(*arguments: str | Path, **changes: str | None) -> AsyncIterator[asyncio.subprocess.Process]:
    """The executable at work, in a process group of its own as a terminal gives it; killed if it stays."""
    process = await asyncio.create_subprocess_exec(
        THINGBRIDGE,
        *arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment_of(**changes),
        process_group=0,
        # A worker's log sink tells of all that waits in the outbox. A pipe that is full, since nobody reads
        # it here, would stop the worker, and its end would never be seen.
        limit=_MOST_SAID,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def processes_of(folder: Path) -> list[str]:
    """The command lines of whatever still runs on a folder."""
    listed = subprocess.run(["ps", "-Awwo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if str(folder) in line]


def empty_database(engine: Engine, database_url: str) -> str:
    """The URL of a database with nothing in it, beside the tests' own."""
    name = f"empty_{uuid4().hex}"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return database_url.replace("/thingbridge?", f"/{name}?")


async def empty_namespace(client: Client) -> str:
    """The name of a Temporal namespace with nothing registered in it."""
    name = f"empty-{uuid4().hex}"
    day = Duration(seconds=86_400)
    await client.workflow_service.register_namespace(
        RegisterNamespaceRequest(namespace=name, workflow_execution_retention_period=day)
    )
    return name
