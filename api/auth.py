"""Authentication by API key, and what a caller may see and do."""

import hmac
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from uuid import UUID

from api.database import Database
from api.errors import ApiError, unauthenticated
from db.api_keys import valid_key
from domain.api_key import ApiKey


@dataclass(frozen=True)
class Caller:
    """The owner of an API key: a tenant, or an operator, who may see the data of all tenants."""

    key_id: str
    tenant_id: UUID | None

    @property
    def is_operator(self) -> bool:
        """Return whether the key is an operator's."""
        return self.tenant_id is None

    def tenant_for(self, requested: UUID | None) -> UUID | None:
        """Return the tenant of a request: a tenant's own, or the one that an operator names.

        Raises:
            ApiError: 403, a tenant names another tenant.
        """
        if self.is_operator:
            return requested
        if requested not in (None, self.tenant_id):
            raise ApiError(HTTPStatus.FORBIDDEN, "the key belongs to another tenant: leave tenantId out")
        return self.tenant_id

    def may_see(self, tenant_id: UUID | None) -> bool:
        """Return whether the caller may see the data of this tenant."""
        return self.is_operator or tenant_id == self.tenant_id

    def require_operator(self, operation: str) -> None:
        """Check that the caller is an operator, for an operation on the whole fleet.

        Raises:
            ApiError: 403, the key is a tenant's.
        """
        if not self.is_operator:
            raise ApiError(HTTPStatus.FORBIDDEN, f"{operation} requires an operator's key")


CALLER: Final = "thingbridge.caller"
"""The key of the caller in a request's ASGI scope. The prefix avoids clashes with the names of a host."""


class Authenticator:
    """Identifies callers by their API keys, and caches valid keys for a short time.

    Args:
        database: holds the keys.
        cache_seconds: how long a key is accepted without another query of the database.
    """

    def __init__(self, database: Database, cache_seconds: float) -> None:
        self._database = database
        self._cache_seconds = cache_seconds
        # Holds only keys that are in the database, so that guessed keys do not make it grow.
        self._cache: dict[str, tuple[bytes, Caller, float]] = {}

    async def authenticate(self, authorization: str | None) -> Caller:
        """Return the caller of a request with this `Authorization` header.

        Raises:
            ApiError: 401, the key is missing, not valid or revoked.
        """
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise unauthenticated("an API key is required: Authorization: Bearer KEY")
        key = ApiKey.parse(text.strip())
        if key is None or (caller := await self._find(key)) is None:
            raise unauthenticated("the API key is not valid or was revoked")
        return caller

    async def _find(self, key: ApiKey) -> Caller | None:
        digest, caller, expires_at = self._cache.get(key.id, (b"", None, 0.0))
        now = time.monotonic()
        if caller is None or now >= expires_at:
            self._cache.pop(key.id, None)
            found = await self._database(lambda session: valid_key(session, key.id))
            if found is None:
                return None
            digest, caller = found.digest, Caller(found.id, found.tenant_id)
            self._cache[key.id] = digest, caller, now + self._cache_seconds
        return caller if hmac.compare_digest(digest, key.digest) else None
