"""Keys with which payloads are encrypted before they are sent to Temporal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

ENCRYPTION_KEY_BYTES: Final = 32
KEY_ID_PATTERN: Final = r"[A-Za-z0-9._-]{1,32}"
"""The length limit keeps an encrypted summary, which contains the key id, within Temporal's limit. A key in
base64 never matches, so that a key given as an id is rejected."""


@dataclass(frozen=True)
class EncryptionKeys:
    """The keys that decrypt payloads, and the one that encrypts new ones.

    Args:
        keys: each key, of `ENCRYPTION_KEY_BYTES`, by its id.
        key_id: the id of the key for new payloads. None: new payloads are not encrypted.
    """

    keys: Mapping[str, bytes] = field(repr=False)
    key_id: str | None
