"""Activity that plans a teardown: which AWS resources belong to a device, before anything is deleted."""

from collections.abc import Sequence

from temporalio import activity

from activities.bindings import BindingActivities
from aws.certificates import Certificates
from aws.secrets import Secrets
from aws.things import ThingOwner, Things
from db.models import AwsThingBinding, RetiredCertificate
from domain.saga import Device, TeardownPlan


class TeardownActivities:
    """Planning of a decommissioning."""

    def __init__(
        self, bindings: BindingActivities, things: Things, certificates: Certificates, secrets: Secrets
    ) -> None:
        self._bindings = bindings
        self._things = things
        self._certificates = certificates
        self._secrets = secrets

    @activity.defn(name="plan_teardown", no_thread_cancel_exception=True)
    def plan_teardown(self, device: Device) -> TeardownPlan:
        """Return which of the device's AWS resources are to be erased, and which are to be kept.

        The binding alone does not confirm ownership: for a device that fleet provisioning enrolled, a caller
        reported the ARNs in it. A Thing is kept, with its certificates, if its attributes record another
        device, or if the saga did not create or adopt it.
        """
        binding = self._bindings.read(device.device_id)
        name = binding.thing_name
        owned = name is not None and self._owns_thing(device, binding, name)
        attached = self._things.certificates_of(name) if name is not None and owned else []
        retired = self._bindings.retired_certificates(device.device_id)
        certificates, unconfirmed = _confirmed_certificates(binding, attached, retired)
        shared = [arn for arn in certificates if self._certificates.is_shared(arn, name)]
        secrets, unconfirmed_secrets = self._confirmed_secrets(binding, owned)
        secrets += [
            each.secret_arn
            for each in retired
            if each.secret_arn and name and self._secrets.belongs_to(each.secret_arn, name)
        ]
        return TeardownPlan(
            device=device.model_copy(update={"thing_name": name}),
            thing=owned,
            certificate_arns=[arn for arn in certificates if arn not in shared],
            shared_certificate_arns=shared,
            secret_arns=secrets,
            unconfirmed_arns=[*unconfirmed, *unconfirmed_secrets],
        )

    def _owns_thing(self, device: Device, binding: AwsThingBinding, name: str) -> bool:
        attributes = self._things.attributes_of(name)
        if attributes is None:
            return True  # there is no Thing, but its shadows and jobs can still exist
        owner = ThingOwner(device.device_id, device.tenant_id)
        return owner.is_recorded_in(attributes) or (
            binding.thing_arn is not None and owner.is_compatible_with(attributes)
        )

    def _confirmed_secrets(self, binding: AwsThingBinding, owns_thing: bool) -> tuple[list[str], list[str]]:
        """Return the ARNs of the secrets to erase, and of those whose ownership is not confirmed."""
        recorded, name = binding.certificate_secret_arn, binding.thing_name
        confirmed: list[str] = []
        if recorded is not None and (
            not binding.provisioned_via_jitp or (name and self._secrets.belongs_to(recorded, name))
        ):
            confirmed.append(recorded)
        found = self._secrets.find(name) if name is not None else None
        if (
            found is not None
            and found.arn not in confirmed
            and (
                owns_thing
                or found.arn == recorded
                or found.was_written_for(binding.id, binding.certificate_arn)
            )
        ):
            confirmed.append(found.arn)
        return confirmed, [recorded] if recorded is not None and recorded not in confirmed else []


def _confirmed_certificates(
    binding: AwsThingBinding, attached: list[str], retired: Sequence[RetiredCertificate]
) -> tuple[list[str], list[str]]:
    """Return the ARNs of the certificates to erase, and of those whose ownership is not confirmed.

    A certificate is confirmed if it is attached to the Thing, or if the saga issued it. A retired certificate
    can be detached already: it is confirmed if its erasure was decided before that.
    """
    recorded = {binding.certificate_arn: not binding.provisioned_via_jitp} | {
        each.certificate_arn: not each.provisioned_via_jitp
        or (each.decided_at is not None and each.kept_reason is None)
        for each in retired
    }
    detached = {arn: own for arn, own in recorded.items() if arn is not None and arn not in attached}
    confirmed = [arn for arn, own in detached.items() if own]
    return [*attached, *confirmed], [arn for arn, own in detached.items() if not own]
