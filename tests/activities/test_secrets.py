"""The secret of a Thing holds the key of the Thing's certificate, also if it held another key before."""

from activities.bindings import certificate_arn_of
from domain.names import id_of_certificate
from tests.harness.bridge import Bridge, Device
from tests.workflows.test_device_lifecycle import fits


async def test_an_existing_secret_gets_the_key_of_the_new_certificate(bridge: Bridge) -> None:
    """An existing secret with the key of another certificate is not mistaken for the new key."""
    device = Device("OLD-SECRET-1")
    name = f"iot/devices/{device.thing_name}/key"
    other = bridge.iot.create_keys_and_certificate(setAsActive=False)["keyPair"]["PrivateKey"]
    bridge.secrets.create_secret(Name=name, SecretString=other)
    await bridge.send_and_wait(device, device.event("Provisioned"))
    (certificate,) = bridge.aws_resources(device).certificates
    assert fits(bridge.aws_resources(device).key, bridge.certificate_pem(certificate.arn))


async def test_a_secret_being_deleted_costs_one_certificate(faulty_bridge: Bridge) -> None:
    """While the secret's name is blocked by a deletion, later attempts issue no further certificate."""
    device = Device("KEPT-NAME-1")
    name = f"iot/devices/{device.thing_name}/key"
    faulty_bridge.secrets.create_secret(Name=name, SecretString="older")
    faulty_bridge.secrets.delete_secret(SecretId=name, RecoveryWindowInDays=7)
    await faulty_bridge.signal(device, device.event("Provisioned"))
    await faulty_bridge.wait_for_activity(device, "issue_certificate", attempts=3)
    assert faulty_bridge.transitions(device) == ["Pending", "ThingCreated", "CertIssued"]
    faulty_bridge.secrets.restore_secret(SecretId=name)
    await faulty_bridge.wait_for_end(device)
    (certificate,) = faulty_bridge.aws_resources(device).certificates
    assert fits(faulty_bridge.aws_resources(device).key, faulty_bridge.certificate_pem(certificate.arn))
    assert faulty_bridge.transitions(device)[3:] == ["ThingCreated", "CertIssued", "SecretStored", "Active"]


async def test_the_version_of_a_secret_identifies_its_key(bridge: Bridge) -> None:
    """The version id is the binding id for the first value, with a tag; later it is the certificate id."""
    first, second = Device("KEY-VERSION-1"), Device("KEY-VERSION-2")
    bridge.secrets.create_secret(Name=f"iot/devices/{second.thing_name}/key", SecretString="older")
    for device in (first, second):
        await bridge.send_and_wait(device, device.event("Provisioned"))
    created, replaced = (described(bridge, device) for device in (first, second))
    assert current(created) == str(bridge.require_binding(first).id)
    assert created["Tags"] == [{"Key": "certificateId", "Value": certificate_id(bridge, first)}]
    assert current(replaced) == certificate_id(bridge, second)


def described(bridge: Bridge, device: Device) -> dict[str, object]:
    found: dict[str, object] = bridge.secrets.describe_secret(
        SecretId=bridge.require_binding(device).certificate_secret_arn
    )
    return found


def current(found: dict[str, object]) -> str:
    stages = found["VersionIdsToStages"]
    assert isinstance(stages, dict)
    (version,) = [version for version, at in stages.items() if "AWSCURRENT" in at]
    return str(version)


def certificate_id(bridge: Bridge, device: Device) -> str:
    return id_of_certificate(certificate_arn_of(bridge.require_binding(device)))
