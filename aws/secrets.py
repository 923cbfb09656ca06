"""Secrets that hold the private keys of devices: store, find without reading, and erase them."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypedDict
from uuid import UUID

from pydantic import SecretStr

from aws.clients import AwsClients
from aws.errors import AlreadyExistsError, InvalidRequestError, NotFoundError
from domain.failure import RetryLaterError
from domain.names import id_of_certificate

_CERTIFICATE_ID_TAG: Final = "certificateId"
_ARN_SUFFIX_LENGTH: Final = len("-AbCdEf")


class _Encryption(TypedDict, total=False):
    KmsKeyId: str


@dataclass(frozen=True)
class FoundSecret:
    """The description of a secret, without its value.

    The version id of a value names the key that it holds: the binding id for the first value, the certificate
    id for each later one.
    """

    arn: str
    current_version: str | None
    versions: frozenset[str]
    certificate_id_tag: str | None
    """The certificate of the first value, as a tag that is written in the same call."""

    def holds_key_of(self, certificate_arn: str, binding_id: UUID) -> bool:
        """Return True if the current value is the key of this certificate."""
        certificate_id = id_of_certificate(certificate_arn)
        if self.current_version == str(binding_id):
            return self.certificate_id_tag == certificate_id
        return self.current_version == certificate_id

    def was_written_for(self, binding_id: UUID, certificate_arn: str | None) -> bool:
        """Return True if a value was written for this binding or certificate, even if it is not current."""
        written = {str(binding_id)}
        if certificate_arn is not None:
            written.add(id_of_certificate(certificate_arn))
        return not written.isdisjoint(self.versions)


class Secrets:
    """The device secrets of the account and region. Private keys are stored nowhere else.

    Args:
        aws: the clients.
        name_template: the name of each secret, with the placeholder `{thingName}`.
        kms_key_id: the KMS key that encrypts new secrets; None for the account's default key.
    """

    def __init__(self, aws: AwsClients, *, name_template: str, kms_key_id: str | None) -> None:
        self._aws = aws
        self._name_template = name_template
        self._encryption: _Encryption = {"KmsKeyId": kms_key_id} if kms_key_id else {}

    def name_for(self, thing_name: str) -> str:
        """Return the name of a Thing's secret."""
        return self._name_template.replace("{thingName}", thing_name)

    def belongs_to(self, secret_arn: str, thing_name: str) -> bool:
        """Return True if an ARN has the name of the Thing's secret, before the suffix that AWS adds."""
        return secret_arn.rpartition(":secret:")[2][:-_ARN_SUFFIX_LENGTH] == self.name_for(thing_name)

    def find(self, thing_name: str) -> FoundSecret | None:
        """Return the Thing's secret; None if there is none, or if it is being deleted."""
        try:
            return self.find_replaceable(thing_name)
        except RetryLaterError:
            return None

    def find_replaceable(self, thing_name: str) -> FoundSecret | None:
        """Return the Thing's secret, to which a new key can be written; None if there is none.

        Raises:
            RetryLaterError: the secret is being deleted, and its name cannot be used yet.
        """
        try:
            found = self._aws.call(self._aws.secrets.describe_secret, SecretId=self.name_for(thing_name))
        except NotFoundError:
            return None
        if "DeletedDate" in found:
            raise _being_deleted(f"its deletion is scheduled for {found['DeletedDate']:%F}")
        stages = found.get("VersionIdsToStages", {})
        return FoundSecret(
            arn=found["ARN"],
            current_version=next(
                (version for version, labels in stages.items() if "AWSCURRENT" in labels), None
            ),
            versions=frozenset(stages),
            certificate_id_tag=next(
                (tag.get("Value") for tag in found.get("Tags", []) if tag.get("Key") == _CERTIFICATE_ID_TAG),
                None,
            ),
        )

    def store(self, thing_name: str, binding_id: UUID, certificate_arn: str, key: SecretStr) -> str:
        """Write a certificate's private key to the Thing's secret, and return the secret's ARN.

        Raises:
            RetryLaterError: a secret of this name is being deleted.
        """
        name, certificate_id = self.name_for(thing_name), id_of_certificate(certificate_arn)
        try:
            try:
                created = self._aws.call(
                    self._aws.secrets.create_secret,
                    Name=name,
                    ClientRequestToken=str(binding_id),
                    SecretString=key.get_secret_value(),
                    Tags=[{"Key": _CERTIFICATE_ID_TAG, "Value": certificate_id}],
                    **self._encryption,
                )
                return created["ARN"]
            except AlreadyExistsError:
                return self._replace(name, certificate_id, key)
        except InvalidRequestError as error:
            raise _being_deleted(error.message) from None

    def erase(self, secret_arn: str) -> None:
        """Delete a secret permanently, without a recovery window."""
        with suppress(NotFoundError):
            self._aws.call(
                self._aws.secrets.delete_secret, SecretId=secret_arn, ForceDeleteWithoutRecovery=True
            )

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
                "SecretBeingDeleted",
                f"the secret was deleted before the key was written: {error.message}",
                seconds=2,
            ) from None
        return stored["ARN"]


def _being_deleted(detail: str) -> RetryLaterError:
    return RetryLaterError(
        "SecretBeingDeleted",
        f"a secret of this name is still being deleted; if this lasts, restore or purge it: {detail}",
        seconds=10,
    )
