"""The keys for AWS, where a secret holds them: read again and again, and the last good ones kept."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, Secret, ValidationError
from pydantic.alias_generators import to_camel
from temporalio.exceptions import ApplicationError

logger = logging.getLogger("thingbridge.credentials")

# A fleet whose keys AWS refuses, and whose secret holds no others yet, asks for them no more often than this.
_FUTILE_SECONDS: Final = 5.0

_SecretKey = Annotated[str, Field(pattern="^[!-~]+$")]
# Empty is as good as none.
_Token = Annotated[str, Field(pattern="^[!-~]*$")]


class InvalidSecretError(ValueError):
    """The secret is not what it must be; says which field, never its value."""


class AwsKeys(BaseModel):
    """Keys as the secret holds them; what else a rotation keeps beside them is its own."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel)

    access_key_id: str = Field(pattern="^[A-Za-z0-9_]{16,128}$", repr=False)
    secret_access_key: Secret[_SecretKey]
    session_token: Secret[_Token] | None = None

    @classmethod
    def read(cls, secret: str) -> "AwsKeys":
        """Read the secret's text.

        Raises:
            InvalidSecretError: it is not JSON, or a field is missing or wrong.
        """
        try:
            return cls.model_validate_json(secret)
        except ValidationError as error:
            # Neither input nor context: they are the keys.
            faults = error.errors(include_url=False, include_input=False, include_context=False)
        raise InvalidSecretError("; ".join(_fault(fault["type"], fault["loc"]) for fault in faults))


def _fault(kind: str, where: tuple[int | str, ...]) -> str:
    # Not pydantic's own words: what they say of a text that is no JSON depends on the text.
    field = where[0] if where else "the secret"
    if kind in {"json_invalid", "model_type"}:
        return f"{field}: must be a JSON object"
    return f"{field}: {'is missing' if kind == 'missing' else 'is not valid'}"


class FleetCredentials:
    """The keys in a secret. They are there once it was read well, and stay until it was read well again.

    Any thread may ask; one reads at a time.

    Args:
        secret_arn: the secret's ARN.
        read: gives the secret's text, or raises an ApplicationError that says why not.
        on_refresh: told of each read whether it went well.
    """

    def __init__(
        self,
        secret_arn: str,
        read: Callable[[], str],
        on_refresh: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.secret_arn = secret_arn
        self.fetched_at: datetime | None = None
        """When the secret was last read well."""
        self.checked_at = datetime.now(UTC)
        """When it was last tried to read it."""
        self.error: str | None = None
        """What went wrong then, as a code."""
        self._read = read
        self._on_refresh = on_refresh
        self._keys: AwsKeys | None = None
        self._reading = threading.Lock()
        self._futile_until = 0.0

    @property
    def keys(self) -> AwsKeys | None:
        """The keys in force; None until the secret was first read."""
        return self._keys

    @property
    def ready(self) -> bool:
        """Whether there are keys."""
        return self._keys is not None

    @property
    def age_seconds(self) -> float | None:
        """How long ago the secret was last read well."""
        if self.fetched_at is None:
            return None
        return max(0.0, (datetime.now(UTC) - self.fetched_at).total_seconds())

    def refresh(self) -> bool:
        """Read the secret, and return whether that went well; if not, the last good keys stay."""
        with self._reading:
            return self._refresh()

    def replace(self, refused: AwsKeys) -> bool:
        """Whether there are other keys than those AWS refused; the secret is read where that is not so yet.

        However many calls are refused at once, the secret is read once for all of them; where it holds
        nothing else it is left alone for some seconds.
        """
        with self._reading:
            if self._keys == refused and time.monotonic() >= self._futile_until:
                logger.info("AWS refuses the keys in force: reading the secret again")
                self._refresh()
                if self._keys == refused:
                    self._futile_until = time.monotonic() + _FUTILE_SECONDS
            return self._keys != refused

    def _refresh(self) -> bool:
        try:
            keys = AwsKeys.read(self._read())
        except ApplicationError as error:
            self._note(error.type or "Unknown", error.message)
        except InvalidSecretError as error:
            self._note("InvalidSecret", str(error))
        except Exception as error:  # noqa: BLE001  # whatever it is, the last good keys stay
            # Its type alone: nobody knows what it says.
            self._note(type(error).__name__, "an error that was not expected")
        else:
            self._note(None, "")
            self.fetched_at = self.checked_at
            if keys != self._keys:
                logger.info("new AWS keys are in force", extra={"secret_arn": self.secret_arn})
                self._keys = keys
        self._on_refresh(self.error is None)
        return self.error is None

    def _note(self, error: str | None, what: str) -> None:
        self.checked_at, self.error = datetime.now(UTC), error
        if error is not None:
            logger.warning(
                "the secret with the AWS keys was not read, %s: %s: %s",
                "the last good keys stay in force" if self.ready else "AWS is not called",
                error,
                what,
                extra={"secret_arn": self.secret_arn},
            )
