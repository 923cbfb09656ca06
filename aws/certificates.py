"""X.509 certificates of devices: issue, attach, activate, revoke and delete them."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pydantic import SecretStr

from aws.clients import AwsClients
from aws.errors import AwsError, NotFoundError
from domain.failure import FailureCode, PermanentError
from domain.names import id_of_certificate

logger = logging.getLogger("thingbridge.certificates")


@dataclass(frozen=True)
class IssuedCertificate:
    """A new certificate, with the only copy of its private key."""

    arn: str
    private_key: SecretStr


class Certificates:
    """The device certificates of the account and region.

    Args:
        aws: the clients.
        policy_name: the IoT policy that grants devices their permissions.
    """

    def __init__(self, aws: AwsClients, *, policy_name: str) -> None:
        self._aws = aws
        self._policy_name = policy_name

    def issue(self) -> IssuedCertificate:
        """Create a certificate, inactive, with a key pair. AWS returns the private key only here."""
        issued = self._aws.call(self._aws.iot.create_keys_and_certificate, setAsActive=False)
        return IssuedCertificate(issued["certificateArn"], SecretStr(issued["keyPair"]["PrivateKey"]))

    def delete(self, arn: str) -> None:
        """Deactivate a certificate, detach all its policies, and delete it.

        Raises:
            ConflictError: a Thing is attached, or AWS has not completed its detachment; retryable.
        """
        self.deactivate(arn)
        self._delete_inactive(arn)

    def activate(self, arn: str) -> None:
        """Allow a certificate to connect.

        Raises:
            PermanentError: there is no such certificate.
        """
        try:
            self._set_status(arn, "ACTIVE")
        except NotFoundError as error:
            raise PermanentError(FailureCode.CERTIFICATE_GONE, error.message) from None

    def deactivate(self, arn: str) -> None:
        """Forbid a certificate to connect."""
        with suppress(NotFoundError):
            self._set_status(arn, "INACTIVE")

    def attach_policy(self, arn: str) -> None:
        """Attach the device policy to a certificate.

        Raises:
            PermanentError: there is no such policy, or no such certificate.
        """
        try:
            self._aws.call(self._aws.iot.attach_policy, policyName=self._policy_name, target=arn)
        except NotFoundError as error:
            raise self._missing_for_policy(error) from None

    def attach(self, arn: str, thing_name: str) -> None:
        """Attach a certificate to a Thing.

        Raises:
            PermanentError: there is no such Thing, or no such certificate.
        """
        try:
            self._aws.call(self._aws.iot.attach_thing_principal, thingName=thing_name, principal=arn)
        except NotFoundError as error:
            raise self._missing_for_thing(thing_name, error) from None

    def detach(self, arn: str, thing_name: str) -> None:
        """Detach a certificate from a Thing. AWS completes this some seconds later."""
        with suppress(NotFoundError):
            self._aws.call(self._aws.iot.detach_thing_principal, thingName=thing_name, principal=arn)

    def revoke(
        self,
        arns: Sequence[str],
        *,
        thing_name: str | None,
        shared_arns: Sequence[str] = (),
        disconnect: bool = False,
    ) -> AwsError | None:
        """Revoke a Thing's certificates: deactivate, detach and delete them.

        Args:
            arns: the certificates that only this Thing uses.
            thing_name: the Thing that they are attached to; None if there is none.
            shared_arns: certificates that other Things use too; they are only detached.
            disconnect: also close the connection of the device that uses the Thing's name.

        Returns:
            The error of the disconnection, which prevents nothing else; None if there was none.

        Raises:
            ConflictError: AWS has not completed a detachment; retryable.
        """
        disconnection_error = None
        for arn in arns:
            self.deactivate(arn)
        if thing_name is not None:
            # Before the disconnection: a device connects again at once if it has a usable certificate.
            for arn in shared_arns:
                self.detach(arn, thing_name)
            if disconnect:
                disconnection_error = self.disconnect(thing_name)
            # Also from a Thing that now belongs to another device: an attached certificate cannot be deleted.
            for arn in arns:
                self.detach(arn, thing_name)
        for arn in arns:
            self._delete_inactive(arn)
        return disconnection_error

    def disconnect(self, thing_name: str) -> AwsError | None:
        """Close the MQTT connection whose client id is the Thing name, and remove its session.

        An error is logged and returned, not raised, because the connection of a deactivated certificate ends
        without this call too, but only after minutes.
        """
        try:
            self._aws.call(self._aws.iot_data.delete_connection, clientId=thing_name, cleanSession=True)
        except NotFoundError:
            return None
        except AwsError as error:
            logger.warning("device not disconnected: %s", error, extra={"thing_name": thing_name})
            return error
        return None

    def things_of(self, arn: str) -> list[str] | None:
        """Return the names of the Things a certificate is attached to; None if it does not exist."""
        pages = self._aws.iot.get_paginator("list_principal_things").paginate(principal=arn)
        try:
            return [thing for page in self._aws.pages(pages) for thing in page.get("things", [])]
        except NotFoundError:
            return None

    def is_shared(self, arn: str, thing_name: str | None) -> bool:
        """Return True if a certificate is attached to other Things than this one."""
        return any(thing != thing_name for thing in self.things_of(arn) or [])

    def _set_status(self, arn: str, status: Literal["ACTIVE", "INACTIVE"]) -> None:
        self._aws.call(
            self._aws.iot.update_certificate, certificateId=id_of_certificate(arn), newStatus=status
        )

    def _delete_inactive(self, arn: str) -> None:
        for policy_name in self._policies_of(arn):
            with suppress(NotFoundError):
                self._aws.call(self._aws.iot.detach_policy, policyName=policy_name, target=arn)
        with suppress(NotFoundError):
            self._aws.call(
                self._aws.iot.delete_certificate, certificateId=id_of_certificate(arn), forceDelete=True
            )

    def _policies_of(self, arn: str) -> list[str]:
        pages = self._aws.iot.get_paginator("list_attached_policies").paginate(target=arn)
        try:
            return [
                policy["policyName"] for page in self._aws.pages(pages) for policy in page.get("policies", [])
            ]
        except NotFoundError:
            return []

    def _missing_for_policy(self, error: NotFoundError) -> PermanentError:
        try:
            self._aws.call(self._aws.iot.get_policy, policyName=self._policy_name)
        except NotFoundError:
            return PermanentError(
                FailureCode.POLICY_NOT_FOUND,
                f"there is no IoT policy {self._policy_name} in this account and region",
            )
        return PermanentError(FailureCode.CERTIFICATE_GONE, error.message)

    def _missing_for_thing(self, thing_name: str, error: NotFoundError) -> PermanentError:
        try:
            self._aws.call(self._aws.iot.describe_thing, thingName=thing_name)
        except NotFoundError:
            return PermanentError(FailureCode.THING_GONE, f"there is no Thing {thing_name}")
        return PermanentError(FailureCode.CERTIFICATE_GONE, error.message)
