"""API keys: their text format, and the parts that are stored."""

import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Self

_FORMAT: Final = re.compile(r"tb_([0-9a-f]{8})_([A-Za-z0-9_-]{43})", re.ASCII)


@dataclass(frozen=True)
class ApiKey:
    """An API key as it is stored and compared: its id, and the hash of its secret."""

    id: str
    # A plain hash is enough, unlike for a password: 32 random bytes cannot be guessed.
    digest: bytes

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse a key; return None for text that does not have a key's format."""
        match = _FORMAT.fullmatch(text)
        return cls(match[1], sha256(match[2].encode()).digest()) if match else None

    @classmethod
    def generate(cls) -> tuple[Self, str]:
        """Return a new key and its text, which is not stored and cannot be shown again."""
        text = f"tb_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"
        key = cls.parse(text)
        assert key is not None  # noqa: S101  # the text has the format that parse() accepts
        return key, text
