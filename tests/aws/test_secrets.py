"""Secrets: store, find and erase the key of a Thing, where each call can be repeated.

They run on the emulator: moto lets a key be written to a secret that is being deleted.
"""

from uuid import uuid4

import pytest
from pydantic import SecretStr

from aws.clients import AwsClients
from aws.secrets import Secrets
from domain.failure import RetryLaterError

KEY = SecretStr("a private key")


@pytest.fixture
def secrets(aws: AwsClients) -> Secrets:
    return Secrets(aws, name_template="test/{thingName}/key", kms_key_id=None)


@pytest.fixture
def thing_name() -> str:
    return f"thing-{uuid4().hex}"


def certificate_arn() -> str:
    return f"arn:aws:iot:eu-west-1:123456789012:cert/{uuid4().hex * 2}"


def test_a_stored_key_is_found_by_its_certificate(secrets: Secrets, thing_name: str) -> None:
    """The description identifies the certificate and the binding of the key, and no others."""
    binding_id, certificate = uuid4(), certificate_arn()
    arn = secrets.store(thing_name, binding_id, certificate, KEY)
    found = secrets.find(thing_name)
    assert found is not None
    assert found.arn == arn
    assert secrets.belongs_to(arn, thing_name)
    assert not secrets.belongs_to(arn, "another")
    assert found.holds_key_of(certificate, binding_id)
    assert not found.holds_key_of(certificate_arn(), binding_id)
    assert found.was_written_for(binding_id, None)
    assert not found.was_written_for(uuid4(), certificate_arn())


def test_a_later_key_replaces_the_first_one(secrets: Secrets, thing_name: str) -> None:
    """The secret stays the same, and holds the key of the later certificate."""
    binding_id, first, later = uuid4(), certificate_arn(), certificate_arn()
    arn = secrets.store(thing_name, binding_id, first, KEY)
    assert secrets.store(thing_name, binding_id, later, SecretStr("a later key")) == arn
    found = secrets.find(thing_name)
    assert found is not None
    assert found.holds_key_of(later, binding_id)
    assert not found.holds_key_of(first, binding_id)
    assert found.was_written_for(uuid4(), later)


def test_a_secret_being_deleted_is_retried(secrets: Secrets, thing_name: str, aws: AwsClients) -> None:
    """Its name cannot be used, so both a search for a replacement and a write must wait."""
    arn = secrets.store(thing_name, uuid4(), certificate_arn(), KEY)
    aws.secrets.delete_secret(SecretId=arn, RecoveryWindowInDays=7)
    assert secrets.find(thing_name) is None
    with pytest.raises(RetryLaterError, match="its deletion is scheduled for"):
        secrets.find_replaceable(thing_name)
    with pytest.raises(RetryLaterError) as raised:
        secrets.store(thing_name, uuid4(), certificate_arn(), KEY)
    assert raised.value.kind == "SecretBeingDeleted"


def test_the_erasure_of_a_missing_secret_succeeds(secrets: Secrets, thing_name: str) -> None:
    """A repeated erasure has no effect."""
    arn = secrets.store(thing_name, uuid4(), certificate_arn(), KEY)
    secrets.erase(arn)
    secrets.erase(arn)
    assert secrets.find_replaceable(thing_name) is None
