"""The AWS IoT policy of the devices of the dev stack. In a real account the operator creates it."""

from __future__ import annotations

import json
from contextlib import suppress

from embedded import REGION
from embedded.aws_client import aws_client

_THING = "${iot:Connection.Thing.ThingName}"
_OWN_TOPICS = tuple(f"$aws/things/{_THING}/{channel}/*" for channel in ("shadow", "jobs"))


def create_device_policy(aws_endpoint_url: str, policy_name: str) -> None:
    """Create the policy unless it exists: a device may use only its own Thing, shadow and jobs."""
    iot = aws_client("iot", aws_endpoint_url)
    with suppress(iot.exceptions.ResourceAlreadyExistsException):
        iot.create_policy(policyName=policy_name, policyDocument=json.dumps(_document()))


def _document() -> dict[str, object]:
    def allow(action: str, resources: list[str]) -> dict[str, object]:
        return {"Effect": "Allow", "Action": action, "Resource": resources}

    topics = [f"arn:aws:iot:{REGION}:*:topic/{topic}" for topic in _OWN_TOPICS]
    filters = [f"arn:aws:iot:{REGION}:*:topicfilter/{topic}" for topic in _OWN_TOPICS]
    statements = [
        allow("iot:Connect", [f"arn:aws:iot:{REGION}:*:client/{_THING}"]),
        allow("iot:Publish", topics),
        allow("iot:Receive", topics),
        allow("iot:Subscribe", filters),
    ]
    return {"Version": "2012-10-17", "Statement": statements}
