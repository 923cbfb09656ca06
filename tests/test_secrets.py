"""The secret of a Thing's name holds the key of the Thing's certificate, whatever it held before."""

from tests.bridge import Bridge, Device
from tests.test_device_lifecycle import fits


async def test_an_existing_secret_is_given_the_new_certificates_key(bridge: Bridge) -> None:
    """A secret left under the name, with another certificate's key, is not taken for this one's."""
    device = Device("OLD-SECRET-1")
    name = f"iot/devices/{device.thing_name}/key"
    other = bridge.iot.create_keys_and_certificate(setAsActive=False)["keyPair"]["PrivateKey"]
    bridge.secrets.create_secret(Name=name, SecretString=other)
    await bridge.handled(device, device.event("Provisioned"))
    (certificate,) = bridge.traces(device).certificates
    assert fits(bridge.traces(device).key, bridge.certificate_pem(certificate.arn))


async def test_no_certificate_is_issued_and_lost_while_the_name_is_kept(calm: Bridge) -> None:
    """A secret scheduled for deletion costs one certificate, however many attempts wait for it."""
    device = Device("KEPT-NAME-1")
    name = f"iot/devices/{device.thing_name}/key"
    calm.secrets.create_secret(Name=name, SecretString="older")
    calm.secrets.delete_secret(SecretId=name, RecoveryWindowInDays=7)
    await calm.signal(device, device.event("Provisioned"))
    await calm.at_work(device, "issue_certificate", attempts=3)
    assert calm.transitions(device) == ["Pending", "ThingCreated", "CertIssued"]
    calm.secrets.restore_secret(SecretId=name)
    await calm.ended(device)
    (certificate,) = calm.traces(device).certificates
    assert fits(calm.traces(device).key, calm.certificate_pem(certificate.arn))
    assert calm.transitions(device)[3:] == ["ThingCreated", "CertIssued", "SecretStored", "Active"]


async def test_whose_key_a_secret_holds_is_told_without_reading_it(bridge: Bridge) -> None:
    """The first value bears the binding's id and a tag, a later one its certificate's id."""
    first, second = Device("TOLD-1"), Device("TOLD-2")
    bridge.secrets.create_secret(Name=f"iot/devices/{second.thing_name}/key", SecretString="older")
    for device in (first, second):
        await bridge.handled(device, device.event("Provisioned"))
    made, replaced = (described(bridge, device) for device in (first, second))
    assert current(made) == str(bridge.bound(first).id)
    assert made["Tags"] == [{"Key": "certificateId", "Value": certificate_id(bridge, first)}]
    assert current(replaced) == certificate_id(bridge, second)


def described(bridge: Bridge, device: Device) -> dict[str, object]:
    found: dict[str, object] = bridge.secrets.describe_secret(
        SecretId=bridge.bound(device).certificate_secret_arn
    )
    return found


def current(found: dict[str, object]) -> str:
    stages = found["VersionIdsToStages"]
    assert isinstance(stages, dict)
    (version,) = [version for version, at in stages.items() if "AWSCURRENT" in at]
    return str(version)


def certificate_id(bridge: Bridge, device: Device) -> str:
    return (bridge.bound(device).certificate_arn or "").rpartition("/")[2]
