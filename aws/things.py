"""IoT Things: create, adopt, describe and delete them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from aws.clients import AwsClients
from aws.errors import AlreadyExistsError, ConflictError, NotFoundError
from domain.failure import FailureCode, PermanentError
from domain.names import DEVICE_ID_THING_ATTRIBUTE, TENANT_ID_THING_ATTRIBUTE, tenant_key

# AWS's limit for a Thing without a Thing type.
_ATTRIBUTE_LIMIT: Final = 3
_CERTIFICATE_ARN_PART: Final = ":cert/"


@dataclass(frozen=True)
class ThingOwner:
    """The device that a Thing belongs to. Two attributes of the Thing record it."""

    device_id: UUID
    tenant_id: UUID | None

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes that record this owner."""
        return {
            DEVICE_ID_THING_ATTRIBUTE: str(self.device_id),
            TENANT_ID_THING_ATTRIBUTE: tenant_key(self.tenant_id),
        }

    def is_recorded_in(self, attributes: Mapping[str, str]) -> bool:
        """Return True if the attributes of a Thing record this owner completely."""
        return self.attributes.items() <= attributes.items()

    def is_compatible_with(self, attributes: Mapping[str, str]) -> bool:
        """Return True if the attributes of a Thing record no other owner; they may record none."""
        return all(attributes.get(key, value) == value for key, value in self.attributes.items())


class Things:
    """The Things of the account and region."""

    def __init__(self, aws: AwsClients) -> None:
        self._aws = aws

    def ensure(self, name: str, owner: ThingOwner, *, known_certificate_arn: str | None) -> str:
        """Create a Thing, or adopt the one that has the name, and return its ARN.

        A Thing is adopted if its attributes record no other owner and it has no unknown certificate.
        Otherwise it is not changed.

        Args:
            name: the Thing name.
            owner: the device that the Thing is for.
            known_certificate_arn: the certificate that may already be attached to the Thing.

        Raises:
            PermanentError: the Thing belongs to another device, has an unknown certificate, or has no room
                for the owner's attributes.
            ConflictError: the Thing was created, changed or deleted at the same time; retryable.
        """
        return self._adopt(name, owner, known_certificate_arn) or self._create(name, owner)

    def delete(self, name: str) -> None:
        """Delete a Thing, but neither its shadows nor its jobs.

        Raises:
            InvalidRequestError: a certificate is attached, or AWS has not completed its detachment.
        """
        with suppress(NotFoundError):
            self._aws.call(self._aws.iot.delete_thing, thingName=name)

    def attributes_of(self, name: str) -> Mapping[str, str] | None:
        """Return the attributes of a Thing; None if there is no such Thing."""
        try:
            return self._aws.call(self._aws.iot.describe_thing, thingName=name).get("attributes", {})
        except NotFoundError:
            return None

    def certificates_of(self, name: str) -> list[str]:
        """Return the ARNs of the certificates attached to a Thing; none if there is no such Thing."""
        pages = self._aws.iot.get_paginator("list_thing_principals").paginate(thingName=name)
        try:
            return [
                principal
                for page in self._aws.pages(pages)
                for principal in page.get("principals", [])
                if _CERTIFICATE_ARN_PART in principal
            ]
        except NotFoundError:
            return []

    def _adopt(self, name: str, owner: ThingOwner, known_certificate_arn: str | None) -> str | None:
        """Record the owner on an existing Thing and return its ARN; None if there is no such Thing."""
        try:
            thing = self._aws.call(self._aws.iot.describe_thing, thingName=name)
        except NotFoundError:
            return None
        arn, attributes = thing["thingArn"], thing.get("attributes", {})
        if not owner.is_compatible_with(attributes):
            raise PermanentError(
                FailureCode.THING_OF_ANOTHER_DEVICE,
                f"the attributes of {arn} name another device or tenant",
            )
        unknown = [found for found in self.certificates_of(name) if found != known_certificate_arn]
        if unknown:
            raise PermanentError(
                FailureCode.UNKNOWN_CERTIFICATE,
                f"a certificate that is not in this binding is attached to {arn}: {', '.join(unknown)}",
            )
        missing = {key: value for key, value in owner.attributes.items() if key not in attributes}
        if missing:
            if not thing.get("thingTypeName") and len(attributes) + len(missing) > _ATTRIBUTE_LIMIT:
                raise PermanentError(
                    FailureCode.NO_ROOM_FOR_ATTRIBUTES, f"{arn} has {len(attributes)} attributes of its own"
                )
            # The version guards the checks above: if the Thing has changed, the next attempt checks again.
            try:
                self._aws.call(
                    self._aws.iot.update_thing,
                    thingName=name,
                    attributePayload={"attributes": missing, "merge": True},
                    expectedVersion=thing["version"],
                )
            except NotFoundError as error:
                raise ConflictError(
                    "ThingDeleted", f"the Thing was deleted while it was adopted: {error.message}"
                ) from None
        return arn

    def _create(self, name: str, owner: ThingOwner) -> str:
        try:
            created = self._aws.call(
                self._aws.iot.create_thing,
                thingName=name,
                attributePayload={"attributes": owner.attributes},
            )
        except AlreadyExistsError as error:
            raise ConflictError(
                "ThingNameTaken", f"a Thing of this name was created at the same time: {error.message}"
            ) from None
        return created["thingArn"]
