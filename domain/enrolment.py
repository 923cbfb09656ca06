"""A device that enrolled itself (JITP): what it may claim to own, and what follows of it."""

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
# What AWS adds to the name of a secret.
_SECRET_SUFFIX: Final = re.compile(r"-[A-Za-z0-9]{6}")


class Denial(StrEnum):
    """Why a serial number may not enrol, in the words of the answer."""

    DECOMMISSIONED = "the device of this serial number was decommissioned"
    LIVE = "this serial number has a device already, and none may enrol again"
    POLICY = "the serial policy refuses this serial number"


class AwsLocation(BaseModel):
    """Where in AWS all that is the bridge's lies."""

    model_config = ConfigDict(frozen=True)

    partition: str
    account_id: str
    region: str

    def arn_start(self, service: str) -> str:
        """What every ARN of a service begins with here."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account_id}:"


class Registration(BaseModel):
    """What is told of a device that fleet provisioning has let in."""

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

    def faults(self, place: AwsLocation, secret_name_template: str) -> Iterator[Fault]:
        """What it names that cannot be this device's, or is not where the bridge is.

        What passes may in the end be deleted in this device's name.
        """
        name = thing_name(self.tenant_id, self.serial_number)
        if self.thing_name != name:
            yield Fault(
                field="thingName",
                reason="must be t, the tenant's id as 32 hex digits, - and the serial number",
            )
        if self.thing_arn != f"{place.arn_start('iot')}thing/{name}":
            yield _elsewhere("thingArn", "its resource thing/ and the Thing's name")
        start = f"{place.arn_start('iot')}cert/"
        if not _continues(self.certificate_arn, start, _CERTIFICATE_ID):
            yield _elsewhere("certificateArn", "its resource cert/ and 64 lower-case hex digits")
        start = (
            place.arn_start("secretsmanager") + f"secret:{secret_name_template.replace('{thingName}', name)}"
        )
        if self.certificate_secret_arn and not _continues(self.certificate_secret_arn, start, _SECRET_SUFFIX):
            yield _elsewhere("certificateSecretArn", "its name the one set for this Thing's secret")


def activation(device: Device, binding_id: UUID, certificate_arn: str, since: datetime) -> LifecycleEvent:
    """The event by which the device's workflow does what follows an enrolment; each repeat is the same.

    It is as old as the device's first enrolment: a suspended device is not made active by enrolling again.
    """
    owner = owner_of_thing(device.thing_name or "")
    return LifecycleEvent(
        event_id=uuid5(_NAMESPACE, f"{binding_id}/{id_of_certificate(certificate_arn)}"),
        type=LifecycleEventType.ACTIVATED,
        device_id=device.device_id,
        tenant_id=device.tenant_id,
        serial_number=owner[1] if owner else None,
        occurred_at=since,
    )


def whole_days(left: timedelta) -> int:
    """How many whole days are left; none of a time that has passed."""
    return max(left.days, 0)


def _continues(arn: str, start: str, rest: re.Pattern[str]) -> bool:
    return arn.startswith(start) and rest.fullmatch(arn, len(start)) is not None


def _elsewhere(field: str, what: str) -> Fault:
    return Fault(field=field, reason=f"must be of the bridge's own partition, account and region, and {what}")
