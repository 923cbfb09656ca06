"""The operations of AWS Secrets Manager that moto implements differently."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from embedded.emulator.calls import AwsError, Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedded.emulator.account import Account, Difference, Forward
    from embedded.emulator.calls import Call


def create_secret(call: Call, account: Account, forward: Forward) -> Response:
    """Refuse the name of a secret that is scheduled for deletion, with the error of AWS."""
    _refuse_if_scheduled(
        call.parameters["Name"],
        call,
        account,
        "You can't create this secret because a secret with this name is already scheduled for deletion.",
    )
    return forward()


def put_secret_value(call: Call, account: Account, forward: Forward) -> Response:
    """Refuse a new value for a secret that is scheduled for deletion. Moto accepts it."""
    _refuse_if_scheduled(
        call.parameters["SecretId"],
        call,
        account,
        "You can't perform this operation on the secret because it was marked for deletion.",
    )
    return forward()


def describe_secret(_call: Call, _account: Account, forward: Forward) -> Response:
    """Return only the versions with a staging label. Moto returns all versions that ever existed."""
    response = forward()
    members = json.loads(response.body)
    if "VersionIdsToStages" in members:
        staged = {version: stages for version, stages in members["VersionIdsToStages"].items() if stages}
        members["VersionIdsToStages"] = staged
    return Response(response.status, json.dumps(members).encode(), response.headers)


def _refuse_if_scheduled(secret_id: str, call: Call, account: Account, message: str) -> None:
    secret = account.secrets(call.region).secrets.get(secret_id)
    if secret is not None and secret.is_deleted():
        raise AwsError(400, "InvalidRequestException", message)


DIFFERENCES: Mapping[str, Difference] = {
    "secretsmanager:CreateSecret": create_secret,
    "secretsmanager:PutSecretValue": put_secret_value,
    "secretsmanager:DescribeSecret": describe_secret,
}
