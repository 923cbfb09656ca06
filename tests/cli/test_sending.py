"""`thingbridge send`: lifecycle events from files."""

import asyncio
import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from domain.provisioning_status import ProvisioningStatus
from tests.harness.bridge import Bridge, Device
from tests.harness.command_line import call, call_in_thread, run

UNREACHABLE = {"TEMPORAL_ADDRESS": "127.0.0.1:1"}


async def test_sending_a_file_twice_changes_nothing(bridge: Bridge, tmp_path: Path) -> None:
    """Every line of every file is sent; sending all of them again has no effect."""
    device, other = Device("SENT-1"), Device("SENT-2")
    events = event_file(tmp_path, "a.jsonl", device.event("Activated", 1), device.event("Provisioned"))
    more = event_file(tmp_path, "b.jsonl", other.event("Provisioned"))
    result = await call_in_thread("send", events, more)
    assert (result.exit_code, result.stdout) == (0, "3 sent, 0 refused\n")
    assert "sending" in result.stderr
    await all_ended(bridge, device, other)
    before = [effects(bridge, each) for each in (device, other)]
    assert before[0][0] == ["Pending", "ThingCreated", "CertIssued", "SecretStored", "Active"]
    assert (await call_in_thread("send", events, more)).exit_code == 0
    await all_ended(bridge, device, other)
    assert [effects(bridge, each) for each in (device, other)] == before


async def test_invalid_lines_are_reported_and_valid_ones_sent(bridge: Bridge, tmp_path: Path) -> None:
    """Each invalid line is reported by file, line and field, never its value, and the exit code is 1."""
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
    events.write_text("\n".join(lines))  # the last line has no newline
    result = await call_in_thread("send", str(events))
    assert (result.exit_code, result.stdout) == (1, "1 sent, 7 refused\n")
    reports = [line for line in result.stderr.splitlines() if line.startswith(f"{events}:")]
    assert sorted(report.removeprefix(f"{events}:") for report in reports) == [
        "1: event: is not JSON",
        "2: deviceId: must be a UUID",
        "4: serialNumber: is needed on a DeviceProvisionedEvent",
        "5: serialNumber: must begin with a letter or digit and hold only ASCII letters, digits, '_' and '-'",
        f"6: event: has {len(lines[5]) + 1} bytes, at most 16384 are allowed",
        "8: event: must be a JSON object",
        "9: occurredAt: must be an RFC 3339 time with seconds and a UTC offset",
    ]
    assert "hush" not in result.stderr
    await bridge.wait_for_end(device)
    assert bridge.require_binding(device).provisioning_status is ProvisioningStatus.ACTIVE


async def test_file_with_a_huge_line_uses_little_memory(bridge: Bridge, tmp_path: Path) -> None:
    """Files are read while they are sent, so the memory used depends on no file size or line length."""
    device, size = Device("AFTER-A-LONG-LINE"), 2**28
    events = tmp_path / "long.jsonl"
    with events.open("wb") as opened:
        opened.truncate(size)  # a sparse file, which uses no disk space
        opened.seek(0, 2)
        opened.write(b"\n" + json.dumps(device.event("Provisioned")).encode())
    before = peak_memory()
    result = await call_in_thread("send", str(events))
    assert result.stdout == "1 sent, 1 refused\n"
    assert f"{events}:1: event: has {size + 1} bytes, at most 16384 are allowed" in result.stderr
    assert peak_memory() - before < size / 4
    await bridge.wait_for_end(device)


async def test_unreachable_temporal_is_one_sentence(tmp_path: Path) -> None:
    """The error names the address and the variable, and the exit code is 2."""
    events = event_file(tmp_path, "a.jsonl", Device("NOWHERE").event("Provisioned"))
    result = await run("send", events, **UNREACHABLE)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: no Temporal server answers at 127.0.0.1:1 (TEMPORAL_ADDRESS): Connection refused\n"
    )


@pytest.mark.usefixtures("stack")
async def test_unknown_namespace_ends_the_sending_at_once(tmp_path: Path) -> None:
    """A namespace that does not exist is reported after the first line, not after the last."""
    events = event_file(tmp_path, "a.jsonl", *(Device("NOBODY").event("Provisioned") for _ in range(500)))
    result = await call_in_thread("send", events, TEMPORAL_NAMESPACE="misspelt")
    assert result.exit_code == 2
    assert result.stderr.endswith(
        "error: Temporal refuses or does not answer: Namespace misspelt is not found.\n"
    )


@pytest.mark.parametrize(
    ("configuration", "reason"),
    [
        ({"TEMPORAL_PROFILE": "misspelt"}, "Profile 'misspelt' not found"),
        ({"TEMPORAL_CONFIG_FILE": "FILE"}, "TOML parse error at line 2"),
        ({"TEMPORAL_TLS_CLIENT_CERT_PATH": "/not/there"}, "No such file"),
    ],
)
def test_wrong_temporal_configuration_is_one_sentence(
    tmp_path: Path, configuration: dict[str, str], reason: str
) -> None:
    """The error has the reason, and quotes no line of the configuration, because it may contain a key."""
    wrong = tmp_path / "temporal.toml"
    wrong.write_text("[profile.default]\napi_key = hush\n")
    events = event_file(tmp_path, "a.jsonl", Device("NOWHERE").event("Provisioned"))
    result = call(
        "send", events, **{name: value.replace("FILE", str(wrong)) for name, value in configuration.items()}
    )
    assert result.exit_code == 2
    assert result.stderr.startswith("error: Temporal's own configuration (TEMPORAL_…, temporal.toml): ")
    assert reason in result.stderr
    assert "hush" not in result.stderr


def test_missing_file_is_named(tmp_path: Path) -> None:
    """Nothing is sent if one of the files cannot be read."""
    result = call("send", event_file(tmp_path, "a.jsonl"), "/not/there.jsonl", **UNREACHABLE)
    assert result.exit_code == 2
    assert "/not/there.jsonl" in result.stderr


def event_file(folder: Path, name: str, *events: dict[str, Any]) -> str:
    """Write a file of events, and return its path."""
    written = folder / name
    written.write_text("".join(json.dumps(event) + "\n" for event in events))
    return str(written)


def peak_memory() -> int:
    """Return this process's maximum in bytes. (tracemalloc crashes an interpreter with native threads.)"""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


async def all_ended(bridge: Bridge, *devices: Device) -> None:
    await asyncio.gather(*(bridge.wait_for_end(device) for device in devices))


def effects(bridge: Bridge, device: Device) -> tuple[list[str], list[str], object]:
    """Return everything that events have changed for a device."""
    return bridge.transitions(device), bridge.published(device), bridge.aws_resources(device)
