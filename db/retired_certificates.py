"""Certificates that others took the place of: kept in mind until AWS has erased them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlmodel import Session, col, select

from db.models import AwsThingBinding, RetiredCertificate


class SecretBeingErasedError(RuntimeError):
    """AWS is being asked to erase the secret: it cannot be any certificate's again."""


def retire(session: Session, binding: AwsThingBinding, successor_secret_arn: str | None) -> None:
    """Keep in mind the certificate that a binding is about to lose, and its secret if it loses that too."""
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
    """Spare a secret that an enrolment names once more.

    Raises:
        SecretBeingErasedError: it is too late for that.
    """
    for retired in pending_retirements(session, device_id, lock=True):
        if retired.secret_arn == secret_arn:
            if retired.decided_at is not None:
                raise SecretBeingErasedError(f"secret {secret_arn} is being erased")
            retired.secret_arn = None


def pending_retirements(
    session: Session, device_id: UUID, *, lock: bool = False
) -> Sequence[RetiredCertificate]:
    """The device's retired certificates of which something may be left in AWS, the oldest first."""
    query = (
        select(RetiredCertificate)
        .where(RetiredCertificate.device_id == device_id, col(RetiredCertificate.completed_at).is_(None))
        .order_by(col(RetiredCertificate.id))
    )
    return session.exec(query.with_for_update() if lock else query).all()


def begin_retirement(
    session: Session, retired: RetiredCertificate, kept_reason: str | None
) -> RetiredCertificate:
    """Decide whether the certificate is erased, before AWS is asked to; the first decision stands."""
    decided = _locked(session, retired)
    if decided.decided_at is None:
        decided.decided_at = datetime.now(UTC)
        decided.kept_reason = kept_reason
    return decided


def complete_retirement(session: Session, retired: RetiredCertificate, kept_reason: str | None) -> None:
    """Note that nothing more is to be done about it in AWS."""
    decided = _locked(session, retired)
    decided.kept_reason = kept_reason
    decided.completed_at = datetime.now(UTC)


def complete_all_retirements(session: Session, device_id: UUID, kept: Sequence[str]) -> None:
    """Settle what a decommissioning has erased, or left, together with the rest of the device."""
    for retired in pending_retirements(session, device_id, lock=True):
        if retired.certificate_arn in kept:
            retired.kept_reason = retired.kept_reason or "not this Thing's alone"
        retired.completed_at = datetime.now(UTC)


def retired_from(session: Session, certificate_arn: str) -> UUID | None:
    """The binding that had this certificate before its present one; None for one that was left in AWS."""
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
