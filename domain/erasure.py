"""Erasing devices that are over: what stands for a serial number, and how far a sweep has come."""

import hashlib
import hmac
from typing import Final

from pydantic import BaseModel

KEY_LENGTH: Final = 32
"""Characters at least: serial numbers can be guessed, so that the key alone keeps them."""

_MARK_LENGTH: Final = 8


class SerialHashing:
    """HMAC-SHA-256 of a tenant's serial number under the operator's key.

    Each hash begins with a mark of its key, so that a lost or changed key is noticed, and does not
    silently admit every serial number that was denied.
    """

    def __init__(self, key: str) -> None:
        self._key = key.encode()
        self.mark = self._digest("thingbridge serial hash")[:_MARK_LENGTH]

    def of(self, thing_name: str) -> str:
        """The hash of tenant and serial number, which a Thing name says both."""
        return f"{self.mark}:{self._digest(thing_name)}"

    def _digest(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


class Erased(BaseModel):
    """How many devices were erased."""

    count: int = 0
