"""AWS keys that are stored in a secret: read repeatedly, with the last valid keys kept."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, Secret, ValidationError
from pydantic.alias_generators import to_camel

from aws.errors import AwsError

logger = logging.getLogger("thingbridge.credentials")

# The shortest time between two reads of the secret while AWS rejects the keys in it.
_REJECTED_KEYS_SECONDS: Final = 5.0

_SecretKey = Annotated[str, Field(pattern="^[!-~]+$")]
# An empty token is treated as no token.
_Token = Annotated[str, Field(pattern="^[!-~]*$")]


class InvalidSecretError(ValueError):
    """The secret does not hold valid keys. The message names the fields, never their values."""


class AwsKeys(BaseModel):
    """The keys in the secret. Other fields of the secret are ignored."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel)

    access_key_id: str = Field(pattern="^[A-Za-z0-9_]{16,128}$", repr=False)
    secret_access_key: Secret[_SecretKey]
    session_token: Secret[_Token] | None = None

    @classmethod
    def read(cls, secret: str) -> "AwsKeys":
        """Parse the text of the secret.

        Raises:
            InvalidSecretError: the text is not a JSON object, or a field is missing or not valid.
        """
        try:
            return cls.model_validate_json(secret)
        except ValidationError as error:
            # Neither input nor context: they contain the keys.
            faults = error.errors(include_url=False, include_input=False, include_context=False)
        raise InvalidSecretError("; ".join(_fault(fault["type"], fault["loc"]) for fault in faults))


def _fault(kind: str, location: tuple[int | str, ...]) -> str:
    # Not pydantic's message: for text that is not JSON it can quote the text.
    field = location[0] if location else "the secret"
    if kind in {"json_invalid", "model_type"}:
        return f"{field}: must be a JSON object"
    return f"{field}: {'is missing' if kind == 'missing' else 'is not valid'}"


class FleetCredentials:
    """The AWS keys in a secret: available after the first successful read, replaced by each later one.

    All methods are thread-safe. One thread at a time reads the secret.

    Args:
        secret_arn: the secret's ARN.
        read: returns the secret's text, or raises an AwsError.
        on_refresh: called after each read, with True if it succeeded.
    """

    def __init__(
        self,
        secret_arn: str,
        read: Callable[[], str],
        on_refresh: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.secret_arn = secret_arn
        self.fetched_at: datetime | None = None
        """The time of the last successful read."""
        self.checked_at = datetime.now(UTC)
        """The time of the last read, successful or not."""
        self.error: str | None = None
        """The code of the error of the last read; None if it succeeded."""
        self._read = read
        self._on_refresh = on_refresh
        self._keys: AwsKeys | None = None
        self._lock = threading.Lock()
        self._read_again_at = 0.0

    @property
    def keys(self) -> AwsKeys | None:
        """The current keys; None before the first successful read."""
        return self._keys

    @property
    def ready(self) -> bool:
        """True after the first successful read."""
        return self._keys is not None

    @property
    def age_seconds(self) -> float | None:
        """The time since the last successful read; None before the first one."""
        if self.fetched_at is None:
            return None
        return max(0.0, (datetime.now(UTC) - self.fetched_at).total_seconds())

    def refresh(self) -> bool:
        """Read the secret, and return True if that succeeded. Otherwise the last valid keys stay current."""
        with self._lock:
            return self._refresh()

    def replace(self, rejected: AwsKeys) -> bool:
        """Return True if the current keys differ from the keys that AWS rejected; read the secret if needed.

        Calls that are rejected at the same time cause one read together. If the secret still holds the
        rejected keys, it is not read again for some seconds.
        """
        with self._lock:
            if self._keys == rejected and time.monotonic() >= self._read_again_at:
                logger.info("AWS rejects the current keys: reading the secret again")
                self._refresh()
                if self._keys == rejected:
                    self._read_again_at = time.monotonic() + _REJECTED_KEYS_SECONDS
            return self._keys != rejected

    def _refresh(self) -> bool:
        try:
            keys = AwsKeys.read(self._read())
        except AwsError as error:
            self._record(error.kind, str(error))
        except InvalidSecretError as error:
            self._record("InvalidSecret", str(error))
        except Exception as error:  # noqa: BLE001  # the last valid keys stay current after any error
            # Only its type: the message of an unexpected error can contain a key.
            self._record(type(error).__name__, "an unexpected error")
        else:
            self._record(None, "")
            self.fetched_at = self.checked_at
            if keys != self._keys:
                logger.info("new AWS keys are in use", extra={"secret_arn": self.secret_arn})
                self._keys = keys
        self._on_refresh(self.error is None)
        return self.error is None

    def _record(self, error: str | None, what: str) -> None:
        self.checked_at, self.error = datetime.now(UTC), error
        if error is not None:
            logger.warning(
                "the secret with the AWS keys was not read, %s: %s: %s",
                "the last valid keys stay in use" if self.ready else "AWS is not called",
                error,
                what,
                extra={"secret_arn": self.secret_arn},
            )
