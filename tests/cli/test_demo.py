"""`thingbridge demo` and `thingbridge dev`: everything on one machine, and nothing left running."""

import asyncio
import fcntl
import io
import json
import os
import re
import shlex
import subprocess
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
from rich.console import Console
from rich.text import Text

from cli.demo import Connection, Expectation, Outcome, fleet_table, split_at_decommission
from db.models import AwsThingBinding
from domain.device_state import DesiredStatus, DeviceState, StatusChange
from domain.lifecycle_event import LifecycleEvent
from domain.names import thing_name
from domain.provisioning_status import ProvisioningStatus
from embedded.inventory import take_inventory
from tests import ROOT
from tests.harness.bridge import NOON, Device, until
from tests.harness.command_line import (
    THINGBRIDGE,
    call,
    call_in_thread,
    interrupt,
    process_environment,
    processes_of,
    read_until,
    run,
    running,
    without_configuration,
)

FLEET = ROOT / "cli" / "fleet.jsonl"


def devices_of(fleet: Path) -> dict[UUID, str]:
    """Return the Thing name of each device of a fleet."""
    events = [json.loads(line) for line in fleet.read_text().splitlines()]
    return {
        UUID(event["deviceId"]): thing_name(
            event["tenantId"] and UUID(event["tenantId"]), event["serialNumber"]
        )
        for event in events
    }


# --- demo


def test_sample_fleet_contains_every_kind_of_event_order() -> None:
    """It has at least 25 devices of 3 tenants, repeated and late events, suspensions and decommissions."""
    events = [json.loads(line) for line in FLEET.read_text().splitlines()]
    times = [event["occurredAt"] for event in events]
    assert len({event["deviceId"] for event in events}) >= 25
    assert len({event["tenantId"] for event in events if event["tenantId"]}) >= 3
    assert len({event["eventId"] for event in events}) < len(events)
    assert times != sorted(times)
    assert {event["type"] for event in events} >= {"DeviceSuspendedEvent", "DeviceDecommissionedEvent"}


async def test_demo_ends_with_every_device_as_expected(tmp_path: Path) -> None:
    """Without configuration, it shows a failure and its retry, every device, and the agreement with AWS."""
    folder = tmp_path / "demo"
    result = await run("demo", "--data", folder, "--enrolment", **without_configuration())
    assert (result.exit_code, result.stderr) == (0, "")
    assert processes_of(folder) == []
    assert "was refused: AccessDenied" in result.stdout
    assert "failed as expected: PolicyNotFound: there is no IoT policy" in result.stdout
    devices = devices_of(FLEET)
    rows = {
        UUID(cells[1]): cells
        for cells in (line.split() for line in result.stdout.splitlines())
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
    counts = ", ".join(f"{active} {kind}" for kind in kinds)
    assert (
        f"AWS contains {counts}; the database contains {active} Active bindings: they agree\n"
        in result.stdout
    )
    assert f"all {len(devices)} devices ended as expected\n" in result.stdout
    connections = [cells[5] for cells in rows.values() if len(cells) > 7]
    assert connections.count("connected") == active
    assert connections.count("refused") == 2
    assert f"{active + 2} devices connected over MQTT, each with its own certificate\n" in result.stdout
    assert (
        f"{active} devices are connected over MQTT; 2 were decommissioned: AWS ended their connections, and "
        "refuses new ones\n"
    ) in result.stdout
    assert (
        "the device received the job shadow.applyDesiredState over MQTT, reported the state and ended the "
        "job as SUCCEEDED\n"
    ) in result.stdout
    (sent,) = (line for line in result.stdout.splitlines() if line.startswith("event sent: "))
    event = json.loads(sent.removeprefix("event sent: "))
    assert event["type"] == "DeviceCommandCompletedEvent"
    assert event["data"]["statusDetails"] == {"applied": "all"}
    assert UUID(event["subject"]) in devices


async def test_demo_that_stays_prints_the_addresses_last(tmp_path: Path) -> None:
    """After the result it prints the addresses, as a dev stack does, and runs until Ctrl-C."""
    folder, device = tmp_path / "demo", Device("STAY-1")
    fleet = tmp_path / "fleet.jsonl"
    fleet.write_text(json.dumps(device.event("Provisioned")))
    async with running_stack(folder, "demo", "--stay", "--fleet", fleet) as stack:
        assert "all 1 devices ended as expected\n" in stack.printed.partition("HTTP API")[0]
        assert await bindings_over_http(stack.environment) == [str(device.device_id)]
        assert (await interrupt(stack.process)).exit_code == 0
        assert processes_of(folder) == []


async def test_second_interrupt_of_a_demo_changes_nothing(tmp_path: Path) -> None:
    """Two interrupts in the middle end it without a traceback, and no server is left running."""
    folder = tmp_path / "demo"
    async with running("demo", "--data", folder, **without_configuration()) as process:
        await read_until(process.stdout, "failed as expected")
        result = await interrupt(process, 2)
    assert (result.exit_code, result.stderr) == (130, "")
    assert "Traceback" not in result.stdout
    assert processes_of(folder) == []


def test_demo_empties_only_the_folder_of_a_demo(tmp_path: Path) -> None:
    """A folder with something else in it is refused, and so is the folder of a running demo."""
    file = tmp_path / "precious"
    file.touch()
    result = call("demo", "--data", str(tmp_path))
    assert result.exit_code == 2
    assert "--data" in result.stderr
    (tmp_path / ".thingbridge-demo").touch()
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert call("demo", "--data", str(tmp_path)).exit_code == 2
    assert file.exists()


@pytest.mark.parametrize(
    ("fleet", "reason"),
    [("", "contains no DeviceProvisionedEvent"), ("\n{}\n", "fleet.jsonl:2: eventId: is missing")],
)
def test_wrong_fleet_is_refused_before_anything_starts(tmp_path: Path, fleet: str, reason: str) -> None:
    """The error names the wrong line, and no folder is created."""
    file = tmp_path / "fleet.jsonl"
    file.write_text(fleet)
    result = call("demo", "--fleet", str(file), "--data", str(tmp_path / "demo"), COLUMNS="200")
    assert result.exit_code == 2
    assert reason in result.stderr
    assert not (tmp_path / "demo").exists()


def test_decommissions_of_connected_devices_are_sent_later() -> None:
    """A decommission after its device's provisioning is held back with what follows; others are not."""
    first, second = Device("FIRST"), Device("SECOND")
    kinds = [
        (first, "Provisioned"),
        (second, "Decommissioned"),
        (first, "Decommissioned"),
        (second, "Provisioned"),
        (first, "Reactivated"),
    ]
    events = [LifecycleEvent.from_json(json.dumps(device.event(kind))) for device, kind in kinds]
    assert split_at_decommission(events) == ([events[0], events[1], events[3]], [events[2], events[4]])


@pytest.mark.parametrize(
    ("status", "connection", "fault"),
    [
        (ProvisioningStatus.ACTIVE, Connection.CONNECTED, None),
        (ProvisioningStatus.ACTIVE, Connection.NONE, "is not connected over MQTT, must be connected"),
        (ProvisioningStatus.DECOMMISSIONED, Connection.REFUSED, None),
        (ProvisioningStatus.DECOMMISSIONED, Connection.CONNECTED, "is connected over MQTT, must be refused"),
        (ProvisioningStatus.DECOMMISSIONED, None, None),
    ],
)
def test_outcome_includes_the_connection(
    status: ProvisioningStatus, connection: Connection | None, fault: str | None
) -> None:
    """An Active device must be connected, and a decommissioned one that was connected must be refused."""
    device = Device("CONNECTED")
    state = DeviceState(
        device_id=device.device_id, tenant_id=device.tenant_id, serial_number=device.serial_number
    )
    binding = AwsThingBinding(
        device_id=device.device_id, thing_name=device.thing_name, provisioning_status=status
    )
    assert Outcome(Expectation(state, status), binding, None, 5, 0, connection).fault == fault


@pytest.mark.parametrize("columns", [80, 120])
def test_table_fits_a_terminal(columns: int) -> None:
    """A device is one line, with a link to its runs; ids and the tenant in the Thing's name are shortened."""
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
    expected = Expectation(state, ProvisioningStatus.ACTIVE)
    outcome = Outcome(expected, binding, "Suspended", 5, 0, Connection.CONNECTED)
    screen = Console(file=io.StringIO(), width=columns, force_terminal=True, legacy_windows=False)
    with screen.capture() as captured:
        screen.print(
            fleet_table([outcome], "http://127.0.0.1:8233/namespaces/default/workflows", complete=False)
        )
    linked, plain = captured.get(), Text.from_ansi(captured.get()).plain
    (row,) = (line.split() for line in plain.splitlines() if "PUMP_001" in line)
    tenant = device.thing_name[1:33]
    assert row == [
        str(device.device_id)[:8],
        "Active/Suspended",
        f"t{tenant[:3]}…{tenant[-3:]}-PUMP_001",
        "connected",
        "5",
        "open",
    ]
    assert f"http://127.0.0.1:8233/namespaces/default/workflows/device-{device.device_id}" in linked


# --- dev


@dataclass(frozen=True)
class RunningStack:
    """A stack that has printed its addresses."""

    process: Process
    printed: str
    environment: dict[str, str]
    """The variables of its file `environment`; with `HTTP`, the API's URL, and `KEY`, its key."""


def running_dev_stack(folder: Path) -> AbstractAsyncContextManager[RunningStack]:
    """Run a dev stack on free ports."""
    return running_stack(folder, "dev", *(f"--{name}-port=0" for name in ("temporal", "ui", "aws", "api")))


@asynccontextmanager
async def running_stack(folder: Path, *command: str | Path) -> AsyncIterator[RunningStack]:
    """Run a command until it has printed its addresses."""
    # Started without uv, so that the commands that it prints need none.
    environment = without_configuration() | {"UV_RUN_RECURSION_DEPTH": None}
    async with running(*command, "--data", folder, **environment) as process:
        printed = await read_until(process.stdout, "Ctrl-C stops everything.")
        lines = (folder / "environment").read_text().splitlines()
        written = {
            name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)
        }
        for variable in ("TEMPORAL_ADDRESS", "DATABASE_URL", "AWS_ENDPOINT_URL"):
            assert written[variable] in printed
        (api,) = re.findall(r"HTTP API +(http://127.0.0.1:\d+)/docs, with the key (tb_\S+)", printed)
        yield RunningStack(process, printed, written | dict(zip(("HTTP", "KEY"), api, strict=True)))


def printed_commands(stack: RunningStack) -> list[str]:
    """Return the commands that a stack prints for another shell."""
    return re.findall(r"^  (.+)$", stack.printed.partition("In another shell:\n")[2], re.MULTILINE)


async def bindings_over_http(environment: dict[str, str]) -> list[str]:
    """Return the devices that the API of a stack lists, with the key that it printed."""
    headers = {"Authorization": f"Bearer {environment['KEY']}"}
    async with httpx2.AsyncClient(base_url=environment["HTTP"], headers=headers, trust_env=False) as http:
        response = await http.get("/api/iot/bindings")
    assert response.status_code == 200
    return [binding["deviceId"] for binding in response.json()["items"]]


async def test_dev_stack_serves_other_shells_and_keeps_its_data(tmp_path: Path) -> None:
    """The printed commands run in another shell; Ctrl-C stops everything; the next start has the data."""
    folder, device = tmp_path / "dev stack", Device("DEV-1")
    events = tmp_path / "events.jsonl"
    events.write_text(json.dumps(device.event("Provisioned")))
    async with running_dev_stack(folder) as stack:
        commands = printed_commands(stack)
        shell = await asyncio.create_subprocess_shell(
            " && ".join([commands[0].replace(";", " &&"), *commands[1:], f"{THINGBRIDGE} send {events}"]),
            cwd="/",
            env=process_environment(**without_configuration(), PATH=os.defpath),
            stdout=subprocess.PIPE,
        )
        output, _ = await shell.communicate()
        assert shell.returncode == 0, output
        assert len(commands) == 4
        assert b"there is no binding yet" in output

        async def active() -> bool:
            result = await call_in_thread("bindings", "--device", str(device.device_id), **stack.environment)
            return " Active " in result.stdout

        await until(active, "the device is Active")
        assert await bindings_over_http(stack.environment) == [str(device.device_id)]
        second = await run("dev", "--data", folder, **without_configuration())
        assert (second.exit_code, "already runs on" in second.stderr) == (2, True)
        assert (await interrupt(stack.process)).exit_code == 0
        assert processes_of(folder) == []
    async with running_dev_stack(folder) as stack:
        assert await active()
        assert await bindings_over_http(stack.environment) == [str(device.device_id)]
        assert take_inventory(stack.environment["AWS_ENDPOINT_URL"]).things.keys() == {device.thing_name}
        result = await interrupt(stack.process, 2)
        assert result.exit_code in {0, 130}
        assert "Traceback" not in result.stdout + result.stderr
        assert processes_of(folder) == []


@pytest.mark.parametrize("command", ["dev", "demo"])
@pytest.mark.parametrize("folder", ["/proc/thingbridge", "FILE", "FILE/below"])
def test_unusable_data_folder_is_one_sentence(tmp_path: Path, command: str, folder: str) -> None:
    """A folder that cannot be written, or a file in its place, is refused with its path."""
    file = tmp_path / "file"
    file.touch()
    path = folder.replace("FILE", str(file))
    result = call(command, "--data", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: cannot keep data in {path}: ")
    assert result.stderr.endswith("; choose another data folder\n")
    assert file.read_bytes() == b""
