"""Looking, before anything is undone, at what of a device is in AWS and whether it is the device's own."""

from collections.abc import Sequence

from temporalio import activity

from activities.bindings import BindingActivities
from activities.secrets import SecretActivities
from activities.things import is_certainly_ours, may_be_ours
from aws.attachments import certificates_of, things_of
from aws.clients import AwsClients
from aws.errors import NotFoundError
from db.models import AwsThingBinding, RetiredCertificate
from domain.saga import Device, TeardownPlan


class TeardownActivities:
    """The plan of a decommissioning."""

    def __init__(self, aws: AwsClients, bindings: BindingActivities, secrets: SecretActivities) -> None:
        self._aws = aws
        self._bindings = bindings
        self._secrets = secrets

    @activity.defn(name="plan_teardown", no_thread_cancel_exception=True)
    def plan_teardown(self, device: Device) -> TeardownPlan:
        """Say what is to be erased. What the row names is not enough: JITP rows name what a caller told.

        A Thing that names another device, or that the saga never came to stamp, is a stranger's: it and its
        certificates stay.
        """
        binding = self._bindings.read(device.device_id)
        name = binding.thing_name
        attached: list[str] = []
        ours = False
        if name is not None:
            attributes = self._attributes(name)
            if attributes is None:
                ours = True  # shadows and jobs can outlive the Thing
            else:
                ours = is_certainly_ours(device, attributes) or (
                    binding.thing_arn is not None and may_be_ours(device, attributes)
                )
                attached = certificates_of(self._aws, name) if ours else []
        retired = self._bindings.retired_certificates(device.device_id)
        certificates, unconfirmed = _confirmed_certificates(binding, attached, retired)
        shared = [arn for arn in certificates if self._serves_others(arn, name)]
        secrets, unconfirmed_secrets = self._confirmed_secrets(binding, ours)
        secrets += [
            each.secret_arn
            for each in retired
            if each.secret_arn and name and self._secrets.is_named_for(each.secret_arn, name)
        ]
        return TeardownPlan(
            device=device.model_copy(update={"thing_name": name}),
            thing=ours,
            certificate_arns=[arn for arn in certificates if arn not in shared],
            shared_certificate_arns=shared,
            secret_arns=secrets,
            unconfirmed_arns=[*unconfirmed, *unconfirmed_secrets],
        )

    def _attributes(self, name: str) -> dict[str, str] | None:
        try:
            return self._aws.call(self._aws.iot.describe_thing, thingName=name).get("attributes", {})
        except NotFoundError:
            return None

    def _serves_others(self, certificate_arn: str, name: str | None) -> bool:
        return any(thing != name for thing in things_of(self._aws, certificate_arn) or [])

    def _confirmed_secrets(self, binding: AwsThingBinding, ours: bool) -> tuple[list[str], list[str]]:
        named = binding.certificate_secret_arn
        confirmed: list[str] = []
        name = binding.thing_name
        if named is not None and (
            not binding.provisioned_via_jitp or (name and self._secrets.is_named_for(named, name))
        ):
            confirmed.append(named)
        found = self._secrets.find(name) if name is not None else None
        if found and found.arn not in confirmed and (ours or found.was_written_for(binding)):
            confirmed.append(found.arn)
        return confirmed, [named] if named is not None and named not in confirmed else []


def _confirmed_certificates(
    binding: AwsThingBinding, attached: list[str], retired: Sequence[RetiredCertificate]
) -> tuple[list[str], list[str]]:
    """What is attached to the Thing, and the rows' own where the saga issued it; JITP's only if attached.

    A replaced certificate may be half erased, and detached: it was confirmed before that began.
    """
    own = {binding.certificate_arn: not binding.provisioned_via_jitp} | {
        each.certificate_arn: not each.provisioned_via_jitp
        or (each.decided_at is not None and each.kept_reason is None)
        for each in retired
    }
    detached = {arn: known for arn, known in own.items() if arn is not None and arn not in attached}
    confirmed = [arn for arn, known in detached.items() if known]
    return [*attached, *confirmed], [arn for arn, known in detached.items() if not known]
