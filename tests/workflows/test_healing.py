"""The saga recovers from a crash before or after any AWS call or commit."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Engine
from temporalio import activity

from activities.bindings import certificate_arn_of
from aws.clients import AwsClients
from domain.provisioning_status import ProvisioningStatus
from settings import Settings
from tests.harness.bridge import POLICY, Bridge, Device, worker_on
from tests.workflows.test_device_lifecycle import fits

ORPHANING = {"after CreateKeysAndCertificate 1", "before commit 3"}
"""Crashes that leave a certificate without a row: only a sweep of the account could find it."""


@pytest.fixture
def bridge(bridge_on_emulator: Bridge) -> Bridge:
    return bridge_on_emulator


class Crash(BaseException):
    """A crash of the process. It is no Exception, so that no handler of the code under test catches it."""


class CrashPoints:
    """Records every AWS call and commit of every workflow, and crashes a workflow once, at its point."""

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = defaultdict(list)
        self.due: dict[str, str] = {}
        self._counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def before(self, what: str) -> None:
        if (workflow_id := self._workflow_id()) is not None:
            self._counts[workflow_id][what] += 1
            self._reach(workflow_id, f"before {what} {self._counts[workflow_id][what]}")

    def after(self, what: str) -> None:
        if (workflow_id := self._workflow_id()) is not None:
            self._reach(workflow_id, f"after {what} {self._counts[workflow_id][what]}")

    def _reach(self, workflow_id: str, point: str) -> None:
        self.seen[workflow_id].append(point)
        if self.due.get(workflow_id) == point:
            del self.due[workflow_id]
            raise Crash(point)

    @staticmethod
    def _workflow_id() -> str | None:
        return activity.info().workflow_id if activity.in_activity() else None


@pytest.fixture
def crashes(aws_on_emulator: AwsClients, engine: Engine) -> Iterator[CrashPoints]:
    """Crash points in the AWS clients and the database engine of the worker under test."""
    points = CrashPoints()

    def before_call(model: Any, **_: Any) -> None:
        points.before(model.name)

    def after_call(model: Any, **_: Any) -> None:
        points.after(model.name)

    commit = engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        points.before("commit")
        commit(connection)
        points.after("commit")

    aws = aws_on_emulator
    clients = (aws.iot, aws.iot_data, aws.secrets)
    for client in clients:
        client.meta.events.register("before-call", before_call)
        client.meta.events.register("after-call", after_call)
    engine.dialect.do_commit = do_commit  # type: ignore[assignment,method-assign]
    yield points
    engine.dialect.do_commit = commit  # type: ignore[method-assign]
    for client in clients:
        client.meta.events.unregister("before-call", before_call)
        client.meta.events.unregister("after-call", after_call)


QUEUE = "crashing"


@pytest_asyncio.fixture
async def crashing(
    bridge: Bridge, aws_on_emulator: AwsClients, engine: Engine, settings: Settings, crashes: CrashPoints
) -> AsyncIterator[Bridge]:
    """Run a worker that crashes, on a separate queue."""
    async with worker_on(QUEUE, settings, bridge, aws_on_emulator, engine):
        yield bridge


@pytest.mark.both_emulators
async def test_provisioning_recovers_from_a_crash_at_any_point(
    crashing: Bridge, crashes: CrashPoints
) -> None:
    """After each crash there is one Thing, one active certificate with one policy, and one secret."""
    probe = Device("CRASH-PROBE-1")
    await send_and_wait(crashing, probe, "Provisioned")
    points = crashes.seen[probe.workflow_id]
    assert len(points) >= 2 * (7 + 5)
    certificates_before = set(crashing.inventory().certificates)
    devices = {point: Device(f"CRASH-{number}") for number, point in enumerate(points)}
    crashes.due |= {device.workflow_id: point for point, device in devices.items()}
    await asyncio.gather(*(send_and_wait(crashing, device, "Provisioned") for device in devices.values()))
    assert not crashes.due
    for point, device in devices.items():
        binding, resources = crashing.require_binding(device), crashing.aws_resources(device)
        assert binding.provisioning_status is ProvisioningStatus.ACTIVE, point
        assert resources.thing is not None, point
        (certificate,) = resources.certificates
        assert (certificate.status, certificate.policies) == ("ACTIVE", (POLICY,)), point
        assert resources.secret_arn == binding.certificate_secret_arn, point
        assert fits(resources.key, crashing.certificate_pem(certificate.arn)), point
    inventory = crashing.inventory()
    attached = {arn for arns in inventory.attachments.values() for arn in arns}
    left_over = set(inventory.certificates) - certificates_before - attached
    assert len(left_over) == len(ORPHANING & devices.keys()) == len(ORPHANING)
    assert {inventory.certificates[arn].status for arn in left_over} == {"INACTIVE"}


async def test_decommissioning_recovers_from_a_crash_at_any_point(
    crashing: Bridge, crashes: CrashPoints
) -> None:
    """After each crash nothing of the device is left in AWS, and one event reports its end."""
    # Retries of pending detachments would make the crash points differ between devices.
    crashing.emulator.settings(detach_seconds=0)
    probe = Device("CRASH-END-PROBE")
    await send_and_wait(crashing, probe, "Provisioned")
    provisioning_points = len(crashes.seen[probe.workflow_id])
    await send_and_wait(crashing, probe, "Decommissioned")
    points = crashes.seen[probe.workflow_id][provisioning_points:]
    assert len(points) > 25
    devices = {point: Device(f"CRASH-END-{number}") for number, point in enumerate(points)}
    await asyncio.gather(*(send_and_wait(crashing, device, "Provisioned") for device in devices.values()))
    certificates = {
        device: certificate_arn_of(crashing.require_binding(device)) for device in devices.values()
    }
    crashes.due |= {device.workflow_id: point for point, device in devices.items()}
    await asyncio.gather(*(send_and_wait(crashing, device, "Decommissioned") for device in devices.values()))
    crashing.emulator.settings(detach_seconds=2)
    assert not crashes.due
    for point, device in devices.items():
        assert crashing.require_binding(device).provisioning_status is ProvisioningStatus.DECOMMISSIONED, (
            point
        )
        resources = crashing.aws_resources(device, certificates[device])
        assert (resources.thing, resources.certificates, resources.secret_arn) == (None, [], None), point
        assert crashing.shadow_names(device) == [], point
        assert crashing.published(device) == ["AwsThingProvisionedEvent", "AwsThingDecommissionedEvent"], (
            point
        )


async def send_and_wait(bridge: Bridge, device: Device, kind: str) -> None:
    await bridge.signal(device, device.event(kind), queue=QUEUE)
    await bridge.wait_for_end(device, 90)
