"""The command line as an operator meets it: help, sending, looking, retrying."""

import asyncio
import itertools
import json
import resource
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import typer.main
from rich.console import Console
from temporalio.service import RPCError

from cli import app, operate
from db.bindings import BindingFilter
from domain.provisioning_status import ProvisioningStatus
from settings import DatabaseSettings
from tests.harness.bridge import Bridge, Device
from tests.harness.command_line import Said, call, call_beside, run
from tests.settings.test_settings import DEFAULTS

COMMANDS = {
    "dev",
    "demo",
    "worker",
    "migrate",
    "send",
    "command",
    "cancel",
    "api",
    "codec",
    "bindings",
    "retry",
    "erase",
    "events",
    "keys",
}
NOWHERE = {"TEMPORAL_ADDRESS": "127.0.0.1:1"}


# --- Help


@pytest.mark.parametrize(("arguments", "exit_code"), [((), 2), (("--help",), 0)])
def test_the_help_names_every_command_and_every_setting(arguments: tuple[str, ...], exit_code: int) -> None:
    """Asked or not, it lists the commands and, in lines not broken, each setting with its default."""
    said = call(*arguments)
    assert said.exit_code == exit_code
    lines = [line.strip(" │") for line in (said.stdout + said.stderr).splitlines()]
    assert {line.split()[0] for line in lines if line} >= COMMANDS
    assert default_in(lines, "DATABASE_URL") == "required"
    for section, knobs in DEFAULTS.items():
        for knob, default in knobs.items():
            written = str(default).replace("None", "none").replace("True", "true")
            wanted = "required" if knob == "device_policy_name" else f"default: {written}"
            assert default_in(lines, f"IOT_AWS_{section}__{knob}".upper()) == wanted


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_explains_itself_and_its_arguments(command: str) -> None:
    """No command is without a sentence, and none of its arguments and options either."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == COMMANDS
    assert commands[command].help
    assert all(parameter.help for parameter in commands[command].params)
    said = call(command, "--help")
    assert said.exit_code == 0
    assert commands[command].help.split(".")[0].split()[-1] in said.stdout


# --- send


async def test_events_are_sent_and_sent_again_without_effect(bridge: Bridge, tmp_path: Path) -> None:
    """Every line of every file is sent, and the whole sent once more changes nothing."""
    device, other = Device("SENT-1"), Device("SENT-2")
    events = file(tmp_path, "a.jsonl", device.event("Activated", 1), device.event("Provisioned"))
    more = file(tmp_path, "b.jsonl", other.event("Provisioned"))
    said = await call_beside("send", events, more)
    assert (said.exit_code, said.stdout) == (0, "3 sent, 0 refused\n")
    assert "sending" in said.stderr
    await all_ended(bridge, device, other)
    before = [trace(bridge, each) for each in (device, other)]
    assert before[0][0] == ["Pending", "ThingCreated", "CertIssued", "SecretStored", "Active"]
    assert (await call_beside("send", events, more)).exit_code == 0
    await all_ended(bridge, device, other)
    assert [trace(bridge, each) for each in (device, other)] == before


async def test_bad_lines_are_reported_and_the_good_ones_sent(bridge: Bridge, tmp_path: Path) -> None:
    """Each bad line is told by file, line and field, never its value, and the exit code is 1."""
    device = Device("GOOD-AMONG-BAD")
    good = device.event("Provisioned")
    lines = [
        "not json hush",
        json.dumps({**good, "deviceId": "hush"}),
        "",
        json.dumps({name: value for name, value in good.items() if name != "serialNumber"}),
        json.dumps({**good, "serialNumber": "hush hush"}),
        json.dumps({**good, "padding": "x" * 20_000}),
        json.dumps(good) + "\r",
        "[]",
        json.dumps({**good, "occurredAt": "2026-11-23T10:00:00"}),
    ]
    events = tmp_path / "mixed.jsonl"
    events.write_text("\n".join(lines))  # the last line has no end
    said = await call_beside("send", str(events))
    assert (said.exit_code, said.stdout) == (1, "1 sent, 7 refused\n")
    reports = [line for line in said.stderr.splitlines() if line.startswith(f"{events}:")]
    assert sorted(report.removeprefix(f"{events}:") for report in reports) == [
        "1: event: is not JSON",
        "2: deviceId: must be a UUID",
        "4: serialNumber: is needed on a DeviceProvisionedEvent",
        "5: serialNumber: must begin with a letter or digit and hold only ASCII letters, digits, '_' and '-'",
        f"6: event: has {len(lines[5]) + 1} bytes, at most 16384 are allowed",
        "8: event: must be a JSON object",
        "9: occurredAt: must be an RFC 3339 time with seconds and a UTC offset",
    ]
    assert "hush" not in said.stderr
    await bridge.wait_for_end(device)
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE


async def test_a_file_larger_than_memory_may_be_sent(bridge: Bridge, tmp_path: Path) -> None:
    """Files are read as they are sent: neither their size nor that of a line decides the memory taken."""
    device, size = Device("AFTER-A-LONG-LINE"), 2**28
    events = tmp_path / "long.jsonl"
    with events.open("wb") as opened:
        opened.truncate(size)  # a sparse file, which takes no place
        opened.seek(0, 2)
        opened.write(b"\n" + json.dumps(device.event("Provisioned")).encode())
    before = most_memory_taken()
    said = await call_beside("send", str(events))
    assert said.stdout == "1 sent, 1 refused\n"
    assert f"{events}:1: event: has {size + 1} bytes, at most 16384 are allowed" in said.stderr
    assert most_memory_taken() - before < size / 4
    await bridge.wait_for_end(device)


async def test_nothing_to_send_to_is_a_sentence(tmp_path: Path) -> None:
    """A Temporal that does not answer is named, whatever the SDK makes of it, and the exit code is 2."""
    events = file(tmp_path, "a.jsonl", Device("NOWHERE").event("Provisioned"))
    said = await run("send", events, **NOWHERE)
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr == (
        "error: no Temporal server answers at 127.0.0.1:1 (TEMPORAL_ADDRESS): Connection refused\n"
    )


@pytest.mark.usefixtures("stack")
async def test_nobody_to_send_to_is_a_sentence(tmp_path: Path) -> None:
    """A namespace that is not there ends the sending at the first line, not after the last."""
    events = file(tmp_path, "a.jsonl", *(Device("NOBODY").event("Provisioned") for _ in range(500)))
    said = await call_beside("send", events, TEMPORAL_NAMESPACE="misspelt")
    assert said.exit_code == 2
    assert said.stderr.endswith(
        "error: Temporal refuses or does not answer: Namespace misspelt is not found.\n"
    )


@pytest.mark.parametrize(
    ("configuration", "why"),
    [
        ({"TEMPORAL_PROFILE": "misspelt"}, "Profile 'misspelt' not found"),
        ({"TEMPORAL_CONFIG_FILE": "FILE"}, "TOML parse error at line 2"),
        ({"TEMPORAL_TLS_CLIENT_CERT_PATH": "/not/there"}, "No such file"),
    ],
)
def test_a_wrong_temporal_configuration_is_a_sentence(
    tmp_path: Path, configuration: dict[str, str], why: str
) -> None:
    """What is wrong in Temporal's own configuration is said without a line of it: that may be a key."""
    wrong = tmp_path / "temporal.toml"
    wrong.write_text("[profile.default]\napi_key = hush\n")
    events = file(tmp_path, "a.jsonl", Device("NOWHERE").event("Provisioned"))
    said = call(
        "send", events, **{name: value.replace("FILE", str(wrong)) for name, value in configuration.items()}
    )
    assert said.exit_code == 2
    assert said.stderr.startswith("error: Temporal's own configuration (TEMPORAL_…, temporal.toml): ")
    assert why in said.stderr
    assert "hush" not in said.stderr


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Nothing is sent where one of the files cannot be read."""
    said = call("send", file(tmp_path, "a.jsonl"), "/not/there.jsonl", **NOWHERE)
    assert said.exit_code == 2
    assert "/not/there.jsonl" in said.stderr


# --- bindings


async def test_bindings_are_found_by_what_is_known_of_a_device(bridge: Bridge) -> None:
    """Status, tenant, serial number and device narrow the list, together too."""
    tenant = uuid4()
    active, gone = Device("LISTED-1", tenant), Device("LISTED-2", tenant)
    stranger = Device("LISTED-1")
    await asyncio.gather(
        *(bridge.send_and_wait(each, each.event("Provisioned")) for each in (active, stranger))
    )
    await bridge.send_and_wait(gone, gone.event("Decommissioned"), gone.event("Provisioned"))
    for filters, found in {
        ("--tenant", str(tenant)): {active, gone},
        ("--serial", "LISTED-1"): {active, stranger},
        ("--tenant", str(tenant), "--status", "Decommissioned"): {gone},
        ("--tenant", str(tenant), "--serial", "LISTED-1"): {active},
        ("--device", str(stranger.device_id)): {stranger},
    }.items():
        said = await call_beside("bindings", *filters)
        assert said.exit_code == 0
        assert {each for each in (active, gone, stranger) if listed(said, each)} == found
    said = await call_beside("bindings", "--tenant", str(tenant), "--limit", "1")
    assert listed(said, gone)
    assert not listed(said, active)
    assert said.stdout.endswith("the newest 1 of more: see --limit\n")


async def test_a_devices_binding_comes_with_its_resources_and_transitions(bridge: Bridge) -> None:
    """A single device is shown with its ARNs, and each change of status below the run that made it."""
    device = Device("TRANSITIONS-1")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    said = (await call_beside("bindings", "--device", str(device.device_id))).stdout.splitlines()
    binding, run_id = bridge.require_binding(device), bridge.transition_rows(device)[0].run_id
    assert {binding.thing_arn, binding.certificate_arn, binding.certificate_secret_arn} <= set(said)
    made = said[said.index(f"{device.workflow_id}, run {run_id}") + 1 :]
    assert [line.split()[-1] for line in made] == [
        "Pending",
        "ThingCreated",
        "CertIssued",
        "SecretStored",
        "Active",
    ]


@pytest.mark.usefixtures("engine")
async def test_no_binding_is_said_in_words() -> None:
    """Where nothing matches there is no empty table, and nothing has failed."""
    assert await call_beside("bindings", "--serial", "NOT-THERE") == Said(0, "no binding matches\n", "")
    said = await call_beside("bindings", "--status", "Lost")
    assert said.exit_code == 2
    assert "ThingCreated" in said.stderr


async def test_ids_are_whole_on_a_narrow_terminal_too(bridge: Bridge) -> None:
    """An id that was cut, or broken into a table's cell, could not be copied."""
    device = Device("NARROW-1")
    await bridge.send_and_wait(device, device.event("Provisioned"))
    terminal = Console(width=80, force_terminal=True, color_system=None, emoji=False)
    with terminal.capture() as captured:
        alone = BindingFilter(device_id=device.device_id)
        operate.list_bindings(DatabaseSettings.load(), terminal, alone, limit=50)
    shown = captured.get().splitlines()
    assert any(str(device.device_id) in line and device.thing_name in line for line in shown)
    assert bridge.require_binding(device).certificate_arn in shown


# --- retry


@pytest.mark.usefixtures("engine")
async def test_a_retry_of_no_device_sends_nothing(bridge: Bridge) -> None:
    """An id the bridge has never heard of is an error, and starts no workflow."""
    device = Device("NEVER-SEEN")
    said = await call_beside("retry", str(device.device_id))
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr == f"error: device {device.device_id} has no binding: see `thingbridge bindings`\n"
    with pytest.raises(RPCError, match="not found"):
        await bridge.client.get_workflow_handle(device.workflow_id).describe()
    assert (await call_beside("retry", "SN-1")).exit_code == 2


async def test_a_failed_device_is_mended_and_retried(bridge: Bridge) -> None:
    """A Thing of another device stops it with a reason; that Thing gone, a retry takes it to Active."""
    device = Device("MENDED-1")
    other = {"attributes": {"deviceId": str(uuid4())}}
    bridge.iot.create_thing(thingName=device.thing_name, attributePayload=other)
    await bridge.send(device, device.event("Provisioned"))
    await bridge.wait_for_status(device, ProvisioningStatus.FAILED)
    said = await call_beside("bindings", "--status", "Failed", "--serial", "MENDED-1")
    assert "ThingOfAnotherDevice: " in said.stdout
    assert "then retry" in said.stdout
    bridge.iot.delete_thing(thingName=device.thing_name)
    said = await call_beside("retry", str(device.device_id))
    assert said == Said(0, f"retry sent to {device.workflow_id}, whose binding is Failed\n", "")
    await bridge.wait_for_end(device)
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE


def default_in(help_lines: list[str], variable: str) -> str:
    """What the help says of a variable in brackets, at the end of its explanation."""
    below = help_lines[help_lines.index(variable) + 1 :]
    explained = itertools.takewhile(lambda line: line and not line.startswith("IOT_AWS_"), below)
    return " ".join(explained).rpartition("[")[2].rstrip("]")


def file(folder: Path, name: str, *events: dict[str, Any]) -> str:
    """A file of events."""
    written = folder / name
    written.write_text("".join(json.dumps(event) + "\n" for event in events))
    return str(written)


def most_memory_taken() -> int:
    """Bytes, of this process since its start. (tracemalloc crashes an interpreter with native threads.)"""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


async def all_ended(bridge: Bridge, *devices: Device) -> None:
    await asyncio.gather(*(bridge.wait_for_end(device) for device in devices))


def trace(bridge: Bridge, device: Device) -> tuple[list[str], list[str], object]:
    """All that events have made of a device."""
    return bridge.transitions(device), bridge.published(device), bridge.traces(device)


def listed(said: Said, device: Device) -> bool:
    """Whether a device is in a list of bindings."""
    lines = said.stdout.splitlines()
    return any(line.startswith(str(device.device_id)) and device.thing_name in line for line in lines)
