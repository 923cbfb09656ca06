"""The encryption of payloads, so that Temporal cannot read what it stores."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import (
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    PayloadCodec,
)

from domain.encryption import EncryptionKeys
from domain.operator_error import OperatorError

ENCODING: Final = b"binary/encrypted"
KEY_ID: Final = "encryption-key-id"
_NONCE_BYTES: Final = 12
_LONGEST_SHOWN: Final = 64


class UnreadablePayloadError(OperatorError):
    """A payload is encrypted, and cannot be decrypted here.

    It does not fail the workflow: the workflow task is retried until the key is configured.
    """


class EncryptionCodec(PayloadCodec):
    """Encrypt payloads with AES-256-GCM under keys that have ids; docs/encryption.md has the format.

    A payload that is not encrypted is returned unchanged, because clients may send plain JSON.
    """

    def __init__(self, keys: EncryptionKeys) -> None:
        self._ciphers = {key_id.encode(): AESGCM(key) for key_id, key in keys.keys.items()}
        self._key_id = keys.key_id.encode() if keys.key_id is not None else None

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Encrypt payloads with their metadata; without a key for new payloads, return them unchanged."""
        if self._key_id is None:
            return list(payloads)
        return [self._encrypted(payload, self._key_id) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Decrypt the payloads that are encrypted.

        Raises:
            UnreadablePayloadError: the key is missing or is another key, or the payload was changed.
        """
        return [self._decrypted(payload) for payload in payloads]

    def _encrypted(self, payload: Payload, key_id: bytes) -> Payload:
        nonce = os.urandom(_NONCE_BYTES)
        content = self._ciphers[key_id].encrypt(nonce, payload.SerializeToString(), _bound_to(key_id))
        return Payload(metadata={"encoding": ENCODING, KEY_ID: key_id}, data=nonce + content)

    def _decrypted(self, payload: Payload) -> Payload:
        # A payload without a key id is from another codec: the payload converter handles or rejects it.
        if payload.metadata.get("encoding") != ENCODING or KEY_ID not in payload.metadata:
            return payload
        key_id = payload.metadata[KEY_ID]
        shown = key_id.decode("ascii", "replace")[:_LONGEST_SHOWN]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise UnreadablePayloadError(
                f"a payload is encrypted under the key {shown!r}, which is not in IOT_AWS_ENCRYPTION__KEYS"
            )
        nonce, content = payload.data[:_NONCE_BYTES], payload.data[_NONCE_BYTES:]
        try:
            return Payload.FromString(cipher.decrypt(nonce, content, _bound_to(key_id)))
        except (InvalidTag, ValueError):
            raise UnreadablePayloadError(
                f"a payload cannot be decrypted under the key {shown!r}: it was changed on its way, or "
                "IOT_AWS_ENCRYPTION__KEYS has another key of that id where it was encrypted"
            ) from None


def data_converter(keys: EncryptionKeys | None) -> DataConverter:
    """Return the data converter for these keys; without keys, payloads are plain JSON."""
    if keys is None:
        return pydantic_data_converter
    reading = dataclasses.replace(pydantic_data_converter, payload_codec=EncryptionCodec(keys))
    if keys.key_id is None:
        return reading
    # Otherwise error messages and stack traces, which contain Thing names, would be stored in plain text.
    return dataclasses.replace(reading, failure_converter_class=DefaultFailureConverterWithEncodedAttributes)


def _bound_to(key_id: bytes) -> bytes:
    """Return the authenticated data: a payload cannot be moved to another encoding or key id."""
    return ENCODING + b"\0" + key_id
