"""A complete listing of the emulated account, to compare with the rows of a database."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from embedded.aws_client import aws_client

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Certificate:
    """A certificate and the policies attached to it."""

    arn: str
    status: str
    policies: tuple[str, ...]


@dataclass(frozen=True)
class Inventory:
    """Every resource of the bridge in an account."""

    things: dict[str, dict[str, str]] = field(default_factory=dict)
    """Attributes by Thing name."""
    certificates: dict[str, Certificate] = field(default_factory=dict)
    """By ARN."""
    attachments: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Certificate ARNs by Thing name."""
    secrets: dict[str, str] = field(default_factory=dict)
    """ARN by secret name."""


def take_inventory(endpoint_url: str) -> Inventory:
    """List all Things, certificates, attachments and secrets of the emulator at this endpoint."""
    iot, secrets = aws_client("iot", endpoint_url), aws_client("secretsmanager", endpoint_url)
    things = {thing["thingName"]: thing.get("attributes", {}) for thing in _all(iot, "list_things", "things")}
    certificates = {
        found["certificateArn"]: Certificate(
            arn=found["certificateArn"],
            status=found["status"],
            policies=tuple(
                policy["policyName"]
                for policy in iot.list_attached_policies(target=found["certificateArn"])["policies"]
            ),
        )
        for found in _all(iot, "list_certificates", "certificates")
    }
    return Inventory(
        things=things,
        certificates=certificates,
        attachments={name: tuple(iot.list_thing_principals(thingName=name)["principals"]) for name in things},
        secrets={found["Name"]: found["ARN"] for found in _all(secrets, "list_secrets", "SecretList")},
    )


def reported_status(endpoint_url: str, thing_name: str) -> str | None:
    """Return the status that a Thing's classic shadow reports, or None if it reports none."""
    try:
        response = aws_client("iot-data", endpoint_url).get_thing_shadow(thingName=thing_name)
    except ClientError:
        return None
    status = json.load(response["payload"])["state"].get("reported", {}).get("status")
    return str(status) if status is not None else None


def _all(client: Any, operation: str, member: str) -> Iterator[dict[str, Any]]:
    for page in client.get_paginator(operation).paginate():
        yield from page[member]
