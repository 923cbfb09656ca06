"""Activities of the saga for the certificate and its private key."""

from contextlib import suppress
from typing import Final

from temporalio import activity

from activities.bindings import BindingActivities, certificate_arn_of, thing_name_of
from aws.certificates import Certificates
from aws.secrets import Secrets
from db.bindings import NO_FAILURE
from db.models import AwsThingBinding, RetiredCertificate
from domain.failure import StepError
from domain.provisioning_status import ProvisioningStatus
from domain.saga import Device, StepResult, TeardownPlan
from observability.metrics import SWEEPS_DONE, SWEEPS_FAILED, SWEEPS_FOUND

_SWEEP: Final = "retired_certificates"
_DISCONNECTION_ATTEMPTS: Final = 3
"""The attempts in which a decommissioned device that could not be disconnected delays its teardown."""


class CertificateActivities:
    """Issue, attachment, activation and revocation of a device's certificate."""

    def __init__(self, bindings: BindingActivities, certificates: Certificates, secrets: Secrets) -> None:
        self._bindings = bindings
        self._certificates = certificates
        self._secrets = secrets

    @activity.defn(name="issue_certificate", no_thread_cancel_exception=True)
    def issue_certificate(self, device: Device) -> StepResult:
        """Issue an inactive certificate and store its private key.

        Both happen in one activity, because the key must not leave it. The activity commits two checkpoints:
        CertIssued after the issue, SecretStored after the key is stored. An attempt that finds CertIssued
        continues from there. If the secret holds the key of the certificate, only the checkpoint is missing.
        Otherwise the key is lost: the certificate is deleted and another one is issued.

        Raises:
            RetryLaterError: a secret of this name is being deleted, which can last a month. No certificate is
                issued until then, because its key would be lost.
            StepError: AWS refuses a call, or the binding does not allow the step.
        """
        binding = self._bindings.open_for_step(device)
        if binding.provisioning_status.is_past(ProvisioningStatus.SECRET_STORED):
            return StepResult(status=binding.provisioning_status, arn=binding.certificate_arn)
        thing_name = thing_name_of(binding)
        if binding.provisioning_status is ProvisioningStatus.CERT_ISSUED:
            secret = self._secrets.find_replaceable(thing_name)
            if secret and secret.holds_key_of(certificate_arn_of(binding), binding.id):
                return self._secret_stored(binding, secret.arn)
            binding = self._delete_lost_certificate(binding)
        issued = self._certificates.issue()
        try:
            binding = self._bindings.checkpoint(
                binding, ProvisioningStatus.CERT_ISSUED, certificate_arn=issued.arn
            )
        except Exception:
            # No row records this certificate, so no later attempt can delete it.
            with suppress(StepError):
                self._certificates.delete(issued.arn)
            raise
        secret_arn = self._secrets.store(thing_name, binding.id, issued.arn, issued.private_key)
        return self._secret_stored(binding, secret_arn)

    @activity.defn(name="attach_certificate", no_thread_cancel_exception=True)
    def attach_certificate(self, device: Device) -> StepResult:
        """Attach the device policy to the certificate, and the certificate to the Thing."""
        binding = self._bindings.open_for_step(device)
        if binding.provisioning_status is not ProvisioningStatus.ACTIVE:
            arn = certificate_arn_of(binding)
            self._certificates.attach_policy(arn)
            self._certificates.attach(arn, thing_name_of(binding))
        return StepResult(status=binding.provisioning_status, arn=binding.certificate_arn)

    @activity.defn(name="activate_certificate", no_thread_cancel_exception=True)
    def activate_certificate(self, device: Device) -> StepResult:
        """Allow the device to connect.

        This is the last step, so a certificate that is lost in an earlier one can never connect.
        """
        binding = self._bindings.open_for_step(device)
        if binding.provisioning_status is not ProvisioningStatus.ACTIVE:
            self._certificates.activate(certificate_arn_of(binding))
            binding = self._bindings.checkpoint(binding, ProvisioningStatus.ACTIVE, **NO_FAILURE)
        return StepResult(status=binding.provisioning_status, arn=binding.certificate_arn)

    @activity.defn(name="revoke_certificates", no_thread_cancel_exception=True)
    def revoke_certificates(self, plan: TeardownPlan) -> None:
        """Disconnect the device and delete its certificates; detach those that other Things use too.

        Raises:
            AwsError: AWS refuses a call. The disconnection is repeated only if a retry can help, and a few
                times, because AWS itself ends the connection of a deactivated certificate within minutes.
        """
        disconnection_error = self._certificates.revoke(
            plan.certificate_arns,
            thing_name=plan.device.thing_name,
            shared_arns=plan.shared_certificate_arns,
            disconnect=plan.thing,
        )
        is_last = activity.info().attempt >= _DISCONNECTION_ATTEMPTS
        if disconnection_error is not None and disconnection_error.retryable and not is_last:
            raise disconnection_error

    @activity.defn(name="erase_retired_certificates", no_thread_cancel_exception=True)
    def erase_retired_certificates(self, device: Device) -> None:
        """Erase the certificates that were replaced, with the secrets that hold their keys.

        A certificate that a caller reported is erased only if it is attached to this device's Thing. This
        decision is committed first, because nothing shows the owner of a certificate once it is detached.
        """
        for retired in self._bindings.retired_certificates(device.device_id):
            SWEEPS_FOUND.add(device.tenant_id, _SWEEP)
            try:
                self._erase_retired(thing_name_of(device), retired)
            except StepError:
                SWEEPS_FAILED.add(device.tenant_id, _SWEEP)
                raise
            SWEEPS_DONE.add(device.tenant_id, _SWEEP)
        binding = self._bindings.read(device.device_id)
        if binding.failure_code is not None:
            self._bindings.update_binding(binding, **NO_FAILURE)

    def _erase_retired(self, thing_name: str, retired: RetiredCertificate) -> None:
        arn = retired.certificate_arn
        things = self._certificates.things_of(arn)
        confirmed = things is None or thing_name in things or not retired.provisioned_via_jitp
        decided = self._bindings.begin_retirement(
            retired, None if confirmed else "it is not attached to this Thing"
        )
        kept_reason = decided.kept_reason
        if kept_reason is None and things is not None:
            if any(thing != thing_name for thing in things):
                self._certificates.detach(arn, thing_name)
                kept_reason = "it is attached to other Things too, and was detached from this one"
            else:
                self._certificates.revoke([arn], thing_name=thing_name)
        if decided.secret_arn and self._secrets.belongs_to(decided.secret_arn, thing_name):
            self._secrets.erase(decided.secret_arn)
        self._bindings.complete_retirement(decided, kept_reason)

    def _secret_stored(self, binding: AwsThingBinding, secret_arn: str) -> StepResult:
        done = self._bindings.checkpoint(
            binding, ProvisioningStatus.SECRET_STORED, certificate_secret_arn=secret_arn
        )
        return StepResult(status=done.provisioning_status, arn=done.certificate_arn)

    def _delete_lost_certificate(self, binding: AwsThingBinding) -> AwsThingBinding:
        """Delete a certificate whose key is lost, and return the binding to ThingCreated."""
        lost = certificate_arn_of(binding)
        self._certificates.delete(lost)
        return self._bindings.checkpoint(
            binding,
            ProvisioningStatus.THING_CREATED,
            certificate_arn=None,
            reason=f"deleted {lost}: its key may not be stored in Secrets Manager",
        )
