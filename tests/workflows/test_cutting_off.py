"""A decommissioned device loses its MQTT connection at once, and cannot connect again."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from activities.bindings import certificate_arn_of
from domain.provisioning_status import ProvisioningStatus
from embedded.stack import Addresses
from tests.harness.bridge import Bridge, Device, until
from tests.harness.mqtt import DeviceIdentity, MqttDevice, RefusedError

CUT_OFF_SECONDS: Final = 2.0
"""How long a connection may last after the event was sent."""


class Field:
    """The devices in the field, with the certificates and keys that the bridge made for them."""

    def __init__(self, stack: Addresses, bridge: Bridge) -> None:
        self._stack = stack
        self._bridge = bridge

    async def provision(self, device: Device) -> DeviceIdentity:
        """Provision a device, and return its certificate and key, which a factory would store in it."""
        await self._bridge.send_and_wait(device, device.event("Provisioned"))
        arn = certificate_arn_of(self._bridge.require_binding(device))
        key = self._bridge.aws_resources(device).key
        assert key is not None
        return DeviceIdentity(self._bridge.certificate_pem(arn), key)

    def share(self, device: Device, other: Device) -> None:
        """Attach the certificate of a device also to a new Thing of another device."""
        shared = certificate_arn_of(self._bridge.require_binding(device))
        self._bridge.iot.create_thing(thingName=other.thing_name)
        self._bridge.iot.attach_thing_principal(thingName=other.thing_name, principal=shared)

    @asynccontextmanager
    async def connected(self, device: Device, identity: DeviceIdentity) -> AsyncIterator[MqttDevice]:
        connection = MqttDevice(self._stack, identity, device.thing_name)
        await asyncio.to_thread(connection.__enter__)
        try:
            yield connection
        finally:
            await asyncio.to_thread(connection.__exit__)

    async def assert_refused(self, device: Device, identity: DeviceIdentity) -> None:
        with pytest.raises(RefusedError):
            async with self.connected(device, identity):
                pass


@pytest.fixture
def field(stack: Addresses, faulty_bridge: Bridge) -> Iterator[Field]:
    """The devices, and an emulator that completes detachments at once, so that a test ends sooner."""
    faulty_bridge.emulator.settings(detach_seconds=0)
    yield Field(stack, faulty_bridge)
    faulty_bridge.emulator.default_settings()


async def wait_disconnected(connection: MqttDevice, seconds: float) -> None:
    await asyncio.to_thread(connection.wait_disconnected, seconds)


async def wait_refused(connection: MqttDevice) -> None:
    """Wait until the broker has refused two attempts of the device to connect again."""

    async def refused() -> bool:
        return connection.refusals >= 2

    await until(refused, "the device is refused")


async def test_a_decommissioned_device_is_cut_off_at_once(faulty_bridge: Bridge, field: Field) -> None:
    """Its connection ends within two seconds of the event, and it cannot connect again."""
    device = Device("CUT-OFF-1")
    identity = await field.provision(device)
    async with field.connected(device, identity) as connection:
        sent = time.monotonic()
        await faulty_bridge.signal(device, device.event("Decommissioned"))
        await wait_disconnected(connection, CUT_OFF_SECONDS)
        assert time.monotonic() - sent < CUT_OFF_SECONDS
        await wait_refused(connection)
        await faulty_bridge.wait_for_end(device)
        assert connection.connections == 1
    await field.assert_refused(device, identity)


async def test_a_device_cannot_connect_again_before_its_certificate_is_inactive(
    faulty_bridge: Bridge, field: Field
) -> None:
    """The connection ends after the deactivation, however long that takes, so that no other follows it."""
    device = Device("CUT-OFF-2")
    identity = await field.provision(device)
    async with field.connected(device, identity) as connection:
        faulty_bridge.emulator.add_fault("iot:UpdateCertificate", delay_seconds=0.5, times=1)
        await faulty_bridge.signal(device, device.event("Decommissioned"))
        await wait_refused(connection)
        await faulty_bridge.wait_for_end(device)
        assert connection.connections == 1


async def test_a_device_with_a_shared_certificate_cannot_connect_again(
    faulty_bridge: Bridge, field: Field
) -> None:
    """A certificate that serves another Thing stays active, but is refused as the decommissioned one."""
    device, other = Device("CUT-OFF-3"), Device("STAYS-CONNECTED-3")
    identity = await field.provision(device)
    field.share(device, other)
    async with field.connected(device, identity) as connection, field.connected(other, identity) as kept:
        faulty_bridge.emulator.add_fault("iot:DetachThingPrincipal", delay_seconds=0.5, times=1)
        await faulty_bridge.send_and_wait(device, device.event("Decommissioned"))
        await wait_refused(connection)
        assert (connection.connections, kept.connections, kept.refusals) == (1, 1, 0)


async def test_a_device_with_a_shared_certificate_is_disconnected_twice(
    faulty_bridge: Bridge, field: Field
) -> None:
    """AWS does not end the connection of an active certificate, so the teardown ends with another attempt."""
    device, other = Device("CUT-OFF-4"), Device("STAYS-CONNECTED-4")
    identity = await field.provision(device)
    field.share(device, other)
    faulty_bridge.emulator.add_fault(
        "iot-data:DeleteConnection", code="AccessDeniedException", status=403, times=1
    )
    async with field.connected(device, identity) as connection:
        await faulty_bridge.send_and_wait(device, device.event("Decommissioned"))
        await wait_refused(connection)
        assert connection.connections == 1


async def test_a_throttled_disconnection_is_repeated(faulty_bridge: Bridge, field: Field) -> None:
    """The device is disconnected by a later attempt, long before AWS would do it."""
    device = Device("CUT-OFF-5")
    identity = await field.provision(device)
    faulty_bridge.emulator.add_fault(
        "iot-data:DeleteConnection", code="ThrottlingException", status=429, times=1
    )
    async with field.connected(device, identity) as connection:
        await faulty_bridge.signal(device, device.event("Decommissioned"))
        await wait_disconnected(connection, 20)
        await wait_refused(connection)
        assert connection.connections == 1
    await faulty_bridge.wait_for_end(device)


@pytest.mark.parametrize(
    ("code", "status"), [("AccessDeniedException", 403), ("InternalFailureException", 500)]
)
async def test_a_decommission_ends_without_the_disconnection(
    faulty_bridge: Bridge, field: Field, code: str, status: int
) -> None:
    """If AWS refuses to end the connection, everything else is erased, and AWS ends the connection itself."""
    device = Device(f"CUT-OFF-{status}")
    identity = await field.provision(device)
    faulty_bridge.emulator.settings(disconnect_seconds=1)
    faulty_bridge.emulator.add_fault("iot-data:DeleteConnection", code=code, status=status)
    async with field.connected(device, identity) as connection:
        await faulty_bridge.send_and_wait(device, device.event("Decommissioned"))
        assert faulty_bridge.require_binding(device).provisioning_status is ProvisioningStatus.DECOMMISSIONED
        assert faulty_bridge.require_binding(device).failure_code is None
        await wait_refused(connection)
        assert connection.connections == 1
