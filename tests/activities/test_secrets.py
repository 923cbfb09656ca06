"""The secret of a Thing's name holds the key of the Thing's certificate, whatever it held before."""

from tests.harness.bridge import Bridge, Device
from tests.workflows.test_device_lifecycle import fits


async def test_an_existing_secret_is_given_the_new_certificates_key(bridge: Bridge) -> None:
    """A secret left under the name, with another certificate's key, is not taken for this one's."""
    device = Device("OLD-SECRET-1")
    name = f"iot/devices/{device.thing_name}/key"
    other = bridge.iot.create_keys_and_certificate(setAsActive=False)["keyPair"]["PrivateKey"]
    bridge.secrets.create_secret(Name=name, SecretString=other)
    await bridge.send_and_wait(device, device.event("Provisioned"))
    (certificate,) = bridge.traces(device).certificates
    assert fits(bridge.traces(device).key, bridge.certificate_pem(certificate.arn))


async def test_no_certificate_is_issued_and_lost_while_the_name_is_kept(faulty_bridge: Bridge) -> None:
    """A secret scheduled for deletion costs one certificate, however many attempts wait for it."""
    device = Device("KEPT-NAME-1")
    name = f"iot/devices/{device.thing_name}/key"
    faulty_bridge.secrets.create_secret(Name=name, SecretString="older")
    faulty_bridge.secrets.delete_secret(SecretId=name, RecoveryWindowInDays=7)
    await faulty_bridge.signal(device, device.event("Provisioned"))
    await faulty_bridge.wait_for_activity(device, "issue_certificate", attempts=3)
    assert faulty_bridge.transitions(device) == ["Pending", "ThingCreated", "CertIssued"]
    faulty_bridge.secrets.restore_secret(SecretId=name)
    await faulty_bridge.wait_for_end(device)
    (certificate,) = faulty_bridge.traces(device).certificates
    assert fits(faulty_bridge.traces(device).key, faulty_bridge.certificate_pem(certificate.arn))
    assert faulty_bridge.transitions(device)[3:] == ["ThingCreated", "CertIssued", "SecretStored", "Active"]


async def test_whose_key_a_secret_holds_is_told_without_reading_it(bridge: Bridge) -> None:
    """The first value bears the binding's id and a tag, a later one its certificate's id."""
    first, second = Device("TOLD-1"), Device("TOLD-2")
    bridge.secrets.create_secret(Name=f"iot/devices/{second.thing_name}/key", SecretString="older")
    for device in (first, second):
        await bridge.send_and_wait(device, device.event("Provisioned"))
    made, replaced = (described(bridge, device) for device in (first, second))
    assert current(made) == str(bridge.require_binding(first).id)
    assert made["Tags"] == [{"Key": "certificateId", "Value": certificate_id(bridge, first)}]
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
    return (bridge.require_binding(device).certificate_arn or "").rpartition("/")[2]
