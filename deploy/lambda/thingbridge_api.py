"""What both functions need of the bridge: its API called inside a time limit, its key, its Thing names."""

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
KEY_SECRET_VARIABLE: Final = "THINGBRIDGE_KEY_SECRET"  # noqa: S105  # the name of one
TENANT_ID_VARIABLE: Final = "THINGBRIDGE_TENANT_ID"

_SERIAL_NUMBER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,93}")
_THING_NAME: Final = re.compile(rf"t([0-9a-f]{{32}})-({_SERIAL_NUMBER.pattern})")
_NO_TENANT: Final = UUID(int=0)
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_ANSWER_LIMIT: Final = 65_536
_PAUSE_SECONDS: Final = 0.1
# So much of the time is the first attempt's, that a lost packet leaves enough for another.
_FIRST_SHARE: Final = 0.6
_TRY_AGAIN: Final = frozenset({408, 429, *range(500, 600)})
_FRESH_KEY: Final = 401


class ConfigurationError(ValueError):
    """An environment variable of the function is missing or wrong."""


class NoAnswerError(RuntimeError):
    """The bridge did not answer in time, or not as its API does."""


@dataclass(frozen=True)
class Answer:
    """What the bridge said."""

    status: int
    body: Mapping[str, Any]

    @property
    def is_passing(self) -> bool:
        """Whether the same call may be answered otherwise later: the bridge was busy, the key renewed."""
        return self.status in _TRY_AGAIN or self.status == _FRESH_KEY

    @property
    def problem(self) -> str:
        """What was wrong, in the API's words."""
        return f"{self.status} {self.body.get('title')}: {self.body.get('detail')}"


@dataclass(frozen=True)
class ThingName:
    """Whose device a Thing is, as its name says; the null tenant is 32 zeros."""

    tenant_id: UUID | None
    serial_number: str

    @classmethod
    def of(cls, tenant_id: UUID | None, serial_number: object) -> "ThingName | None":
        """The name for a tenant's serial number; None where that cannot be one."""
        if not isinstance(serial_number, str) or not _SERIAL_NUMBER.fullmatch(serial_number):
            return None
        return cls(tenant_id, serial_number)

    @classmethod
    def read(cls, name: object) -> "ThingName | None":
        """The parts of a name; None where the bridge builds no such name."""
        match = _THING_NAME.fullmatch(name) if isinstance(name, str) else None
        return cls(null_if_zero(UUID(match[1])), match[2]) if match else None

    def __str__(self) -> str:
        return f"t{(self.tenant_id or _NO_TENANT).hex}-{self.serial_number}"

    @property
    def body(self) -> dict[str, Any]:
        """The device, as the API's calls name it."""
        tenant_id = str(self.tenant_id) if self.tenant_id else None
        return {"serialNumber": self.serial_number, "tenantId": tenant_id}


def null_if_zero(tenant_id: UUID) -> UUID | None:
    """The tenant, where the zero UUID stands for none."""
    return None if tenant_id == _NO_TENANT else tenant_id


class Key:
    """The key of the API: asked for once, and again where the bridge no longer takes it."""

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._known: str | None = None

    @classmethod
    def from_environment(cls) -> "Key":
        """The key in the variable itself, or in the secret that a variable names.

        Raises:
            ConfigurationError: neither or both are set.
        """
        key, secret = os.environ.get(KEY_VARIABLE), os.environ.get(KEY_SECRET_VARIABLE)
        if bool(key) == bool(secret):
            raise ConfigurationError(f"set {KEY_SECRET_VARIABLE} (a secret's name or ARN) or {KEY_VARIABLE}")
        if key:
            return cls(lambda: key)
        config = Config(connect_timeout=1, read_timeout=1, retries={"total_max_attempts": 2})
        secrets = boto3.client("secretsmanager", config=config)
        return cls(lambda: secrets.get_secret_value(SecretId=str(secret))["SecretString"].strip())

    def __call__(self) -> str:
        if self._known is None:
            self._known = self._read()
        return self._known

    def forget(self) -> None:
        """Have it asked for again."""
        self._known = None


class Api:
    """The bridge's API."""

    def __init__(self, url: str, key: Key) -> None:
        self._key = key
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path.rstrip("/")
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        if parts.scheme != "https" and not (parts.scheme == "http" and self._host in _LOOPBACK):
            raise ConfigurationError(f"{URL_VARIABLE} must begin with https://, since calls carry a key")

    @classmethod
    def from_environment(cls) -> "Api":
        """The API that the variables name.

        Raises:
            ConfigurationError: they name none.
        """
        return cls(os.environ.get(URL_VARIABLE, ""), Key.from_environment())

    def post(self, path: str, body: Mapping[str, Any], seconds: float) -> Answer:
        """Call, and once more where that was in vain and there is time.

        Raises:
            NoAnswerError: there was no answer, or none of the API's.
        """
        ends = time.monotonic() + seconds
        try:
            first = self._within(_FIRST_SHARE * seconds, path, body)
            if not first.is_passing:
                return first
        except NoAnswerError:
            first = None
        if first is not None and first.status == _FRESH_KEY:
            self._key.forget()
        time.sleep(max(0.0, min(_PAUSE_SECONDS, ends - time.monotonic())))
        return self._within(ends - time.monotonic(), path, body)

    def _within(self, seconds: float, path: str, body: Mapping[str, Any]) -> Answer:
        """One attempt. A socket's own time limit knows neither name resolution nor an answer that drips."""
        answer: Future[Answer] = Future()

        def attempt() -> None:
            try:
                answer.set_result(self._attempt(seconds, path, body))
            except Exception as error:  # noqa: BLE001  # it is raised where the answer is awaited
                answer.set_exception(error)

        if seconds <= 0:
            raise NoAnswerError("no time was left for a call")
        Thread(target=attempt, daemon=True).start()
        try:
            return answer.result(seconds)
        except (FutureTimeoutError, TimeoutError):
            raise NoAnswerError(f"no answer within {seconds:.1f} s") from None

    def _attempt(self, seconds: float, path: str, body: Mapping[str, Any]) -> Answer:
        try:
            headers = {"Authorization": f"Bearer {self._key()}", "Content-Type": "application/json"}
        except (BotoCoreError, ClientError, KeyError) as error:
            raise NoAnswerError(f"the secret that holds the key cannot be read: {error}") from None
        connection = self._connection(self._host, self._port, timeout=seconds)
        try:
            connection.request("POST", self._path + path, json.dumps(body), headers)
            response = connection.getresponse()
            content = json.loads(response.read(_ANSWER_LIMIT))
        except (OSError, HTTPException) as error:
            raise NoAnswerError(f"{type(error).__name__}: {error}") from None
        except ValueError:
            raise NoAnswerError(f"{response.status}, and no JSON") from None
        finally:
            connection.close()
        if not isinstance(content, dict):
            raise NoAnswerError(f"{response.status}, and no JSON object")
        return Answer(response.status, content)


def tenant_from_environment() -> UUID | None:
    """The tenant whose devices this deployment enrols, the zero UUID for those of none; None where unset.

    Raises:
        ConfigurationError: it is no UUID.
    """
    tenant_id = os.environ.get(TENANT_ID_VARIABLE)
    if not tenant_id:
        return None
    try:
        return UUID(tenant_id)
    except ValueError:
        raise ConfigurationError(
            f"{TENANT_ID_VARIABLE} must be a UUID, of zeros where there is no tenant"
        ) from None
