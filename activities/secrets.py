"""The secret that holds a device's private key: stored, recognised without being read, erased."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypedDict
from uuid import UUID

from pydantic import SecretStr
from temporalio import activity

from aws.clients import AwsClients
from aws.errors import AlreadyExistsError, InvalidRequestError, NotFoundError
from db.models import AwsThingBinding
from domain.failure import RetryLaterError
from domain.names import id_of_certificate
from domain.saga import TeardownPlan

_CERTIFICATE_ID_TAG: Final = "certificateId"
_ARN_SUFFIX_LENGTH: Final = len("-AbCdEf")


class _Encryption(TypedDict, total=False):
    KmsKeyId: str


@dataclass(frozen=True)
class FoundSecret:
    """What AWS says about a secret, its value left alone."""

    arn: str
    current_version: str | None
    versions: frozenset[str]
    certificate_id_tag: str | None

    def holds_key_of(self, certificate_arn: str | None, binding_id: UUID) -> bool:
        """Whether its current value is the key of that certificate.

        The version id tells: the certificate's own id, or for the first value the binding's, where the tag
        written in the same call names the certificate.
        """
        if certificate_arn is None:
            return False
        certificate_id = id_of_certificate(certificate_arn)
        if self.current_version == str(binding_id):
            return self.certificate_id_tag == certificate_id
        return self.current_version == certificate_id

    def was_written_for(self, binding: AwsThingBinding) -> bool:
        """Whether the bridge wrote it for this binding, whichever certificate it now holds the key of."""
        written = {str(binding.id)} | (
            {id_of_certificate(binding.certificate_arn)} if binding.certificate_arn else set()
        )
        return self.arn == binding.certificate_secret_arn or bool(written & self.versions)


class SecretActivities:
    """Where private keys go, and the only place they go to.

    Args:
        aws: the clients.
        name_template: the secrets' name, holding `{thingName}`.
        kms_key_id: the key that encrypts new secrets; None for the account's own.
    """

    def __init__(self, aws: AwsClients, *, name_template: str, kms_key_id: str | None) -> None:
        self._aws = aws
        self._name_template = name_template
        self._encryption: _Encryption = {"KmsKeyId": kms_key_id} if kms_key_id else {}

    def name_for(self, thing_name: str) -> str:
        """The name of a Thing's secret."""
        return self._name_template.replace("{thingName}", thing_name)

    def is_named_for(self, secret_arn: str, thing_name: str) -> bool:
        """Whether an ARN is that of the Thing's secret: its name, and the six characters AWS adds."""
        return secret_arn.rpartition(":secret:")[2][:-_ARN_SUFFIX_LENGTH] == self.name_for(thing_name)

    def find(self, thing_name: str, *, to_replace: bool = False) -> FoundSecret | None:
        """The Thing's secret, if there is one that is not being deleted.

        Raises:
            ApplicationError: retryable, while the one to be replaced is still being deleted.
        """
        try:
            found = self._aws.call(self._aws.secrets.describe_secret, SecretId=self.name_for(thing_name))
        except NotFoundError:
            return None
        if "DeletedDate" in found:
            if to_replace:
                raise _being_deleted(f"its deletion was asked for, and is due by {found['DeletedDate']:%F}")
            return None
        stages = found.get("VersionIdsToStages", {})
        return FoundSecret(
            arn=found["ARN"],
            current_version=next((version for version, at in stages.items() if "AWSCURRENT" in at), None),
            versions=frozenset(stages),
            certificate_id_tag=next(
                (tag.get("Value") for tag in found.get("Tags", []) if tag.get("Key") == _CERTIFICATE_ID_TAG),
                None,
            ),
        )

    def store(self, binding: AwsThingBinding, thing_name: str, certificate_arn: str, key: SecretStr) -> str:
        """Put a certificate's key where the Thing's key is kept, and return the secret's ARN.

        Raises:
            ApplicationError: retryable, while AWS is still deleting an earlier secret of that name.
        """
        name, certificate_id = self.name_for(thing_name), id_of_certificate(certificate_arn)
        try:
            try:
                created = self._aws.call(
                    self._aws.secrets.create_secret,
                    Name=name,
                    ClientRequestToken=str(binding.id),
                    SecretString=key.get_secret_value(),
                    Tags=[{"Key": _CERTIFICATE_ID_TAG, "Value": certificate_id}],
                    **self._encryption,
                )
                return created["ARN"]
            except AlreadyExistsError:
                return self._replace(name, certificate_id, key)
        except InvalidRequestError as error:
            raise _being_deleted(error.what) from None

    def _replace(self, name: str, certificate_id: str, key: SecretStr) -> str:
        try:
            stored = self._aws.call(
                self._aws.secrets.put_secret_value,
                SecretId=name,
                ClientRequestToken=certificate_id,
                SecretString=key.get_secret_value(),
            )
        except NotFoundError as error:
            raise RetryLaterError(
                "SecretBeingDeleted", f"it was there, and is gone: {error.what}", seconds=2
            ) from None
        return stored["ARN"]

    @activity.defn(name="erase_secret", no_thread_cancel_exception=True)
    def erase_secret(self, plan: TeardownPlan) -> None:
        """Delete the device's secrets for good, with no recovery window."""
        for arn in plan.secret_arns:
            self.erase(arn)

    def erase(self, secret_arn: str) -> None:
        """Delete a secret for good, with no recovery window."""
        with suppress(NotFoundError):
            self._aws.call(
                self._aws.secrets.delete_secret, SecretId=secret_arn, ForceDeleteWithoutRecovery=True
            )


def _being_deleted(what: str) -> RetryLaterError:
    return RetryLaterError(
        "SecretBeingDeleted",
        f"a secret of that name is still being deleted, restore or purge it if that is not passing: {what}",
        seconds=10,
    )
