"""The AWS IoT policy of the devices of the dev stack: the same as deploy/terraform creates in production."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Final

from embedded import ACCOUNT, REGION
from embedded.aws_client import aws_client

_IOT: Final = f"arn:aws:iot:{REGION}:{ACCOUNT}"
_THING: Final = "${iot:Connection.Thing.ThingName}"
_OWN_TOPICS: Final = f"$aws/things/{_THING}"


def create_device_policy(aws_endpoint_url: str, policy_name: str) -> None:
    """Create the policy unless it exists."""
    iot = aws_client("iot", aws_endpoint_url)
    with suppress(iot.exceptions.ResourceAlreadyExistsException):
        iot.create_policy(policyName=policy_name, policyDocument=json.dumps(device_policy()))


def device_policy() -> dict[str, object]:
    """Return the policy document: a device connects as its own Thing, and uses its shadows and jobs.

    The comments in deploy/terraform/device_policy.tf give the reasons. A test compares the two.
    """

    def topics(kind: str, *names: str) -> list[str]:
        return [f"{_IOT}:{kind}/{_OWN_TOPICS}/{name}" for name in names]

    connect = {
        "Sid": "ConnectAsItself",
        "Effect": "Allow",
        "Action": "iot:Connect",
        "Resource": f"{_IOT}:client/{_THING}",
        "Condition": {"Bool": {"iot:Connection.Thing.IsAttached": "true"}},
    }
    publish = {
        "Sid": "Publish",
        "Effect": "Allow",
        "Action": "iot:Publish",
        "Resource": topics(
            "topic",
            "shadow/get",
            "shadow/update",
            "shadow/name/*/get",
            "shadow/name/*/update",
            "jobs/get",
            "jobs/start-next",
            "jobs/*/get",
            "jobs/*/update",
        ),
    }
    subscribe = {
        "Sid": "Subscribe",
        "Effect": "Allow",
        "Action": "iot:Subscribe",
        "Resource": topics("topicfilter", "shadow/*", "jobs/*"),
    }
    receive = {
        "Sid": "Receive",
        "Effect": "Allow",
        "Action": "iot:Receive",
        "Resource": topics("topic", "shadow/*", "jobs/*"),
    }
    return {"Version": "2012-10-17", "Statement": [connect, publish, subscribe, receive]}
