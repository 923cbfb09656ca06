"""Secrets, where AWS Secrets Manager behaves otherwise than moto's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from embedded.emulator.calls import Answer, AwsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedded.emulator.account import Account, Difference, Forward
    from embedded.emulator.calls import Call


def create_secret(call: Call, account: Account, forward: Forward) -> Answer:
    """AWS keeps the name of a secret that is scheduled for deletion, with an error of its own."""
    _refuse_if_scheduled(
        call.parameters["Name"],
        call,
        account,
        "You can't create this secret because a secret with this name is already scheduled for deletion.",
    )
    return forward()


def put_secret_value(call: Call, account: Account, forward: Forward) -> Answer:
    """AWS gives no new value to a secret that is scheduled for deletion; moto does."""
    _refuse_if_scheduled(
        call.parameters["SecretId"],
        call,
        account,
        "You can't perform this operation on the secret because it was marked for deletion.",
    )
    return forward()


def describe_secret(_call: Call, _account: Account, forward: Forward) -> Answer:
    """AWS tells of the versions that carry a staging label; moto of every one there ever was."""
    answer = forward()
    told = json.loads(answer.body)
    if "VersionIdsToStages" in told:
        staged = {version: stages for version, stages in told["VersionIdsToStages"].items() if stages}
        told["VersionIdsToStages"] = staged
    return Answer(answer.status, json.dumps(told).encode(), answer.headers)


def _refuse_if_scheduled(secret_id: str, call: Call, account: Account, message: str) -> None:
    secret = account.secrets(call.region).secrets.get(secret_id)
    if secret is not None and secret.is_deleted():
        raise AwsError(400, "InvalidRequestException", message)


DIFFERENCES: Mapping[str, Difference] = {
    "secretsmanager:CreateSecret": create_secret,
    "secretsmanager:PutSecretValue": put_secret_value,
    "secretsmanager:DescribeSecret": describe_secret,
}
