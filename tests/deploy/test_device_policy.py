"""The device policy of deploy/terraform limits a device to its own Thing, on real MQTT connections.

Each refusal is compared with the same action on the device's own Thing, which must be allowed.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from awscrt.mqtt5 import ConnectReasonCode, PubackReasonCode, SubackReasonCode

from aws.clients import AwsClients
from domain.names import thing_name
from embedded import ACCOUNT, REGION
from embedded.policy import device_policy
from embedded.stack import Addresses
from tests.deploy.test_terraform import FOLDER, document, fixed_statements
from tests.harness.mqtt import DeviceIdentity, MqttDevice, RefusedError

PUBLISHED: Final = (
    "shadow/get",
    "shadow/update",
    "shadow/name/config/get",
    "shadow/name/config/update",
    "jobs/get",
    "jobs/start-next",
    "jobs/job-1/get",
    "jobs/$next/get",
    "jobs/job-1/update",
)
SUBSCRIBED: Final = (
    "shadow/update/delta",
    "shadow/name/+/update/delta",
    "shadow/#",
    "jobs/notify-next",
    "jobs/+/update/accepted",
    "jobs/#",
)


def rendered(statements: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON policy that Terraform makes of the statements of an aws_iam_policy_document."""

    def text(value: str) -> str:
        return value.replace("${local.iot}", f"arn:aws:iot:{REGION}:{ACCOUNT}").replace("&{", "${")

    def one_or_many(values: list[str]) -> str | list[str]:
        found = [text(value) for value in values]
        return found[0] if len(found) == 1 else found

    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": each["sid"],
                "Effect": each.get("effect", "Allow"),
                "Action": one_or_many(each["actions"]),
                "Resource": one_or_many(each["resources"]),
            }
            | (
                {
                    "Condition": {
                        condition["test"]: {condition["variable"]: one_or_many(condition["values"])}
                        for condition in each["condition"]
                    }
                }
                if "condition" in each
                else {}
            )
            for each in statements
        ],
    }


TERRAFORM_POLICY: Final = rendered(fixed_statements(document(FOLDER, "device")))


@dataclass(frozen=True)
class ConnectableDevice:
    """A device with an active certificate that has the device policy."""

    thing_name: str
    certificate_arn: str
    identity: DeviceIdentity

    def topic(self, name: str) -> str:
        return f"$aws/things/{self.thing_name}/{name}"


class Account:
    """The emulated account, in which devices are created without the bridge."""

    def __init__(self, stack: Addresses, aws: AwsClients) -> None:
        self.stack = stack
        self.iot = aws.iot
        self.shadows = aws.iot_data
        self.policy_name = self.create_policy(TERRAFORM_POLICY)

    def create_policy(self, policy: dict[str, Any]) -> str:
        name = f"policy-{uuid4().hex}"
        self.iot.create_policy(policyName=name, policyDocument=json.dumps(policy))
        return name

    def create_device(
        self, tenant_id: UUID, serial_number: str, *, attached: bool = True
    ) -> ConnectableDevice:
        """Create a Thing and a certificate, attached to each other unless `attached` is false."""
        name = thing_name(tenant_id, serial_number)
        self.iot.create_thing(thingName=name)
        issued = self.iot.create_keys_and_certificate(setAsActive=True)
        device = ConnectableDevice(
            name,
            issued["certificateArn"],
            DeviceIdentity(issued["certificatePem"], issued["keyPair"]["PrivateKey"]),
        )
        self.iot.attach_policy(policyName=self.policy_name, target=device.certificate_arn)
        if attached:
            self.attach(device)
        return device

    def attach(self, device: ConnectableDevice) -> None:
        self.iot.attach_thing_principal(thingName=device.thing_name, principal=device.certificate_arn)

    def connect(self, device: ConnectableDevice, client_id: str | None = None) -> MqttDevice:
        return MqttDevice(self.stack, device.identity, client_id or device.thing_name)


@pytest.fixture(scope="module")
def account(stack: Addresses, aws: AwsClients) -> Account:
    return Account(stack, aws)


@pytest.fixture(scope="module")
def own(account: Account) -> ConnectableDevice:
    return account.create_device(uuid4(), "OWN-1")


@pytest.fixture(scope="module", params=["another tenant", "its own tenant"])
def other(request: pytest.FixtureRequest, account: Account, own: ConnectableDevice) -> ConnectableDevice:
    """Another device, of another tenant or of the same tenant."""
    own_tenant = UUID(own.thing_name[1:33])
    return account.create_device(uuid4() if request.param == "another tenant" else own_tenant, "OTHER-1")


@pytest.fixture
def connected(account: Account, own: ConnectableDevice) -> Iterator[MqttDevice]:
    """The device, connected under the policy."""
    with account.connect(own) as device:
        yield device


@contextmanager
def refused_by_policy() -> Iterator[None]:
    """Expect that the broker refuses the connection because of the policy, not because of the certificate."""
    with pytest.raises(RefusedError) as refused:
        yield
    assert refused.value.reason is ConnectReasonCode.NOT_AUTHORIZED


def test_the_dev_stack_has_the_policy_of_terraform() -> None:
    """Dev, demo and the tests run under the permissions that devices have in production."""
    assert device_policy() == TERRAFORM_POLICY


def test_a_device_cannot_connect_as_another_thing(
    account: Account, own: ConnectableDevice, other: ConnectableDevice
) -> None:
    """Its certificate is accepted with the client id of its own Thing only."""
    with refused_by_policy(), account.connect(own, client_id=other.thing_name):
        pass
    with account.connect(own) as device:
        assert device.connections == 1


@pytest.mark.parametrize("client_id", ["console", "*", "${iot:Connection.Thing.ThingName}"])
def test_a_device_cannot_connect_under_a_name_that_is_no_thing(
    account: Account, own: ConnectableDevice, client_id: str
) -> None:
    """A client id without a Thing matches no resource of the policy, also if it looks like one of them."""
    with refused_by_policy(), account.connect(own, client_id=client_id):
        pass


def test_a_certificate_connects_only_while_it_is_attached_to_the_thing(account: Account) -> None:
    """An active certificate with the policy is refused until it is attached."""
    device = account.create_device(uuid4(), "ATTACHED-LATER-1", attached=False)
    with refused_by_policy(), account.connect(device):
        pass
    account.attach(device)
    with account.connect(device) as connected:
        assert connected.connections == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_device_publishes_to_its_own_thing_only(
    connected: MqttDevice, own: ConnectableDevice, other: ConnectableDevice, name: str
) -> None:
    """Each topic of its shadows and jobs is allowed, and the same topic of another device is not."""
    assert connected.publish(own.topic(name)) is PubackReasonCode.SUCCESS
    assert connected.publish(other.topic(name)) is PubackReasonCode.NOT_AUTHORIZED


def test_a_refused_report_does_not_change_the_shadow_of_another_device(
    account: Account, connected: MqttDevice, own: ConnectableDevice, other: ConnectableDevice
) -> None:
    """The report of its own state is in its shadow; the other device has none."""
    report = json.dumps({"state": {"reported": {"hacked": True}}})
    for device in (own, other):
        connected.publish(device.topic("shadow/update"), report)
    shadow = json.load(account.shadows.get_thing_shadow(thingName=own.thing_name)["payload"])
    assert shadow["state"]["reported"] == {"hacked": True}
    with pytest.raises(account.shadows.exceptions.ResourceNotFoundException):
        account.shadows.get_thing_shadow(thingName=other.thing_name)


@pytest.mark.parametrize("topic", ["telemetry", "$aws/rules/ingest/telemetry", "$aws/things/x"])
def test_a_device_publishes_to_no_further_topic(connected: MqttDevice, topic: str) -> None:
    """The policy names the topics of shadows and jobs, and the device uses no others."""
    assert connected.publish(topic) is PubackReasonCode.NOT_AUTHORIZED


@pytest.mark.parametrize("name", SUBSCRIBED)
def test_a_device_subscribes_to_its_own_thing_only(
    connected: MqttDevice, own: ConnectableDevice, other: ConnectableDevice, name: str
) -> None:
    """Each filter within its shadows and jobs is granted, and the same filter of another device is not."""
    assert connected.subscribe(own.topic(name), other.topic(name)) == [
        SubackReasonCode.GRANTED_QOS_1,
        SubackReasonCode.NOT_AUTHORIZED,
    ]


@pytest.mark.parametrize(
    "topic_filter",
    [
        "#",
        "+/things/#",
        "$aws/things/+/shadow/#",
        "$aws/things/+/jobs/notify",
        "$aws/things/#",
        "$aws/events/#",
        "$share/group/$aws/things/+/shadow/#",
    ],
)
def test_a_wildcard_does_not_reach_other_things(connected: MqttDevice, topic_filter: str) -> None:
    """A filter that matches topics of several Things is refused, also if its own Thing is one of them."""
    assert connected.subscribe(topic_filter) == [SubackReasonCode.NOT_AUTHORIZED]


def test_a_device_receives_only_messages_of_its_own_thing(account: Account) -> None:
    """With a further policy that grants every subscription, messages of another Thing still do not arrive."""
    device, other = account.create_device(uuid4(), "OWN-2"), account.create_device(uuid4(), "OTHER-2")
    subscribe = {"Effect": "Allow", "Action": "iot:Subscribe", "Resource": "*"}
    lax = account.create_policy({"Version": "2012-10-17", "Statement": [subscribe]})
    account.iot.attach_policy(policyName=lax, target=device.certificate_arn)
    with account.connect(device) as connected:
        granted = connected.subscribe("$aws/things/+/shadow/update/accepted")
        assert granted == [SubackReasonCode.GRANTED_QOS_1]
        # In this order: a message of the other Thing would arrive first.
        for each in (other, device):
            account.shadows.update_thing_shadow(
                thingName=each.thing_name, payload='{"state": {"desired": {"a": 1}}}'
            )
        assert connected.receive().topic == device.topic("shadow/update/accepted")
