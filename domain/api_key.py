"""The keys of the HTTP doors: how one is written, and what of it may be kept."""

import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Self

_WRITTEN: Final = re.compile(r"tb_([0-9a-f]{8})_([A-Za-z0-9_-]{43})", re.ASCII)


@dataclass(frozen=True)
class ApiKey:
    """A key as it may be kept and compared: its id, by which it is found, and the hash of its secret."""

    id: str
    # A plain hash will do, where a password needs a slow one: 32 random bytes cannot be guessed.
    digest: bytes

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Take a key as its owner writes it; None where no key is written like that."""
        match = _WRITTEN.fullmatch(text)
        return cls(match[1], sha256(match[2].encode()).digest()) if match else None

    @classmethod
    def make(cls) -> tuple[Self, str]:
        """A new key, and the one time that it is to be seen."""
        text = f"tb_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"
        key = cls.read(text)
        assert key is not None  # noqa: S101  # it is written as it is read
        return key, text
