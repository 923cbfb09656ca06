"""The private key is only in Secrets Manager: no history, row or log line contains a part of it."""

import base64
import io
import json
import logging
from collections.abc import Iterator

import pytest
from google.protobuf.json_format import MessageToDict
from sqlalchemy import text

from db.models import Table
from domain.provisioning_status import ProvisioningStatus
from observability import telemetry
from tests.harness.bridge import Bridge, Device

SECRET_CALLS = ("secretsmanager:CreateSecret", "secretsmanager:PutSecretValue")
"""The calls whose request contains a key."""


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The log at level DEBUG."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    written = io.StringIO()
    telemetry.configure("DEBUG", "json", written)
    yield written
    root.handlers[:] = handlers
    root.setLevel(level)


async def test_no_key_leaves_the_activity_that_issues_it(faulty_bridge: Bridge, log: io.StringIO) -> None:
    """No key is recorded if the write of the secret succeeds, is denied, is throttled or fails otherwise."""
    devices = [Device(f"KEY-{number}") for number in range(6)]
    faults = [
        {},
        {"code": "ThrottlingException", "status": 400, "times": 1},
        {"code": "InternalServiceError", "status": 500, "times": 1, "when": "after"},
        {"code": "ResourceExistsException", "status": 400, "times": 1},
        {"code": "InvalidParameterException", "status": 400, "times": 1},
        {"code": "AccessDeniedException", "status": 400, "times": 1},
    ]
    for device, fault in zip(devices, faults, strict=True):
        if fault:
            faulty_bridge.emulator.add_fault(*SECRET_CALLS, resource=device.thing_name, **fault)  # type: ignore[arg-type]
        await faulty_bridge.signal(device, device.event("Provisioned"))
    for device in devices[:4]:
        await faulty_bridge.wait_for_end(device)
    for device in devices[4:]:
        await faulty_bridge.wait_for_status(device, ProvisioningStatus.FAILED)
        await faulty_bridge.signal(device, signal="retry")
        await faulty_bridge.wait_for_end(device)

    texts = {
        "log": log.getvalue(),
        "database": rows(faulty_bridge),
        "histories": await histories(faulty_bridge),
    }
    keys = [str(faulty_bridge.aws_resources(device).key) for device in devices]
    lines = [line for key in keys for line in key.splitlines()[1:-1]]
    assert len(lines) > 20 * len(devices)
    for source, content in texts.items():
        assert len(content) > 1000, source
        assert "PRIVATE KEY" not in content, source
        assert not [line for line in lines if line in content], source


def rows(bridge: Bridge) -> str:
    """Return every row of every table of the bridge."""
    with bridge.engine.connect() as connection:
        return "\n".join(
            str(row)
            for table in Table.metadata.sorted_tables
            for row in connection.execute(text(f"SELECT row_to_json(t)::text FROM {table.name} t"))  # noqa: S608
        )


async def histories(bridge: Bridge) -> str:
    """Return every history in the namespace, with its payloads decoded."""
    texts: list[str] = []
    async for run in bridge.client.list_workflows():
        handle = bridge.client.get_workflow_handle(run.id, run_id=run.run_id)
        async for event in handle.fetch_history_events():
            shown = json.dumps(MessageToDict(event))
            texts += [shown, *decoded(json.loads(shown))]
    return "\n".join(texts)


def decoded(shown: object) -> Iterator[str]:
    if isinstance(shown, dict):
        if isinstance(shown.get("data"), str):
            yield base64.b64decode(shown["data"]).decode(errors="replace")
        for value in shown.values():
            yield from decoded(value)
    elif isinstance(shown, list):
        for value in shown:
            yield from decoded(value)
