"""Who calls, and what of the fleet is theirs."""

import hmac
import time
from dataclasses import dataclass
from http import HTTPStatus
from uuid import UUID

from api.database import Database
from api.errors import Refused, unauthenticated
from db.api_keys import valid_key
from domain.api_key import ApiKey


@dataclass(frozen=True)
class Caller:
    """The owner of a key: a tenant, or an operator, who is of no tenant and sees all."""

    key_id: str
    tenant_id: UUID | None

    @property
    def is_operator(self) -> bool:
        """Whether the key is an operator's."""
        return self.tenant_id is None

    def tenant_for(self, asked: UUID | None) -> UUID | None:
        """The tenant that a call is about: a tenant's own, whatever it says; an operator's word.

        Raises:
            Refused: 403, a tenant named another.
        """
        if self.is_operator:
            return asked
        if asked not in (None, self.tenant_id):
            raise Refused(HTTPStatus.FORBIDDEN, "the key is another tenant's: leave tenantId out")
        return self.tenant_id

    def sees(self, tenant_id: UUID | None) -> bool:
        """Whether what belongs to this tenant is there at all, for the caller."""
        return self.is_operator or tenant_id == self.tenant_id

    def require_operator(self, what: str) -> None:
        """Refuse a tenant what concerns the whole fleet.

        Raises:
            Refused: 403.
        """
        if not self.is_operator:
            raise Refused(HTTPStatus.FORBIDDEN, f"{what} with an operator's key only")


class Keys:
    """Tells callers by their keys, and remembers for some seconds whom it has told."""

    def __init__(self, database: Database, cache_seconds: float) -> None:
        self._database = database
        self._cache_seconds = cache_seconds
        # Holds keys that are in the table alone, so what is guessed at does not make it grow.
        self._known: dict[str, tuple[bytes, Caller, float]] = {}

    async def caller(self, authorization: str | None) -> Caller:
        """Who sends this `Authorization` header.

        Raises:
            Refused: 401.
        """
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise unauthenticated("a key is needed: Authorization: Bearer KEY")
        key = ApiKey.read(text.strip())
        if key is None or (caller := await self._recognise(key)) is None:
            raise unauthenticated("this is no key, or it was revoked")
        return caller

    async def _recognise(self, key: ApiKey) -> Caller | None:
        digest, caller, until = self._known.get(key.id, (b"", None, 0.0))
        now = time.monotonic()
        if caller is None or now >= until:
            self._known.pop(key.id, None)
            found = await self._database(lambda session: valid_key(session, key.id))
            if found is None:
                return None
            digest, caller = found.digest, Caller(found.id, found.tenant_id)
            self._known[key.id] = digest, caller, now + self._cache_seconds
        return caller if hmac.compare_digest(digest, key.digest) else None
