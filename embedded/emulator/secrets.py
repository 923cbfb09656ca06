"""Secrets Manager: the differences of ministack from AWS."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ministack.services import secretsmanager

from embedded.emulator.calls import AwsError, Response
from embedded.emulator.settings import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedded.emulator.calls import Call, Difference, Forward

_deleted_at: dict[tuple[str, str], float] = {}
"""When a secret was deleted by force, by region and name. A restart takes longer than the deletion."""


async def create_secret(call: Call, forward: Forward) -> Response:
    """Make the token of the request the version id, and return the secret of a repeated request.

    Refuse the name of a secret that is scheduled for deletion, also for some time after a forced deletion.
    """
    name, token = call.parameters["Name"], call.parameters["ClientRequestToken"]
    deleted_at = _deleted_at.get((call.region, name))
    pending = deleted_at is not None and time.monotonic() < deleted_at + SETTINGS.secret_deletion_seconds
    existing = secretsmanager._secrets.get(name)
    if pending or (existing and existing["DeletedDate"]):
        message = "You can't create this secret because a secret with this name is already scheduled for deletion."
        raise AwsError(400, "InvalidRequestException", message)
    if existing and _is_repeated(call, existing):
        return Response.of({"ARN": existing["ARN"], "Name": name, "VersionId": token})
    response = await forward()
    if not response.is_success:
        return response
    secret = secretsmanager._secrets[name]
    secret["Versions"][token] = secret["Versions"].pop(response.members["VersionId"])
    return Response.of(response.members | {"VersionId": token})


async def put_secret_value(call: Call, forward: Forward) -> Response:
    """Ignore a repeated request, and refuse another value under the same token."""
    _, secret = secretsmanager._resolve(call.parameters["SecretId"])
    token = call.parameters["ClientRequestToken"]
    if secret and not secret["DeletedDate"] and token in secret["Versions"]:
        if not _is_repeated(call, secret):
            message = f"You can't use ClientRequestToken {token} because that value is already in use for a version."
            raise AwsError(400, "ResourceExistsException", message)
        stages = secret["Versions"][token]["Stages"]
        members = {"ARN": secret["ARN"], "Name": secret["Name"], "VersionId": token, "VersionStages": stages}
        return Response.of(members)
    return await forward()


async def delete_secret(call: Call, forward: Forward) -> Response:
    """Record a forced deletion. It succeeds also if there is no such secret."""
    _, secret = secretsmanager._resolve(call.parameters["SecretId"])
    force = call.parameters.get("ForceDeleteWithoutRecovery", False)
    if secret is None and force:
        name = call.parameters["SecretId"]
        return Response.of({"ARN": name, "Name": name, "DeletionDate": int(time.time())})
    response = await forward()
    if response.is_success and force:
        _deleted_at[call.region, secret["Name"]] = time.monotonic()
    return response


def forget_deletions() -> None:
    """Forget the deletions that are pending."""
    _deleted_at.clear()


def _is_repeated(call: Call, secret: Mapping[str, Any]) -> bool:
    """Return whether the secret already has the version that the request creates."""
    version = secret["Versions"].get(call.parameters["ClientRequestToken"])
    return version is not None and version["SecretString"] == call.parameters.get("SecretString")


DIFFERENCES: Mapping[str, Difference] = {
    "secretsmanager:CreateSecret": create_secret,
    "secretsmanager:PutSecretValue": put_secret_value,
    "secretsmanager:DeleteSecret": delete_secret,
}
