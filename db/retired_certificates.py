"""Replaced certificates, recorded until they are deleted in AWS."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlmodel import Session, col, select

from db.models import AwsThingBinding, RetiredCertificate


class SecretBeingErasedError(RuntimeError):
    """The deletion of the secret in AWS has begun, so that no certificate can use it again."""


def retire(session: Session, binding: AwsThingBinding, successor_secret_arn: str | None) -> None:
    """Record a binding's certificate before its replacement, and its secret unless the successor uses it."""
    if binding.certificate_arn is None:
        return
    secret_arn = binding.certificate_secret_arn
    session.add(
        RetiredCertificate(
            binding_id=binding.id,
            device_id=binding.device_id,
            tenant_id=binding.tenant_id,
            certificate_arn=binding.certificate_arn,
            secret_arn=secret_arn if secret_arn != successor_secret_arn else None,
            provisioned_via_jitp=binding.provisioned_via_jitp,
        )
    )


def reclaim_secret(session: Session, device_id: UUID, secret_arn: str) -> None:
    """Exclude a secret that an enrolment uses again from deletion.

    Raises:
        SecretBeingErasedError: the deletion of the secret has begun.
    """
    for retired in pending_retirements(session, device_id, lock=True):
        if retired.secret_arn == secret_arn:
            if retired.decided_at is not None:
                raise SecretBeingErasedError(f"secret {secret_arn} is being deleted")
            retired.secret_arn = None


def pending_retirements(
    session: Session, device_id: UUID, *, lock: bool = False
) -> Sequence[RetiredCertificate]:
    """Return the device's replaced certificates that may still exist in AWS, the oldest first."""
    query = (
        select(RetiredCertificate)
        .where(RetiredCertificate.device_id == device_id, col(RetiredCertificate.completed_at).is_(None))
        .order_by(col(RetiredCertificate.id))
    )
    return session.exec(query.with_for_update() if lock else query).all()


def begin_retirement(
    session: Session, retired: RetiredCertificate, kept_reason: str | None
) -> RetiredCertificate:
    """Store the decision to delete or keep a certificate, unless one is stored. Call this before AWS.

    Args:
        session: in a transaction.
        retired: the certificate.
        kept_reason: why it is not deleted, None to delete it.
    """
    decided = _locked(session, retired)
    if decided.decided_at is None:
        decided.decided_at = datetime.now(UTC)
        decided.kept_reason = kept_reason
    return decided


def complete_retirement(session: Session, retired: RetiredCertificate, kept_reason: str | None) -> None:
    """Record that the certificate is deleted in AWS, or is kept for a reason."""
    decided = _locked(session, retired)
    decided.kept_reason = kept_reason
    decided.completed_at = datetime.now(UTC)


def complete_all_retirements(session: Session, device_id: UUID, kept: Sequence[str]) -> None:
    """Record that a decommissioning has deleted the device's certificates, except the ARNs in `kept`."""
    for retired in pending_retirements(session, device_id, lock=True):
        if retired.certificate_arn in kept:
            retired.kept_reason = (
                retired.kept_reason
                or "it is attached to another Thing too, or its ownership was not confirmed"
            )
        retired.completed_at = datetime.now(UTC)


def retired_from(session: Session, certificate_arn: str) -> UUID | None:
    """Return the binding from which this certificate was retired. None if there is none, or it was kept."""
    return session.exec(
        select(RetiredCertificate.binding_id)
        .where(
            RetiredCertificate.certificate_arn == certificate_arn,
            col(RetiredCertificate.kept_reason).is_(None),
        )
        .limit(1)
    ).first()


def _locked(session: Session, retired: RetiredCertificate) -> RetiredCertificate:
    return session.exec(
        select(RetiredCertificate)
        .where(RetiredCertificate.id == retired.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one()
