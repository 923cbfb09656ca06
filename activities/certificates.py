"""The certificate: issued with its key stored, attached, activated, and revoked."""

import logging
from contextlib import suppress
from typing import Final

from pydantic import SecretStr
from temporalio import activity

from activities.bindings import BindingActivities
from activities.secrets import SecretActivities
from aws.attachments import certificates_of, things_of
from aws.clients import AwsClients
from aws.errors import NotFoundError
from db.bindings import NO_FAILURE
from db.models import AwsThingBinding, RetiredCertificate
from domain.failure import FailureCode, PermanentError, StepError
from domain.names import id_of_certificate
from domain.provisioning_status import ProvisioningStatus
from domain.saga import Device, StepResult, TeardownPlan
from observability.metrics import SWEEPS_DONE, SWEEPS_FAILED, SWEEPS_FOUND

logger = logging.getLogger("thingbridge.certificates")

_SWEEP: Final = "retired_certificates"


class CertificateActivities:
    """What a device proves itself with.

    Args:
        aws: the clients.
        bindings: where checkpoints go.
        secrets: where keys go.
        policy_name: the IoT policy that says what devices may do.
    """

    def __init__(
        self, aws: AwsClients, bindings: BindingActivities, secrets: SecretActivities, *, policy_name: str
    ) -> None:
        self._aws = aws
        self._bindings = bindings
        self._secrets = secrets
        self._policy_name = policy_name

    @activity.defn(name="issue_certificate", no_thread_cancel_exception=True)
    def issue_certificate(self, device: Device) -> StepResult:
        """Have AWS issue a certificate, inactive, and store its key.

        One activity, since the key may not leave it. Between its two checkpoints the row says CertIssued.
        Found so at the start, either the secret tells that the key arrived, or the key is lost, and with it
        the certificate: that one is deleted and another issued. Not while AWS keeps the secret's name for one
        that is being deleted, for up to a month: each attempt would issue another and lose it.
        """
        binding = self._bindings.open_for_step(device)
        if binding.provisioning_status.is_past(ProvisioningStatus.SECRET_STORED):
            return StepResult(status=binding.provisioning_status, arn=binding.certificate_arn)
        thing_name = binding.thing_name or ""
        if binding.provisioning_status is ProvisioningStatus.CERT_ISSUED:
            secret = self._secrets.find(thing_name, to_replace=True)
            if secret and secret.holds_key_of(binding.certificate_arn, binding.id):
                return self._stored(binding, secret.arn)
            binding = self._give_up_certificate(binding)
        issued = self._aws.call(self._aws.iot.create_keys_and_certificate, setAsActive=False)
        certificate_arn = issued["certificateArn"]
        key = SecretStr(issued["keyPair"]["PrivateKey"])
        try:
            binding = self._bindings.checkpoint(
                binding, ProvisioningStatus.CERT_ISSUED, certificate_arn=certificate_arn
            )
        except Exception:
            # No row knows this certificate: this attempt is the last that can delete it.
            with suppress(StepError):
                self._delete(certificate_arn)
            raise
        return self._stored(binding, self._secrets.store(binding, thing_name, certificate_arn, key))

    @activity.defn(name="attach_certificate", no_thread_cancel_exception=True)
    def attach_certificate(self, device: Device) -> StepResult:
        """Attach the device policy to the certificate, and the certificate to the Thing."""
        binding = self._bindings.open_for_step(device)
        arn, thing_name = binding.certificate_arn or "", binding.thing_name or ""
        if binding.provisioning_status is not ProvisioningStatus.ACTIVE:
            try:
                self._aws.call(self._aws.iot.attach_policy, policyName=self._policy_name, target=arn)
            except NotFoundError as error:
                raise self._missing_for_policy(error) from None
            try:
                self._aws.call(self._aws.iot.attach_thing_principal, thingName=thing_name, principal=arn)
            except NotFoundError as error:
                raise self._missing_for_thing(thing_name, error) from None
        return StepResult(status=binding.provisioning_status, arn=arn)

    @activity.defn(name="activate_certificate", no_thread_cancel_exception=True)
    def activate_certificate(self, device: Device) -> StepResult:
        """Let the device connect: the last step, so that no certificate lost on the way ever could."""
        binding = self._bindings.open_for_step(device)
        if binding.provisioning_status is not ProvisioningStatus.ACTIVE:
            arn = binding.certificate_arn or ""
            try:
                self._aws.call(
                    self._aws.iot.update_certificate, certificateId=id_of_certificate(arn), newStatus="ACTIVE"
                )
            except NotFoundError as error:
                raise PermanentError(FailureCode.CERTIFICATE_GONE, error.what) from None
            binding = self._bindings.checkpoint(binding, ProvisioningStatus.ACTIVE, **NO_FAILURE)
        return StepResult(status=binding.provisioning_status, arn=binding.certificate_arn)

    @activity.defn(name="revoke_certificates", no_thread_cancel_exception=True)
    def revoke_certificates(self, plan: TeardownPlan) -> None:
        """Cut the device off and delete its certificates; one that serves other Things is only detached."""
        thing_name = plan.device.thing_name
        for arn in plan.certificate_arns:
            self._deactivate(arn)
        if plan.thing and thing_name is not None:
            # Devices connect under their Thing's name. Deactivation alone takes minutes to drop them.
            with suppress(NotFoundError):
                self._aws.call(self._aws.iot_data.delete_connection, clientId=thing_name)
        if thing_name is not None:
            # Also where the Thing has come to bear another's id: attached to it, ours could not be deleted.
            for arn in (*plan.certificate_arns, *plan.shared_certificate_arns):
                self._detach(thing_name, arn)
        for arn in plan.certificate_arns:
            self._delete(arn)

    def revoke_attached_since(self, plan: TeardownPlan) -> None:
        """Revoke what was attached to the Thing after the plan was made: the device was just enrolling."""
        thing_name = plan.device.thing_name or ""
        known = {*plan.certificate_arns, *plan.shared_certificate_arns}
        late = [arn for arn in certificates_of(self._aws, thing_name) if arn not in known]
        if not late:
            return
        shared = [arn for arn in late if any(each != thing_name for each in things_of(self._aws, arn) or [])]
        for arn in shared:
            logger.warning("%s serves other Things too, and is only detached from %s", arn, thing_name)
        alone = [arn for arn in late if arn not in shared]
        self.revoke_certificates(
            plan.model_copy(update={"certificate_arns": alone, "shared_certificate_arns": shared})
        )

    @activity.defn(name="erase_retired_certificates", no_thread_cancel_exception=True)
    def erase_retired_certificates(self, device: Device) -> None:
        """Erase the certificates that others took the place of, with the secrets that held their keys.

        What a caller named is erased only if AWS says that it is this Thing's, as attached to it. That is
        committed first, since a detached certificate no longer shows whose it was.
        """
        for retired in self._bindings.retired_certificates(device.device_id):
            SWEEPS_FOUND.add(device.tenant_id, _SWEEP)
            try:
                self._erase_retired(device, retired)
            except StepError:
                SWEEPS_FAILED.add(device.tenant_id, _SWEEP)
                raise
            SWEEPS_DONE.add(device.tenant_id, _SWEEP)
        binding = self._bindings.read(device.device_id)
        if binding.failure_code is not None:
            self._bindings.update_binding(binding, **NO_FAILURE)

    def _erase_retired(self, device: Device, retired: RetiredCertificate) -> None:
        thing_name, arn = device.thing_name or "", retired.certificate_arn
        things = things_of(self._aws, arn)
        confirmed = things is None or thing_name in things or not retired.provisioned_via_jitp
        decided = self._bindings.begin_retirement(
            retired, None if confirmed else "it is not attached to this Thing"
        )
        kept_reason = decided.kept_reason
        if kept_reason is None and things is not None:
            if any(thing != thing_name for thing in things):
                self._detach(thing_name, arn)
                kept_reason = "it serves other Things too, and was detached from this one"
            else:
                self._deactivate(arn)
                self._detach(thing_name, arn)
                self._delete(arn)
        if decided.secret_arn and self._secrets.is_named_for(decided.secret_arn, thing_name):
            self._secrets.erase(decided.secret_arn)
        self._bindings.complete_retirement(decided, kept_reason)

    def _stored(self, binding: AwsThingBinding, secret_arn: str) -> StepResult:
        done = self._bindings.checkpoint(
            binding, ProvisioningStatus.SECRET_STORED, certificate_secret_arn=secret_arn
        )
        return StepResult(status=done.provisioning_status, arn=done.certificate_arn)

    def _give_up_certificate(self, binding: AwsThingBinding) -> AwsThingBinding:
        lost = binding.certificate_arn
        if lost is not None:
            self._delete(lost)
        return self._bindings.checkpoint(
            binding,
            ProvisioningStatus.THING_CREATED,
            certificate_arn=None,
            reason=f"deleted {lost}: its key may not have reached Secrets Manager",
        )

    def _deactivate(self, arn: str) -> None:
        with suppress(NotFoundError):
            self._aws.call(
                self._aws.iot.update_certificate, certificateId=id_of_certificate(arn), newStatus="INACTIVE"
            )

    def _detach(self, thing_name: str, arn: str) -> None:
        with suppress(NotFoundError):
            self._aws.call(self._aws.iot.detach_thing_principal, thingName=thing_name, principal=arn)

    def _delete(self, arn: str) -> None:
        """Deactivate, strip of every policy and delete; AWS refuses, retryably, while a detach settles."""
        self._deactivate(arn)
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
        return PermanentError(FailureCode.CERTIFICATE_GONE, error.what)

    def _missing_for_thing(self, thing_name: str, error: NotFoundError) -> PermanentError:
        try:
            self._aws.call(self._aws.iot.describe_thing, thingName=thing_name)
        except NotFoundError:
            return PermanentError(FailureCode.THING_GONE, f"there is no Thing {thing_name}")
        return PermanentError(FailureCode.CERTIFICATE_GONE, error.what)
