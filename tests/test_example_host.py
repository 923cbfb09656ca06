"""The example host, in an environment built from the wheel, as a user would build it."""

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType

import httpx2
import pytest
from sqlalchemy import Engine
from sqlmodel import Session
from temporalio.client import Client

from db.api_keys import create_key
from db.engine import open_engine
from embedded.policy import create_device_policy
from embedded.processes import choose_ports
from embedded.stack import Addresses
from tests import ROOT
from tests.harness.bridge import POLICY, Device, until
from tests.harness.command_line import empty_database, empty_namespace, process_environment

HOST = ROOT / "examples" / "host"
PINS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]


def uv() -> list[str]:
    """Return the command of the uv that runs these tests, or of an installed one."""
    if found := os.environ.get("UV") or shutil.which("uv"):
        return [found]
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    pytest.fail("the environment of the example is created with uv: pip install uv")


@asynccontextmanager
async def running(
    log: Path, *command: str | Path, own: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process that writes to a file, since an unread pipe fills up; kill it if it does not stop."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=HOST,
            env=process_environment(**own, PYTHONPATH=None, VIRTUAL_ENV=None),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        yield process
    except BaseException as error:
        error.add_note(end_of(log))
        raise
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 20)
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


def end_of(log: Path) -> str:
    return f"{log.name}:\n{log.read_text(errors='replace')[-4000:]}"


async def run(log: Path, *command: str | Path, own: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run a command, which has to succeed."""
    async with running(log, *command, own=own) as process:
        assert await asyncio.wait_for(process.wait(), 180) == 0, command


def wheel_in(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


async def environment_in(folder: Path) -> Path:
    """Create an environment with the wheel and the pinned dependencies, and return its `bin` folder."""
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(PINS))
    await run(folder / "build.log", *uv(), "build", "--wheel", "--out-dir", folder, ROOT)
    await run(folder / "venv.log", *uv(), "venv", "--python", sys.executable, folder / "venv")
    install: list[str | Path] = [*uv(), "pip", "install", "--python", folder / "venv"]
    # Use this wheel, not the source path that the example names.
    install += ["--no-sources", wheel_in(folder), "--requirements", HOST / "pyproject.toml"]
    await run(folder / "install.log", *install, "--constraints", constraints)
    return folder / "venv" / "bin"


async def test_host_runs_the_bridge_beside_its_own_workflow(
    stack: Addresses, engine: Engine, client: Client, tmp_path: Path
) -> None:
    """An event sent through the host's application provisions a device; the host's own workflow runs too."""
    create_device_policy(stack.aws_endpoint_url, POLICY)
    own = {
        "DATABASE_URL": empty_database(engine, stack.database_url),
        "TEMPORAL_NAMESPACE": await empty_namespace(client),
        "IOT_AWS_WORKER__TASK_QUEUE": "greenhouse",
    }
    bin_ = await environment_in(tmp_path)
    await run(tmp_path / "migrate.log", bin_ / "thingbridge", "migrate", own=own)
    headers = {"Authorization": f"Bearer {operator_key(own['DATABASE_URL'])}"}
    (port,) = choose_ports(0)
    web: Sequence[str | Path] = (bin_ / "uvicorn", "--factory", "greenhouse.web:create_app")
    device = Device("HOSTED-1")
    async with (
        running(tmp_path / "work.log", bin_ / "python", "-m", "greenhouse.work", own=own) as work,
        running(tmp_path / "web.log", *web, "--port", str(port), own=own) as serving,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http,
    ):

        async def answers() -> bool:
            assert serving.returncode is None, "the application has ended"
            try:
                return (await http.get("/bridge/readyz")).status_code == 200
            except httpx2.ConnectError:
                return False

        async def is_active() -> bool:
            assert work.returncode is None, "the worker has ended"
            found = await http.get(f"/bridge/api/iot/bindings/{device.device_id}", headers=headers)
            return found.status_code == 200 and found.json()["provisioningStatus"] == "Active"

        await until(answers, "the host serves the bridge")
        sent = await http.post(
            "/bridge/api/iot/device-events", json=device.event("Provisioned"), headers=headers
        )
        assert sent.status_code == 202, sent.text
        labelled = await http.post(f"/labels/{device.serial_number}")
        assert labelled.json() == {"label": f"GREENHOUSE {device.serial_number}"}
        await until(is_active, "the device is Active")


def operator_key(database_url: str) -> str:
    """Create an operator's API key for another deployment."""
    engine = open_engine(database_url)
    with Session(engine) as session, session.begin():
        key = create_key(session, None, "the example")
    engine.dispose()
    return key
