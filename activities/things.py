"""Activities of the saga for the Thing."""

import logging

from temporalio import activity

from activities.attempt import record_progress
from activities.bindings import BindingActivities, thing_name_of
from aws.certificates import Certificates
from aws.errors import InvalidRequestError
from aws.jobs import Jobs
from aws.shadows import Shadows
from aws.things import ThingOwner, Things
from domain.failure import RetryLaterError
from domain.provisioning_status import ProvisioningStatus
from domain.saga import Device, StepResult, TeardownPlan

logger = logging.getLogger("thingbridge.things")


class ThingActivities:
    """Creation and erasure of a device's Thing, with everything that AWS keeps under its name."""

    def __init__(
        self,
        bindings: BindingActivities,
        things: Things,
        certificates: Certificates,
        jobs: Jobs,
        shadows: Shadows,
    ) -> None:
        self._bindings = bindings
        self._things = things
        self._certificates = certificates
        self._jobs = jobs
        self._shadows = shadows

    @activity.defn(name="ensure_thing", no_thread_cancel_exception=True)
    def ensure_thing(self, device: Device) -> StepResult:
        """Create the device's Thing, or adopt an existing Thing that has its name.

        Raises:
            StepError: the Thing cannot be adopted, or another device has the serial number.
        """
        binding = self._bindings.open_for_step(device)
        if binding.provisioning_status.is_past(ProvisioningStatus.THING_CREATED):
            return StepResult(status=binding.provisioning_status, arn=binding.thing_arn)
        if binding.thing_name is None:
            binding = self._bindings.claim_name(binding, thing_name_of(device))
        arn = self._things.ensure(
            thing_name_of(binding),
            ThingOwner(device.device_id, device.tenant_id),
            known_certificate_arn=binding.certificate_arn,
        )
        done = self._bindings.checkpoint(binding, ProvisioningStatus.THING_CREATED, thing_arn=arn)
        return StepResult(status=done.provisioning_status, arn=arn)

    @activity.defn(name="erase_thing", no_thread_cancel_exception=True)
    def erase_thing(self, plan: TeardownPlan) -> None:
        """Erase the Thing with its jobs and shadows.

        Raises:
            RetryLaterError: AWS has not completed the detachment of a certificate.
            AwsError: AWS refuses a call for another reason.
        """
        name = plan.device.thing_name
        if not plan.thing or name is None:
            return
        # Detached by an earlier attempt, these cannot be found in AWS any more. They are recorded again
        # before the first request, whose heartbeat would erase them.
        detached = list(next(iter(activity.info().heartbeat_details), []))
        record_progress(detached)
        self._jobs.delete_for_thing(name)
        self._shadows.delete_all(name)
        self._certificates.revoke(detached, thing_name=None)
        try:
            self._things.delete(name)
        except InvalidRequestError as error:
            self._revoke_new_certificates(plan, name, detached)
            raise RetryLaterError(
                "DetachPending", f"AWS cannot delete the Thing yet: {error.message}", seconds=2
            ) from None
        if plan.shared_certificate_arns:
            # These certificates stay active, so AWS does not end a connection that was made with one of them
            # before its detachment, which is now completed.
            self._certificates.disconnect(name)
        # A device that is still connected can have created a shadow again before the Thing was deleted.
        self._shadows.delete_all(name)

    def _revoke_new_certificates(self, plan: TeardownPlan, thing_name: str, detached: list[str]) -> None:
        """Revoke the certificates that a device attached, by enrolling, after the plan was made.

        They are recorded first: AWS refuses to delete a certificate until its detachment is completed, so a
        later attempt deletes it.
        """
        planned = {*plan.certificate_arns, *plan.shared_certificate_arns}
        attached = [arn for arn in self._things.certificates_of(thing_name) if arn not in planned]
        if not attached:
            return
        shared = [arn for arn in attached if self._certificates.is_shared(arn, thing_name)]
        for arn in shared:
            logger.warning(
                "certificate is attached to other Things too: it is only detached, certificate=%s thing=%s",
                arn,
                thing_name,
            )
        own = [arn for arn in attached if arn not in shared]
        record_progress([*detached, *own])
        self._certificates.revoke(
            own,
            thing_name=thing_name,
            shared_arns=shared,
            disconnect=True,
        )
