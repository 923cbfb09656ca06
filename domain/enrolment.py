"""Fleet provisioning (JITP): the check of a registration's resources, and the event that follows it."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID, uuid5

from pydantic import BaseModel, ConfigDict

from domain.fault import Fault
from domain.lifecycle_event import LifecycleEvent, LifecycleEventType
from domain.names import id_of_certificate, owner_of_thing, thing_name
from domain.saga import Device

_NAMESPACE: Final = UUID("b7a1f0f4-5a2e-5f0a-8f43-0d7f4f2f6a51")
_CERTIFICATE_ID: Final = re.compile(r"[0-9a-f]{64}")
# AWS appends this suffix to the name of a secret.
_SECRET_SUFFIX: Final = re.compile(r"-[A-Za-z0-9]{6}")


class Denial(StrEnum):
    """The reasons to deny enrolment to a serial number. The values are part of HTTP responses."""

    DECOMMISSIONED = "the device of this serial number was decommissioned"
    LIVE = "this serial number already has a device, and re-enrolment is switched off"
    POLICY = "the serial policy refuses this serial number"


class AwsLocation(BaseModel):
    """The AWS partition, account and region of the bridge's resources."""

    model_config = ConfigDict(frozen=True)

    partition: str
    account_id: str
    region: str

    def arn_prefix(self, service: str) -> str:
        """Return the beginning of every ARN of a service in this location."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account_id}:"


class Registration(BaseModel):
    """A device that fleet provisioning has admitted, with the AWS resources that were created for it."""

    model_config = ConfigDict(frozen=True)

    tenant_id: UUID | None
    serial_number: str
    thing_name: str
    thing_arn: str
    certificate_arn: str
    certificate_secret_arn: str | None
    model: str
    firmware_version: str
    label: str | None
    claim_certificate_expires_at: datetime | None

    def faults(self, location: AwsLocation, secret_name_template: str) -> Iterator[Fault]:
        """Yield the fields that name a resource of another device or in another location.

        The bridge may later delete whatever passes this check.
        """
        name = thing_name(self.tenant_id, self.serial_number)
        if self.thing_name != name:
            yield Fault(
                field="thingName",
                reason="must be t, the tenant's id as 32 hex digits, - and the serial number",
            )
        if self.thing_arn != f"{location.arn_prefix('iot')}thing/{name}":
            yield _location_fault("thingArn", "end with thing/ and the Thing's name")
        certificates = f"{location.arn_prefix('iot')}cert/"
        if not _has_form(self.certificate_arn, certificates, _CERTIFICATE_ID):
            yield _location_fault("certificateArn", "end with cert/ and 64 lower-case hex digits")
        secret_name = secret_name_template.replace("{thingName}", name)
        secret = f"{location.arn_prefix('secretsmanager')}secret:{secret_name}"
        if self.certificate_secret_arn and not _has_form(self.certificate_secret_arn, secret, _SECRET_SUFFIX):
            yield _location_fault("certificateSecretArn", "have the configured name of this Thing's secret")


def activation(device: Device, binding_id: UUID, certificate_arn: str, since: datetime) -> LifecycleEvent:
    """Return the event that starts an enrolled device's follow-up; every repeat returns the same event.

    Its time is that of the device's first enrolment: enrolling again must not reactivate a suspended device.
    """
    owner = owner_of_thing(device.thing_name) if device.thing_name else None
    return LifecycleEvent(
        event_id=uuid5(_NAMESPACE, f"{binding_id}/{id_of_certificate(certificate_arn)}"),
        type=LifecycleEventType.ACTIVATED,
        device_id=device.device_id,
        tenant_id=device.tenant_id,
        serial_number=owner[1] if owner else None,
        occurred_at=since,
    )


def whole_days(left: timedelta) -> int:
    """Return the number of whole days left, 0 for a time that has passed."""
    return max(left.days, 0)


def _has_form(arn: str, start: str, rest: re.Pattern[str]) -> bool:
    """Return whether an ARN consists of this start and a rest that matches the pattern."""
    return arn.startswith(start) and rest.fullmatch(arn, len(start)) is not None


def _location_fault(field: str, requirement: str) -> Fault:
    return Fault(
        field=field,
        reason=f"must be in the bridge's own partition, account and region, and {requirement}",
    )
