"""Code shared by both functions: API requests with a time limit, the API key, and Thing names."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Thread
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

URL_VARIABLE: Final = "THINGBRIDGE_URL"
KEY_VARIABLE: Final = "THINGBRIDGE_KEY"
KEY_SECRET_VARIABLE: Final = "THINGBRIDGE_KEY_SECRET"  # noqa: S105  # the name of a variable
TENANT_ID_VARIABLE: Final = "THINGBRIDGE_TENANT_ID"

_SERIAL_NUMBER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,93}")
_THING_NAME: Final = re.compile(rf"t([0-9a-f]{{32}})-({_SERIAL_NUMBER.pattern})")
_NO_TENANT: Final = UUID(int=0)
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_RESPONSE_LIMIT_BYTES: Final = 65_536
_PAUSE_SECONDS: Final = 0.1
# The share of the time for the first attempt. After a lost packet, enough is left for a second one.
_FIRST_SHARE: Final = 0.6
_TEMPORARY: Final = frozenset({408, 429, *range(500, 600)})
_UNAUTHORIZED: Final = 401


class ConfigurationError(ValueError):
    """An environment variable of the function is missing or wrong."""


class NoResponseError(RuntimeError):
    """The bridge sent no response in time, or one that its API does not send."""


@dataclass(frozen=True)
class Response:
    """A response of the bridge."""

    status: int
    body: Mapping[str, Any]

    @property
    def is_temporary(self) -> bool:
        """Whether a retry may succeed: the bridge was busy, or the API key was replaced."""
        return self.status in _TEMPORARY or self.status == _UNAUTHORIZED

    @property
    def problem(self) -> str:
        """The status, title and detail of an error response."""
        return f"{self.status} {self.body.get('title')}: {self.body.get('detail')}"


@dataclass(frozen=True)
class ThingName:
    """The tenant and serial number in a Thing name. 32 zeros are the null tenant."""

    tenant_id: UUID | None
    serial_number: str

    @classmethod
    def of(cls, tenant_id: UUID | None, serial_number: object) -> "ThingName | None":
        """Return the name for a tenant and serial number, or None if the serial number is invalid."""
        if not isinstance(serial_number, str) or not _SERIAL_NUMBER.fullmatch(serial_number):
            return None
        return cls(tenant_id, serial_number)

    @classmethod
    def read(cls, name: object) -> "ThingName | None":
        """Parse a Thing name. Return None if the bridge does not build such names."""
        match = _THING_NAME.fullmatch(name) if isinstance(name, str) else None
        return cls(null_if_zero(UUID(match[1])), match[2]) if match else None

    def __str__(self) -> str:
        return f"t{(self.tenant_id or _NO_TENANT).hex}-{self.serial_number}"

    @property
    def body(self) -> dict[str, Any]:
        """The members that identify the device in API requests."""
        tenant_id = str(self.tenant_id) if self.tenant_id else None
        return {"serialNumber": self.serial_number, "tenantId": tenant_id}


def null_if_zero(tenant_id: UUID) -> UUID | None:
    """Return the tenant, or None for the zero UUID."""
    return None if tenant_id == _NO_TENANT else tenant_id


class Key:
    """The API key. It is read once, and again after the bridge has refused it."""

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._cached: str | None = None

    @classmethod
    def from_environment(cls) -> "Key":
        """Return the key from its variable, or from the secret that the other variable names.

        Raises:
            ConfigurationError: neither or both variables are set.
        """
        key, secret = os.environ.get(KEY_VARIABLE), os.environ.get(KEY_SECRET_VARIABLE)
        if bool(key) == bool(secret):
            raise ConfigurationError(
                f"set either {KEY_SECRET_VARIABLE} (a secret's name or ARN) or {KEY_VARIABLE}"
            )
        if key:
            return cls(lambda: key)
        config = Config(connect_timeout=1, read_timeout=1, retries={"total_max_attempts": 2})
        secrets = boto3.client("secretsmanager", config=config)
        return cls(lambda: secrets.get_secret_value(SecretId=str(secret))["SecretString"].strip())

    def __call__(self) -> str:
        if self._cached is None:
            self._cached = self._read()
        return self._cached

    def forget(self) -> None:
        """Read the key again before the next request."""
        self._cached = None


class Api:
    """A client of the bridge's API."""

    def __init__(self, url: str, key: Key) -> None:
        self._key = key
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path.rstrip("/")
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        if parts.scheme != "https" and not (parts.scheme == "http" and self._host in _LOOPBACK):
            raise ConfigurationError(
                f"{URL_VARIABLE} must begin with https://, because requests contain a key"
            )

    @classmethod
    def from_environment(cls) -> "Api":
        """Return the client configured by the environment variables.

        Raises:
            ConfigurationError: a variable is missing or wrong.
        """
        return cls(os.environ.get(URL_VARIABLE, ""), Key.from_environment())

    def post(self, path: str, body: Mapping[str, Any], seconds: float) -> Response:
        """Send a request, and retry it once after a temporary failure if there is time.

        Raises:
            NoResponseError: there was no response, or not one of the API.
        """
        ends = time.monotonic() + seconds
        try:
            first = self._within(_FIRST_SHARE * seconds, path, body)
            if not first.is_temporary:
                return first
        except NoResponseError:
            first = None
        if first is not None and first.status == _UNAUTHORIZED:
            self._key.forget()
        time.sleep(max(0.0, min(_PAUSE_SECONDS, ends - time.monotonic())))
        return self._within(ends - time.monotonic(), path, body)

    def _within(self, seconds: float, path: str, body: Mapping[str, Any]) -> Response:
        """Make one attempt. A socket timeout would not limit name resolution or a slow stream of bytes."""
        result: Future[Response] = Future()

        def attempt() -> None:
            try:
                result.set_result(self._attempt(seconds, path, body))
            except Exception as error:  # noqa: BLE001  # raised by result()
                result.set_exception(error)

        if seconds <= 0:
            raise NoResponseError("no time was left for a request")
        Thread(target=attempt, daemon=True).start()
        try:
            return result.result(seconds)
        except (FutureTimeoutError, TimeoutError):
            raise NoResponseError(f"no response within {seconds:.1f} s") from None

    def _attempt(self, seconds: float, path: str, body: Mapping[str, Any]) -> Response:
        try:
            headers = {"Authorization": f"Bearer {self._key()}", "Content-Type": "application/json"}
        except (BotoCoreError, ClientError, KeyError) as error:
            raise NoResponseError(f"cannot read the secret with the API key: {error}") from None
        connection = self._connection(self._host, self._port, timeout=seconds)
        try:
            connection.request("POST", self._path + path, json.dumps(body), headers)
            response = connection.getresponse()
            content = json.loads(response.read(_RESPONSE_LIMIT_BYTES))
        except (OSError, HTTPException) as error:
            raise NoResponseError(f"{type(error).__name__}: {error}") from None
        except ValueError:
            raise NoResponseError(f"status {response.status} without JSON") from None
        finally:
            connection.close()
        if not isinstance(content, dict):
            raise NoResponseError(f"status {response.status} without a JSON object")
        return Response(response.status, content)


def tenant_from_environment() -> UUID | None:
    """Return the tenant of the devices, the zero UUID for devices without a tenant, or None if unset.

    Raises:
        ConfigurationError: the variable is not a UUID.
    """
    tenant_id = os.environ.get(TENANT_ID_VARIABLE)
    if not tenant_id:
        return None
    try:
        return UUID(tenant_id)
    except ValueError:
        raise ConfigurationError(
            f"{TENANT_ID_VARIABLE} must be a UUID, the zero UUID for devices without a tenant"
        ) from None
