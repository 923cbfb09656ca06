"""The keys for AWS, where a secret holds them: read again and again, and the last good ones kept."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import botocore.session
from botocore.credentials import (
    CredentialProvider,
    DeferredRefreshableCredentials,
    ReadOnlyCredentials,
)
from botocore.exceptions import CredentialRetrievalError
from pydantic import BaseModel, ConfigDict, Field, Secret, ValidationError
from pydantic.alias_generators import to_camel

from aws.errors import ERRORS, AwsError, CredentialsRejectedError
from aws.guard import before_request

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
        read: gives the secret's text, or raises an AwsError.
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
        except AwsError as error:
            self._note(error.code, error.what)
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


class _KeysInForce(DeferredRefreshableCredentials):
    """botocore's refreshable credentials, refreshed at the next signature after there are other keys.

    That is known without a clock, which they would look at, and parse an end for, at each signature.
    """

    def __init__(self, credentials: FleetCredentials) -> None:
        super().__init__(self._metadata, FleetCredentialProvider.METHOD)
        self._credentials = credentials
        self._given: AwsKeys | None = None

    def refresh_needed(self, refresh_in: int | None = None) -> bool:
        # With 0 it is asked whether what it was given has expired.
        return refresh_in != 0 and (self._given is None or self._given is not self._credentials.keys)

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        keys = self._credentials.keys
        frozen = super().get_frozen_credentials()
        # Only now, for until then other threads would be given the old ones.
        self._given = keys
        return frozen

    def _metadata(self) -> dict[str, str | None]:
        keys = self._credentials.keys
        if keys is None:
            raise CredentialRetrievalError(provider=self.method, error_msg="the secret has not been read yet")
        token = keys.session_token
        return {
            "access_key": keys.access_key_id,
            "secret_key": keys.secret_access_key.get_secret_value(),
            "token": token.get_secret_value() if token else None,
            # Nobody knows; AWS's refusal tells.
            "expiry_time": "9999-12-31T00:00:00Z",
        }


class FleetCredentialProvider(CredentialProvider):
    """Has botocore sign each request with the keys then in force, and a refused one once more with newer."""

    METHOD = "thingbridge-fleet-secret"

    def __init__(self, credentials: FleetCredentials) -> None:
        super().__init__()
        self._credentials = credentials

    def join(self, session: botocore.session.Session) -> None:
        """Stand before all other providers of a session, for every client it makes."""
        session.get_component("credential_provider").insert_before("env", self)
        session.register("before-sign", self._note_keys)
        session.register("needs-retry", self._sign_again)

    def load(self) -> DeferredRefreshableCredentials:
        return _KeysInForce(self._credentials)

    def _note_keys(self, **event: Any) -> None:
        event["request"].context[self.METHOD] = self._credentials.keys

    def _sign_again(self, **event: Any) -> Any:  # None or seconds; botocore's stubs know of None alone
        """Where AWS refuses the keys, and there are others: have botocore send the request anew, at once.

        Here and not in `Aws.call`, so that it holds for each request of a listing too.
        """
        refused = event["request_dict"]["context"].get(self.METHOD)
        answer: dict[str, Any] = event["response"][1] if event["response"] else {}
        code = answer.get("Error", {}).get("Code")
        if refused is None or event["attempts"] > 1 or ERRORS.get(str(code)) is not CredentialsRejectedError:
            return None
        before_request.get()()
        if not self._credentials.replace(refused):
            return None
        before_request.get()()
        return 0.0
