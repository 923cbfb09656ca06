"""`thingbridge demo` and `thingbridge dev`: everything on one machine, and nothing left running."""

import asyncio
import fcntl
import io
import json
import os
import re
import shlex
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
from rich.console import Console
from rich.text import Text

from cli.demo import Expectation, Outcome, fleet_table
from db.models import AwsThingBinding
from domain.device_state import DesiredStatus, DeviceState, StatusChange
from domain.names import thing_name
from domain.provisioning_status import ProvisioningStatus
from embedded.inventory import take_inventory
from tests import ROOT
from tests.harness.bridge import NOON, Device, until
from tests.harness.command_line import (
    THINGBRIDGE,
    call,
    call_beside,
    environment_of,
    processes_of,
    run,
    running,
)

FLEET = ROOT / "cli" / "fleet.jsonl"


def nothing_set() -> dict[str, str | None]:
    """As on a machine where nothing is set up."""
    ours = ("DATABASE_URL", "IOT_AWS_", "TEMPORAL_", "AWS_")
    return {name: None for name in os.environ if name.startswith(ours)}


def devices_of(fleet: Path) -> dict[UUID, str]:
    """The Thing name of each device of a fleet."""
    events = [json.loads(line) for line in fleet.read_text().splitlines()]
    return {
        UUID(event["deviceId"]): thing_name(
            event["tenantId"] and UUID(event["tenantId"]), event["serialNumber"]
        )
        for event in events
    }


# --- demo


def test_the_sample_fleet_has_all_that_is_to_be_shown() -> None:
    """At least 25 devices of 3 tenants, with repeats, late events, a suspension and decommissionings."""
    events = [json.loads(line) for line in FLEET.read_text().splitlines()]
    times = [event["occurredAt"] for event in events]
    assert len({event["deviceId"] for event in events}) >= 25
    assert len({event["tenantId"] for event in events if event["tenantId"]}) >= 3
    assert len({event["eventId"] for event in events}) < len(events)
    assert times != sorted(times)
    assert {event["type"] for event in events} >= {"DeviceSuspendedEvent", "DeviceDecommissionedEvent"}


async def test_the_demo_shows_a_fleets_whole_life(tmp_path: Path) -> None:
    """From an empty environment to exit code 0: a failure mended, every device in full, AWS as it must be."""
    folder = tmp_path / "demo"
    said = await run("demo", "--data", folder, **nothing_set())
    assert (said.exit_code, said.stderr) == (0, "")
    assert processes_of(folder) == []
    assert "failed as it must: PolicyNotFound: there is no IoT policy" in said.stdout
    devices = devices_of(FLEET)
    rows = {
        UUID(cells[1]): cells
        for cells in (line.split() for line in said.stdout.splitlines())
        if len(cells) > 2 and cells[-1].startswith("http")
    }
    assert rows.keys() == devices.keys()
    for device_id, cells in rows.items():
        assert devices[device_id] in cells
        assert cells[-1].endswith(f"/namespaces/default/workflows/device-{device_id}")
        if cells[2].startswith("Active"):
            assert len(cells[4]) == 64
    statuses = [cells[2] for cells in rows.values()]
    assert {"Active", "Active/Suspended", "Decommissioned"} <= set(statuses)
    active = sum(status.startswith("Active") for status in statuses)
    kinds = ("Things", "certificates", "active with a policy", "attached", "secrets")
    held = ", ".join(f"{active} {kind}" for kind in kinds)
    assert f"AWS holds {held}; the database says {active} Active bindings: they agree\n" in said.stdout
    assert f"all {len(devices)} devices ended as they must\n" in said.stdout
    assert "the device took the job shadow.applyDesiredState and ended it as SUCCEEDED\n" in said.stdout
    (sent,) = (line for line in said.stdout.splitlines() if line.startswith("event sent: "))
    event = json.loads(sent.removeprefix("event sent: "))
    assert event["type"] == "DeviceCommandCompletedEvent"
    assert event["data"]["statusDetails"] == {"applied": "all"}
    assert UUID(event["subject"]) in devices


async def test_a_demo_that_stays_is_there_to_be_looked_at(tmp_path: Path) -> None:
    """It says where everything is, HTTP with a key included, as a dev stack does, until Ctrl-C."""
    folder, device = tmp_path / "demo", Device("STAY-1")
    fleet = tmp_path / "fleet.jsonl"
    fleet.write_text(json.dumps(device.event("Provisioned")))
    async with up(folder, "demo", "--stay", "--fleet", fleet) as (process, environment):
        assert process.stdout is not None
        while b"devices ended as they must" not in (line := await process.stdout.readline()):
            assert line, "ended before its time"
        assert await bindings_over_http(environment) == [str(device.device_id)]
        assert await interrupted(process, folder) == 0


def test_a_folder_that_is_no_demos_is_left_alone(tmp_path: Path) -> None:
    """The demo empties only a folder that a demo made, and none that a running one is on."""
    file = tmp_path / "precious"
    file.touch()
    said = call("demo", "--data", str(tmp_path))
    assert said.exit_code == 2
    assert "--data" in said.stderr
    (tmp_path / ".thingbridge-demo").touch()
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert call("demo", "--data", str(tmp_path)).exit_code == 2
    assert file.exists()


@pytest.mark.parametrize(
    ("fleet", "why"),
    [("", "holds no DeviceProvisionedEvent"), ("\n{}\n", "fleet.jsonl:2: eventId: is missing")],
)
def test_a_fleet_that_is_none_is_refused_before_anything_starts(tmp_path: Path, fleet: str, why: str) -> None:
    """The line at fault is named, and no folder is made."""
    file = tmp_path / "fleet.jsonl"
    file.write_text(fleet)
    said = call("demo", "--fleet", str(file), "--data", str(tmp_path / "demo"), COLUMNS="200")
    assert said.exit_code == 2
    assert why in said.stderr
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_a_terminal(columns: int) -> None:
    """A device is one line, with a link to its runs; only the tenant in the Thing's name is shortened."""
    device = Device("PUMP_001")
    desired = StatusChange(status=DesiredStatus.SUSPENDED, occurred_at=NOON, event_id=device.device_id)
    state = DeviceState(
        device_id=device.device_id, tenant_id=device.tenant_id, serial_number="PUMP_001", desired=desired
    )
    binding = AwsThingBinding(
        device_id=device.device_id,
        thing_name=device.thing_name,
        certificate_arn=f"arn:aws:iot:eu-west-1:123456789012:cert/{'c0' * 32}",
        provisioning_status=ProvisioningStatus.ACTIVE,
    )
    outcome = Outcome(Expectation(state, ProvisioningStatus.ACTIVE), binding, "Suspended", 5, 0)
    screen = Console(file=io.StringIO(), width=columns, force_terminal=True, legacy_windows=False)
    with screen.capture() as captured:
        screen.print(
            fleet_table([outcome], "http://127.0.0.1:8233/namespaces/default/workflows", complete=False)
        )
    linked, plain = captured.get(), Text.from_ansi(captured.get()).plain
    (row,) = (line.split() for line in plain.splitlines() if "PUMP_001" in line)
    tenant = device.thing_name[1:33]
    assert row == [
        "PUMP_001",
        str(device.device_id)[:8],
        "Active/Suspended",
        f"t{tenant[:3]}…{tenant[-3:]}-PUMP_001",
        "c0c0c0c0",
        "5",
        "open",
    ]
    assert f"http://127.0.0.1:8233/namespaces/default/workflows/device-{device.device_id}" in linked


# --- dev


def developing(folder: Path) -> AbstractAsyncContextManager[tuple[Process, dict[str, str]]]:
    """A dev stack on free ports, and the environment it gives another shell."""
    return up(folder, "dev", *(f"--{name}-port=0" for name in ("temporal", "ui", "aws", "api")))


@asynccontextmanager
async def up(folder: Path, *command: str | Path) -> AsyncIterator[tuple[Process, dict[str, str]]]:
    """Everything on this machine, and the environment it gives another shell."""
    async with running(*command, "--data", folder, **nothing_set()) as process:
        assert process.stdout is not None
        said = b""
        while b"In another shell: " not in said:
            line = await process.stdout.readline()
            assert line, f"ended after {said!r}"
            said += line
        written = (folder / "environment").read_text().splitlines()
        environment = {
            name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in written)
        }
        for variable in ("TEMPORAL_ADDRESS", "DATABASE_URL", "AWS_ENDPOINT_URL"):
            assert environment[variable] in said.decode()
        (at,) = re.findall(r"HTTP +(http://127.0.0.1:\d+)/docs, with the key (tb_\S+)", said.decode())
        yield process, environment | dict(zip(("HTTP", "KEY"), at, strict=True))


async def interrupted(process: Process, folder: Path) -> int | None:
    """The exit code after a Ctrl-C, which a terminal sends to the whole group."""
    os.killpg(process.pid, signal.SIGINT)
    await asyncio.wait_for(process.communicate(), 60)
    assert processes_of(folder) == []
    return process.returncode


async def bindings_over_http(environment: dict[str, str]) -> list[str]:
    """The devices of which the HTTP doors of a dev stack know, by the key that it printed."""
    headers = {"Authorization": f"Bearer {environment['KEY']}"}
    async with httpx2.AsyncClient(base_url=environment["HTTP"], headers=headers, trust_env=False) as http:
        answer = await http.get("/api/iot/bindings")
    assert answer.status_code == 200
    return [binding["deviceId"] for binding in answer.json()["items"]]


async def test_a_dev_stack_serves_other_shells_and_keeps_its_data(tmp_path: Path) -> None:
    """Another shell reaches it by its file, Ctrl-C ends all of it, the next start finds what there was."""
    folder, device = tmp_path / "dev stack", Device("DEV-1")
    events = tmp_path / "events.jsonl"
    events.write_text(json.dumps(device.event("Provisioned")))
    async with developing(folder) as (process, environment):
        shell = await asyncio.create_subprocess_shell(
            f"set -a; . {shlex.quote(str(folder / 'environment'))}; set +a; {THINGBRIDGE} send {events}",
            env=environment_of(**nothing_set()),
        )
        assert await shell.wait() == 0

        async def active() -> bool:
            said = await call_beside("bindings", "--device", str(device.device_id), **environment)
            return " Active " in said.stdout

        await until(active, "the device is Active")
        assert await bindings_over_http(environment) == [str(device.device_id)]
        second = await run("dev", "--data", folder, **nothing_set())
        assert (second.exit_code, "already runs on" in second.stderr) == (2, True)
        assert await interrupted(process, folder) == 0
    async with developing(folder) as (process, environment):
        assert await active()
        assert await bindings_over_http(environment) == [str(device.device_id)]
        assert take_inventory(environment["AWS_ENDPOINT_URL"]).things.keys() == {device.thing_name}
        assert await interrupted(process, folder) == 0
