"""The Thing: made or adopted, and erased with all that hangs on it."""

from collections.abc import Mapping
from typing import Final

from temporalio import activity

from activities.bindings import BindingActivities
from activities.certificates import CertificateActivities
from activities.shadows import erase_shadows
from aws.attachments import certificates_of
from aws.clients import AwsClients
from aws.errors import AlreadyExistsError, ConflictError, InvalidRequestError, NotFoundError
from aws.jobs import erase_jobs
from domain.failure import FailureCode, PermanentError, RetryLaterError
from domain.names import DEVICE_ID_THING_ATTRIBUTE, TENANT_ID_THING_ATTRIBUTE, tenant_key
from domain.provisioning_status import ProvisioningStatus
from domain.saga import Device, StepResult, TeardownPlan

# AWS's limit for a Thing without a Thing type.
_ATTRIBUTE_LIMIT: Final = 3


class ThingActivities:
    """The Thing behind a binding."""

    def __init__(
        self, aws: AwsClients, bindings: BindingActivities, certificates: CertificateActivities
    ) -> None:
        self._aws = aws
        self._bindings = bindings
        self._certificates = certificates

    @activity.defn(name="ensure_thing", no_thread_cancel_exception=True)
    def ensure_thing(self, device: Device) -> StepResult:
        """Make the device's Thing, or adopt the one that bears its name and is no one else's.

        Raises:
            ApplicationError: the Thing of that name is another device's, bears a certificate nobody here
                knows, or has no room for our attributes. It is left as it was found.
        """
        binding = self._bindings.open_for_step(device)
        if binding.provisioning_status.is_past(ProvisioningStatus.THING_CREATED):
            return StepResult(status=binding.provisioning_status, arn=binding.thing_arn)
        if binding.thing_name is None:
            binding = self._bindings.claim_name(binding, device.thing_name or "")
        name = binding.thing_name or ""
        arn = self._adopt(device, name, binding.certificate_arn) or self._create(device, name)
        done = self._bindings.checkpoint(binding, ProvisioningStatus.THING_CREATED, thing_arn=arn)
        return StepResult(status=done.provisioning_status, arn=arn)

    @activity.defn(name="erase_thing", no_thread_cancel_exception=True)
    def erase_thing(self, plan: TeardownPlan) -> None:
        """Erase the Thing, its jobs and its shadows.

        Raises:
            ApplicationError: retryable, while a detach of its certificate has not settled in AWS.
        """
        name = plan.device.thing_name
        if not plan.thing or name is None:
            return
        erase_jobs(self._aws, name)
        erase_shadows(self._aws, name)
        try:
            self._aws.call(self._aws.iot.delete_thing, thingName=name)
        except NotFoundError:
            pass
        except InvalidRequestError as error:
            self._certificates.revoke_attached_since(plan)
            raise RetryLaterError(
                "DetachSettling", f"AWS still holds the Thing: {error.what}", seconds=2
            ) from None
        # A device still connected can have made one again in between.
        erase_shadows(self._aws, name)

    def _adopt(self, device: Device, name: str, known_certificate: str | None) -> str | None:
        """Stamp the Thing that already bears the name as this device's; its ARN, or None if there is none."""
        try:
            thing = self._aws.call(self._aws.iot.describe_thing, thingName=name)
        except NotFoundError:
            return None
        arn, attributes = thing["thingArn"], thing.get("attributes", {})
        ours = _stamp(device)
        if not _bears_nothing_else(attributes, ours):
            raise PermanentError(
                FailureCode.THING_OF_ANOTHER_DEVICE, f"{arn} bears another device's or tenant's id"
            )
        strangers = [found for found in certificates_of(self._aws, name) if found != known_certificate]
        if strangers:
            raise PermanentError(
                FailureCode.UNKNOWN_CERTIFICATE,
                f"{arn} carries a certificate this binding does not know: {', '.join(strangers)}",
            )
        missing = {key: value for key, value in ours.items() if key not in attributes}
        if missing:
            if not thing.get("thingTypeName") and len(attributes) + len(missing) > _ATTRIBUTE_LIMIT:
                raise PermanentError(
                    FailureCode.NO_ROOM_FOR_ATTRIBUTES, f"{arn} has {len(attributes)} attributes of its own"
                )
            # The version guards what was just looked at; where it has changed, the next attempt looks again.
            try:
                self._aws.call(
                    self._aws.iot.update_thing,
                    thingName=name,
                    attributePayload={"attributes": missing, "merge": True},
                    expectedVersion=thing["version"],
                )
            except NotFoundError as error:
                raise ConflictError(
                    "ThingDeleted", f"deleted by another in between, to be looked at: {error.what}"
                ) from None
        return arn

    def _create(self, device: Device, name: str) -> str:
        try:
            created = self._aws.call(
                self._aws.iot.create_thing,
                thingName=name,
                attributePayload={"attributes": _stamp(device)},
            )
        except AlreadyExistsError as error:
            raise ConflictError(
                "ThingNameTaken", f"made by another in between, to be looked at: {error.what}"
            ) from None
        return created["thingArn"]


def is_certainly_ours(device: Device, attributes: Mapping[str, str]) -> bool:
    """Whether a Thing bears this device's stamp, whole."""
    return _stamp(device).items() <= attributes.items()


def may_be_ours(device: Device, attributes: Mapping[str, str]) -> bool:
    """Whether a Thing bears nothing that speaks against its being this device's."""
    return _bears_nothing_else(attributes, _stamp(device))


def _stamp(device: Device) -> dict[str, str]:
    return {
        DEVICE_ID_THING_ATTRIBUTE: str(device.device_id),
        TENANT_ID_THING_ATTRIBUTE: tenant_key(device.tenant_id),
    }


def _bears_nothing_else(attributes: Mapping[str, str], ours: Mapping[str, str]) -> bool:
    return all(attributes.get(key, value) == value for key, value in ours.items())
