"""The botocore credential provider that signs requests with the keys of `FleetCredentials`."""

from typing import Any

import botocore.session
from botocore.credentials import CredentialProvider, DeferredRefreshableCredentials, ReadOnlyCredentials
from botocore.exceptions import CredentialRetrievalError

from aws.credentials import AwsKeys, FleetCredentials
from aws.errors import ERRORS, CredentialsRejectedError
from aws.guard import before_request


class FleetCredentialProvider(CredentialProvider):
    """Signs each request with the current keys, and sends a request once more if AWS rejected its keys."""

    METHOD = "thingbridge-fleet-secret"

    def __init__(self, credentials: FleetCredentials) -> None:
        super().__init__()
        self._credentials = credentials

    def register(self, session: botocore.session.Session) -> None:
        """Make this the first provider of a session, for every client that the session creates."""
        session.get_component("credential_provider").insert_before("env", self)
        session.register("before-sign", self._record_keys)
        session.register("needs-retry", self._retry_with_new_keys)

    def load(self) -> DeferredRefreshableCredentials:
        """Return the credentials that botocore keeps for all requests."""
        return _CurrentCredentials(self._credentials)

    def _record_keys(self, **event: Any) -> None:
        event["request"].context[self.METHOD] = self._credentials.keys

    def _retry_with_new_keys(
        self, **event: Any
    ) -> Any:  # None, or seconds as a float; botocore's stubs allow only None
        """Return 0, to have botocore send the request again, if AWS rejected its keys and there are new ones.

        This is a botocore handler, not part of `AwsClients.call`, so that it covers each page of a listing.
        """
        rejected = event["request_dict"]["context"].get(self.METHOD)
        response: dict[str, Any] = event["response"][1] if event["response"] else {}
        code = response.get("Error", {}).get("Code")
        if rejected is None or event["attempts"] > 1 or ERRORS.get(str(code)) is not CredentialsRejectedError:
            return None
        before_request.get()()
        if not self._credentials.replace(rejected):
            return None
        before_request.get()()
        return 0.0


class _CurrentCredentials(DeferredRefreshableCredentials):
    """botocore's refreshable credentials, refreshed at the first signature after the keys changed.

    The keys have no known end, so the clock checks of the base class are not used.
    """

    def __init__(self, credentials: FleetCredentials) -> None:
        super().__init__(self._metadata, FleetCredentialProvider.METHOD)
        self._credentials = credentials
        self._loaded: AwsKeys | None = None

    def refresh_needed(self, refresh_in: int | None = None) -> bool:
        """Return True if the keys changed. botocore passes 0 to check for expiry, which is unknown here."""
        return refresh_in != 0 and (self._loaded is None or self._loaded is not self._credentials.keys)

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Return the current keys."""
        keys = self._credentials.keys
        frozen = super().get_frozen_credentials()
        # Set after the refresh: until then other threads would get the old keys without a refresh.
        self._loaded = keys
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
            # The real end is unknown: AWS rejects the keys when they have expired.
            "expiry_time": "9999-12-31T00:00:00Z",
        }
