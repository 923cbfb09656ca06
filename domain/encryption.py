"""The keys under which payloads are encrypted before Temporal has them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

ENCRYPTION_KEY_BYTES: Final = 32
KEY_ID_PATTERN: Final = r"[A-Za-z0-9._-]{1,32}"
"""An encrypted summary must fit Temporal's limit, its key's id included. No key in base64 is of this form."""


@dataclass(frozen=True)
class EncryptionKeys:
    """Every key that reads, and the one that writes.

    Args:
        keys: each key, of `ENCRYPTION_KEY_BYTES`, by its id.
        key_id: the one for what is new; None: it stays plain.
    """

    keys: Mapping[str, bytes] = field(repr=False)
    key_id: str | None
