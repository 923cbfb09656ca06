"""A fleet at once: every device becomes Active, and AWS has exactly the resources of these devices."""

import asyncio
from uuid import uuid4

from activities.bindings import certificate_arn_of
from domain.provisioning_status import ProvisioningStatus
from tests.harness.bridge import POLICY, Bridge, Device
from tests.workflows.test_device_lifecycle import fits

FLEET = 200


async def test_two_hundred_devices_at_once_become_active(bridge: Bridge) -> None:
    """Each device has one Thing, one active certificate with one policy, one key and one attachment."""
    tenants = [uuid4() for _ in range(4)]
    before = bridge.inventory()
    fleet = [Device(f"FLEET-{number}", tenants[number % 4]) for number in range(FLEET)]
    await asyncio.gather(*(bridge.signal(device, device.event("Provisioned")) for device in fleet))
    await asyncio.gather(*(bridge.wait_for_end(device, 120) for device in fleet))
    after = bridge.inventory()
    things = after.things.keys() - before.things.keys()
    certificates = after.certificates.keys() - before.certificates.keys()
    secrets = after.secrets.keys() - before.secrets.keys()
    assert things == {device.thing_name for device in fleet}
    assert len(certificates) == len(secrets) == FLEET
    for device in fleet:
        binding = bridge.require_binding(device)
        assert binding.provisioning_status is ProvisioningStatus.ACTIVE
        assert after.attachments[device.thing_name] == (binding.certificate_arn,)
        certificate = after.certificates[certificate_arn_of(binding)]
        assert (certificate.status, certificate.policies) == ("ACTIVE", (POLICY,))
        assert after.secrets[f"iot/devices/{device.thing_name}/key"] == binding.certificate_secret_arn
        key = bridge.secrets.get_secret_value(SecretId=binding.certificate_secret_arn)["SecretString"]
        assert fits(key, bridge.certificate_pem(certificate.arn))
