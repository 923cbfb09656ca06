"""The keys of the HTTP doors: made, found, listed, revoked."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlmodel import Session, col, select

from db.models import ApiKeyRow
from domain.api_key import ApiKey


def create_key(session: Session, tenant_id: UUID | None, label: str | None) -> str:
    """Make a tenant's key, or an operator's where there is no tenant; what is returned is kept nowhere."""
    key, text = ApiKey.make()
    session.add(ApiKeyRow(id=key.id, digest=key.digest, tenant_id=tenant_id, label=label))
    session.flush()
    return text


def valid_key(session: Session, key_id: str) -> ApiKeyRow | None:
    """The key of this id, unless it was revoked."""
    return session.exec(
        select(ApiKeyRow).where(ApiKeyRow.id == key_id, col(ApiKeyRow.revoked_at).is_(None))
    ).first()


def list_keys(session: Session) -> Sequence[ApiKeyRow]:
    """Every key there ever was, the oldest first."""
    return session.exec(select(ApiKeyRow).order_by(col(ApiKeyRow.created_at), col(ApiKeyRow.id))).all()


def revoke_key(session: Session, key_id: str) -> ApiKeyRow | None:
    """Refuse the key from now on; None where there is no such key. A first revocation's time stands."""
    row = session.get(ApiKeyRow, key_id, with_for_update=True)
    if row and row.revoked_at is None:
        row.revoked_at = datetime.now(UTC)
    return row
