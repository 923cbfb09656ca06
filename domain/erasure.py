"""Hashes of erased serial numbers, and the progress of an erasure sweep."""

import hashlib
import hmac
from typing import Final

from domain.model import Message

KEY_LENGTH: Final = 32
"""The minimum length of a hash key. Serial numbers can be guessed, so that only the key protects them."""

_KEY_ID_LENGTH: Final = 8


class SerialHashing:
    """HMAC-SHA-256 of a tenant's serial number with the operator's hash key.

    Each hash begins with the id of its key. A lost or changed key is therefore detected, and does not admit
    serial numbers that were denied.
    """

    def __init__(self, key: str) -> None:
        self._key = key.encode()
        self.key_id = self._digest("thingbridge serial hash")[:_KEY_ID_LENGTH]

    def of(self, thing_name: str) -> str:
        """Return the hash of a Thing name, which consists of tenant and serial number."""
        return f"{self.key_id}:{self._digest(thing_name)}"

    def _digest(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


class Erased(Message):
    """The number of erased devices."""

    count: int = 0
