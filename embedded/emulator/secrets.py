"""Secrets Manager: the differences of ministack from AWS."""

import time
from collections.abc import Mapping
from typing import Any

from ministack.services import secretsmanager

from embedded.emulator.calls import SETTINGS, AwsError, Call, Forward, Response, difference

deleted_at: dict[tuple[str, str], float] = {}
"""When a secret was deleted by force, by region and name. Not saved: a restart takes longer."""


@difference("secretsmanager:CreateSecret")
async def create_secret(call: Call, forward: Forward) -> Response:
    """Make the token of the request the version id, and return the secret of a repeated request.

    Refuse the name of a secret that is scheduled for deletion, also for some time after a forced deletion.
    """
    name, token = call.parameters["Name"], call.parameters["ClientRequestToken"]
    existing = secretsmanager._secrets.get(name)
    ends = deleted_at.get((call.region, name), 0.0) + SETTINGS.secret_deletion_seconds
    if (existing and existing["DeletedDate"]) or (not existing and time.monotonic() < ends):
        scheduled = "a secret with this name is already scheduled for deletion"
        raise AwsError(400, "InvalidRequestException", f"You can't create this secret because {scheduled}.")
    if existing and _has_version(existing, call):
        return Response.of({"ARN": existing["ARN"], "Name": name, "VersionId": token})
    created = (await forward()).members
    versions = secretsmanager._secrets[name]["Versions"]
    versions[token] = versions.pop(created["VersionId"])
    return Response.of(created | {"VersionId": token})


@difference("secretsmanager:PutSecretValue")
async def put_secret_value(call: Call, forward: Forward) -> Response:
    """Ignore a repeated request, and refuse another value under the same token."""
    _, secret = secretsmanager._resolve(call.parameters["SecretId"])
    token = call.parameters["ClientRequestToken"]
    if not secret or secret["DeletedDate"] or token not in secret["Versions"]:
        return await forward()
    if not _has_version(secret, call):
        message = f"You can't use ClientRequestToken {token} because that value is already in use."
        raise AwsError(400, "ResourceExistsException", message)
    stages = secret["Versions"][token]["Stages"]
    found = {"ARN": secret["ARN"], "Name": secret["Name"]}
    return Response.of(found | {"VersionId": token, "VersionStages": stages})


@difference("secretsmanager:DeleteSecret")
async def delete_secret(call: Call, forward: Forward) -> Response:
    """Record a forced deletion, which succeeds also if there is no such secret."""
    secret_id = call.parameters["SecretId"]
    _, secret = secretsmanager._resolve(secret_id)
    forced = call.parameters.get("ForceDeleteWithoutRecovery")
    if forced and secret is None:
        return Response.of({"ARN": secret_id, "Name": secret_id, "DeletionDate": int(time.time())})
    if forced:
        deleted_at[call.region, secret["Name"]] = time.monotonic()
    return await forward()


def _has_version(secret: Mapping[str, Any], call: Call) -> bool:
    """Return whether the secret already has the version that the request creates."""
    version = secret["Versions"].get(call.parameters["ClientRequestToken"])
    return version is not None and version["SecretString"] == call.parameters.get("SecretString")
