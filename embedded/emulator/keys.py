"""Revoked access keys. AWS refuses calls signed with them; moto accepts every key."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from embedded.emulator.calls import AwsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedded.emulator.calls import Call

_ACCESS_KEY_ID = re.compile(r"Credential=(\w+)/")


class RevokedKeys:
    """The ids of revoked keys, and the number of refused calls of each."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._revoked_at: dict[str, float] = {}
        self._refused: Counter[str] = Counter()

    def add(self, access_key_id: str, grace_seconds: float) -> None:
        """Revoke a key after a grace period. On AWS, too, a revocation needs time to reach every service."""
        with self._guard:
            self._revoked_at[access_key_id] = time.monotonic() + grace_seconds

    def clear(self) -> None:
        """Accept every key again."""
        with self._guard:
            self._revoked_at.clear()
            self._refused.clear()

    def refused(self) -> Mapping[str, int]:
        """Return the number of refused calls of each revoked key."""
        with self._guard:
            return dict(self._refused)

    def refuse(self, call: Call) -> None:
        """Raise the error of the service if a revoked key signed the call."""
        signed = _ACCESS_KEY_ID.search(call.environ.get("HTTP_AUTHORIZATION", ""))
        with self._guard:
            revoked_at = self._revoked_at.get(signed[1]) if signed else None
            if signed is None or revoked_at is None or time.monotonic() < revoked_at:
                return
            self._refused[signed[1]] += 1
        code = "InvalidClientTokenId" if call.service == "sts" else "UnrecognizedClientException"
        raise AwsError(403, code, "The security token included in the request is invalid.")
