"""Certificates: issue, attach, activate, revoke and delete them, where each call can be repeated.

They run on moto in this process. A detachment that AWS has not completed is tested on the emulator, in
tests/workflows/test_decommission.py: moto completes each at once.
"""

from uuid import uuid4

import pytest

from aws.certificates import Certificates
from aws.clients import AwsClients
from aws.errors import NotFoundError
from domain.failure import FailureCode, PermanentError
from domain.names import id_of_certificate


@pytest.fixture
def aws(moto_aws: AwsClients) -> AwsClients:
    return moto_aws


@pytest.fixture
def policy_name(aws: AwsClients) -> str:
    name = f"policy-{uuid4().hex}"
    aws.iot.create_policy(policyName=name, policyDocument="{}")
    return name


@pytest.fixture
def certificates(aws: AwsClients, policy_name: str) -> Certificates:
    return Certificates(aws, policy_name=policy_name)


@pytest.fixture
def thing_name(aws: AwsClients) -> str:
    name = f"thing-{uuid4().hex}"
    aws.iot.create_thing(thingName=name)
    return name


def status(aws: AwsClients, arn: str) -> str:
    described = aws.iot.describe_certificate(certificateId=id_of_certificate(arn))
    return described["certificateDescription"]["status"]


def assert_missing(aws: AwsClients, arn: str) -> None:
    with pytest.raises(NotFoundError):
        aws.call(aws.iot.describe_certificate, certificateId=id_of_certificate(arn))


def test_a_certificate_is_issued_inactive_with_a_hidden_key(
    certificates: Certificates, aws: AwsClients
) -> None:
    """The key is in the result, but not in its representation."""
    issued = certificates.issue()
    assert status(aws, issued.arn) == "INACTIVE"
    assert "PRIVATE KEY" in issued.private_key.get_secret_value()
    assert "PRIVATE KEY" not in repr(issued)


def test_attachment_and_activation_can_be_repeated(
    certificates: Certificates, aws: AwsClients, thing_name: str, policy_name: str
) -> None:
    """After two rounds there is one policy and one Thing, and the certificate is active."""
    arn = certificates.issue().arn
    for _ in range(2):
        certificates.attach_policy(arn)
        certificates.attach(arn, thing_name)
        certificates.activate(arn)
    policies = aws.iot.list_attached_policies(target=arn)["policies"]
    assert [policy["policyName"] for policy in policies] == [policy_name]
    assert certificates.things_of(arn) == [thing_name]
    assert status(aws, arn) == "ACTIVE"


def test_the_revocation_of_a_certificate_can_be_repeated(
    certificates: Certificates, aws: AwsClients, thing_name: str
) -> None:
    """The certificate is deleted with its attachments, and a second revocation succeeds."""
    arn = certificates.issue().arn
    certificates.attach_policy(arn)
    certificates.attach(arn, thing_name)
    certificates.activate(arn)
    for _ in range(2):
        certificates.revoke([arn], thing_name=thing_name, disconnect=True)
    assert_missing(aws, arn)
    assert aws.iot.list_thing_principals(thingName=thing_name)["principals"] == []


def test_a_shared_certificate_is_only_detached(
    certificates: Certificates, aws: AwsClients, thing_name: str
) -> None:
    """A certificate that another Thing uses stays active there."""
    arn, other = certificates.issue().arn, f"thing-{uuid4().hex}"
    aws.iot.create_thing(thingName=other)
    certificates.attach(arn, thing_name)
    assert not certificates.is_shared(arn, thing_name)
    certificates.attach(arn, other)
    certificates.activate(arn)
    assert certificates.is_shared(arn, thing_name)
    certificates.revoke([], thing_name=thing_name, shared_arns=[arn])
    assert certificates.things_of(arn) == [other]
    assert status(aws, arn) == "ACTIVE"


def test_an_attachment_names_what_is_missing(
    certificates: Certificates, aws: AwsClients, thing_name: str, policy_name: str
) -> None:
    """A missing Thing, certificate and policy lead to different failure codes."""
    arn = certificates.issue().arn
    with pytest.raises(PermanentError) as no_thing:
        certificates.attach(arn, f"thing-{uuid4().hex}")
    aws.iot.delete_policy(policyName=policy_name)
    with pytest.raises(PermanentError) as no_policy:
        certificates.attach_policy(arn)
    certificates.delete(arn)
    with pytest.raises(PermanentError) as no_certificate:
        certificates.attach(arn, thing_name)
    with pytest.raises(PermanentError) as not_activated:
        certificates.activate(arn)
    raised = [each.value.code for each in (no_thing, no_policy, no_certificate, not_activated)]
    assert raised == [
        FailureCode.THING_GONE,
        FailureCode.POLICY_NOT_FOUND,
        FailureCode.CERTIFICATE_GONE,
        FailureCode.CERTIFICATE_GONE,
    ]


def test_the_deletion_of_a_missing_certificate_succeeds(certificates: Certificates, aws: AwsClients) -> None:
    """A repeated deletion and a deactivation after it have no effect."""
    arn = certificates.issue().arn
    certificates.delete(arn)
    certificates.delete(arn)
    certificates.deactivate(arn)
    assert_missing(aws, arn)
