"""Keys of the HTTP API: creation, lookup, list and revocation."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlmodel import Session, col, select

from db.models import ApiKeyRow
from domain.api_key import ApiKey


def create_key(session: Session, tenant_id: UUID | None, label: str | None) -> str:
    """Create a key of a tenant, or of an operator without one, and return its text, which is not stored."""
    key, text = ApiKey.generate()
    session.add(ApiKeyRow(id=key.id, digest=key.digest, tenant_id=tenant_id, label=label))
    session.flush()
    return text


def valid_key(session: Session, key_id: str) -> ApiKeyRow | None:
    """Return the key with this id, or None if there is none or it was revoked."""
    return session.exec(
        select(ApiKeyRow).where(ApiKeyRow.id == key_id, col(ApiKeyRow.revoked_at).is_(None))
    ).first()


def list_keys(session: Session) -> Sequence[ApiKeyRow]:
    """Return all keys, also revoked ones, the oldest first."""
    return session.exec(select(ApiKeyRow).order_by(col(ApiKeyRow.created_at), col(ApiKeyRow.id))).all()


def revoke_key(session: Session, key_id: str) -> ApiKeyRow | None:
    """Revoke a key and return it, or None if it does not exist. The time of an earlier revocation is kept."""
    row = session.get(ApiKeyRow, key_id, with_for_update=True)
    if row and row.revoked_at is None:
        row.revoked_at = datetime.now(UTC)
    return row
