"""Things: create, adopt and delete them, where each call can be repeated.

They run on moto in this process. A name that is taken during a creation is tested on the emulator, in
tests/workflows/test_provisioning_failures.py: moto replaces the existing Thing.
"""

from uuid import uuid4

import pytest

from aws.clients import AwsClients
from aws.errors import InvalidRequestError
from aws.things import ThingOwner, Things
from domain.failure import FailureCode, PermanentError
from domain.names import NO_TENANT


@pytest.fixture
def aws(moto_aws: AwsClients) -> AwsClients:
    return moto_aws


@pytest.fixture
def things(aws: AwsClients) -> Things:
    return Things(aws)


@pytest.fixture
def name() -> str:
    return f"thing-{uuid4().hex}"


def owner() -> ThingOwner:
    return ThingOwner(uuid4(), uuid4())


def test_a_thing_is_created_with_its_owner(things: Things, name: str) -> None:
    """A repeated call returns the same ARN."""
    device = owner()
    arn = things.ensure(name, device, known_certificate_arn=None)
    assert things.ensure(name, device, known_certificate_arn=None) == arn
    assert things.attributes_of(name) == device.attributes


def test_the_thing_of_another_owner_is_not_adopted(things: Things, name: str) -> None:
    """The Thing keeps its attributes."""
    device = owner()
    things.ensure(name, device, known_certificate_arn=None)
    with pytest.raises(PermanentError) as raised:
        things.ensure(name, owner(), known_certificate_arn=None)
    assert raised.value.code is FailureCode.THING_OF_ANOTHER_DEVICE
    assert things.attributes_of(name) == device.attributes


def test_a_thing_with_its_known_certificate_is_adopted(things: Things, name: str, aws: AwsClients) -> None:
    """A certificate that is attached already is accepted if the caller names it, and only then."""
    device = owner()
    arn = things.ensure(name, device, known_certificate_arn=None)
    certificate = aws.iot.create_keys_and_certificate(setAsActive=False)["certificateArn"]
    aws.iot.attach_thing_principal(thingName=name, principal=certificate)
    assert things.certificates_of(name) == [certificate]
    assert things.ensure(name, device, known_certificate_arn=certificate) == arn
    with pytest.raises(PermanentError) as raised:
        things.ensure(name, device, known_certificate_arn=None)
    assert raised.value.code is FailureCode.UNKNOWN_CERTIFICATE


def test_a_thing_is_deleted_after_its_certificate_is_detached(
    things: Things, name: str, aws: AwsClients
) -> None:
    """AWS refuses the deletion while a certificate is attached."""
    things.ensure(name, owner(), known_certificate_arn=None)
    certificate = aws.iot.create_keys_and_certificate(setAsActive=False)["certificateArn"]
    aws.iot.attach_thing_principal(thingName=name, principal=certificate)
    with pytest.raises(InvalidRequestError):
        things.delete(name)
    assert things.attributes_of(name) is not None


def test_the_deletion_of_a_missing_thing_succeeds(things: Things, name: str) -> None:
    """A repeated deletion has no effect, and a missing Thing has no attributes and no certificates."""
    things.ensure(name, owner(), known_certificate_arn=None)
    things.delete(name)
    things.delete(name)
    assert things.attributes_of(name) is None
    assert things.certificates_of(name) == []


def test_an_owner_is_recognised_by_both_attributes() -> None:
    """One attribute alone is compatible but no proof; a different one is neither."""
    device = ThingOwner(uuid4(), None)
    device_only = {"deviceId": str(device.device_id)}
    assert device.attributes == device_only | {"tenantId": str(NO_TENANT)}
    assert device.is_recorded_in(device.attributes | {"model": "MX-3"})
    assert (device.is_recorded_in(device_only), device.is_compatible_with(device_only)) == (False, True)
    assert not device.is_compatible_with(device.attributes | {"tenantId": str(uuid4())})
