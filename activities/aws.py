"""The one door to AWS: clients, one per service, and AWS's error codes made the bridge's own errors."""

import random
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import (
    CredentialProvider,
    DeferredRefreshableCredentials,
    ReadOnlyCredentials,
)
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    ParamValidationError,
)
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.aws_calls import THROTTLED, observe_calls
from activities.aws_credentials import AwsKeys, FleetCredentials
from domain.enrolment import AwsPlace
from domain.failure import CREDENTIALS_NOT_READY, FailureCode

if TYPE_CHECKING:
    from types_boto3_events import EventBridgeClient
    from types_boto3_iot import IoTClient
    from types_boto3_iot_data import IoTDataPlaneClient
    from types_boto3_secretsmanager import SecretsManagerClient
    from types_boto3_sns import SNSClient

_attempt_began: ContextVar[float | None] = ContextVar("attempt_began", default=None)
_progress: ContextVar[tuple[object, ...]] = ContextVar("progress", default=())

P = ParamSpec("P")
R = TypeVar("R")
Page_co = TypeVar("Page_co", covariant=True)

CONNECT_SECONDS: Final = 3.0
# Patient: a certificate that AWS made, and whose answer was not waited for, is one that nobody knows.
READ_SECONDS: Final = 20.0
_CALL_SECONDS: Final = CONNECT_SECONDS + READ_SECONDS
# Impatient: what is asked of a shadow may be asked again, and whoever reads a thousand of them must be able
# to say in between that he lives.
SHADOW_READ_SECONDS: Final = 5.0
SECRET_READ_SECONDS: Final = 5.0
# Impatient too, since an event may be sent again: a sink has ten seconds for it.
_EVENT_READ_SECONDS: Final = 5.0

# Full seconds between tries of a throttled call: long enough to let a fleet through, short enough that an
# operator who lifts a limit sees it work.
_LONGEST_DELAY_SECONDS: Final = 30.0

_THROTTLES: Final = frozenset(
    {
        "ThrottlingException",
        "Throttling",
        "ThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "ProvisionedThroughputExceededException",
        "SlowDown",
    }
)
# Credentials that are rotated, or a clock that is set right, mend these without the saga's doing.
_CREDENTIAL_FAULTS: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_DENIALS: Final = frozenset(
    {"AccessDenied", "AccessDeniedException", "ForbiddenException", "UnauthorizedException"}
)
_NOT_FOUND: Final = frozenset({"ResourceNotFoundException"})
_EXISTS: Final = frozenset({"ResourceAlreadyExistsException", "ResourceExistsException"})
_CONFLICTS: Final = frozenset(
    {
        "CertificateConflictException",
        "CertificateStateException",
        "ConflictException",
        "ConflictingResourceUpdateException",
        "DeleteConflictException",
        "VersionConflictException",
    }
)
_REFUSALS: Final = frozenset({"InvalidQueryException", "InvalidRequestException"})
_INVALID: Final = frozenset({"InvalidParameter", "ParameterValueInvalid", "ValidationException"})
_QUOTAS: Final = frozenset({"LimitExceededException", "ServiceQuotaExceededException"})


class AwsConfigurationError(ValueError):
    """AWS's own settings are not enough to call it."""


class AwsError(ApplicationError):
    """A call to AWS that did not succeed; retryable unless it says otherwise.

    Args:
        kind: AWS's code, or ours where it needs an operator.
        what: what AWS said.
        remedy: what an operator does about it, where no retry mends it.
        permanent: whether no retry mends it.
        delay: how long the next attempt waits.
    """

    def __init__(
        self,
        kind: str,
        what: str,
        *,
        remedy: str = "",
        permanent: bool = False,
        delay: timedelta | None = None,
    ) -> None:
        super().__init__(
            f"{what}. {remedy}" if remedy else what,
            type=kind,
            non_retryable=permanent,
            next_retry_delay=delay,
            # An answer of AWS's is no fault of the code: it is seen in the UI, and the workflow logs what
            # stays of it, in a line and without a stack trace.
            category=ApplicationErrorCategory.BENIGN,
        )
        self.what = what


class NotFoundError(AwsError):
    """What the call names is not in AWS."""


class AlreadyExistsError(AwsError):
    """AWS holds another resource of that name."""


class ConflictError(AwsError):
    """The resource was changed, or is not yet in the state the call needs; look again."""


class InvalidRequestError(AwsError):
    """AWS refuses the request as it stands, for now or for good."""


class InvalidParameterError(AwsError):
    """AWS refuses a value that the call gives."""


class QuotaExceededError(AwsError):
    """AWS holds, or is doing, as much of this as it allows."""


class CredentialsNotReadyError(AwsError):
    """The bridge has no keys for AWS yet, so it was not called."""


class AttemptTooSlowError(AwsError):
    """This attempt has no time left for another call; the next one goes on from here."""


def permanent_failure(code: FailureCode, what: str) -> AwsError:
    """What no retry can mend: says what was found, and what to do."""
    return _permanent(AwsError, code, what)


def later(kind: str, what: str, seconds: float) -> AwsError:
    """What time alone mends: AWS has not finished something."""
    return AwsError(kind, what, delay=timedelta(seconds=seconds))


class Pages(Protocol[Page_co]):
    """What botocore's paginators give."""

    def __iter__(self) -> Iterator[Page_co]: ...


class FleetSecret:
    """The secret that holds the bridge's keys, read by what boto3's default chain finds.

    Args:
        arn: its ARN, by whose region it is asked for.
    """

    def __init__(self, arn: str) -> None:
        # A call that AWS refused for its keys waits for this, and must go on saying that it lives.
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=SECRET_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": 1},
            user_agent_extra="thingbridge",
        )
        self._arn = arn
        self.secrets: SecretsManagerClient = boto3.Session(region_name=arn.split(":")[3]).client(
            "secretsmanager", config=config
        )

    def read(self) -> str:
        """The secret's text; empty where it is binary.

        Raises:
            AwsError: it is not to be had.
        """
        try:
            return self.secrets.get_secret_value(SecretId=self._arn).get("SecretString", "")
        except (ClientError, BotoCoreError) as error:
            raise _translated(error) from None


class _KeysInForce(DeferredRefreshableCredentials):
    """botocore's refreshable credentials, refreshed at the next signature after there are other keys.

    That is known without a clock, which they would look at, and parse an end for, at each signature.
    """

    def __init__(self, credentials: FleetCredentials) -> None:
        super().__init__(self._metadata, _FleetProvider.METHOD)
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


class _FleetProvider(CredentialProvider):
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
        if refused is None or event["attempts"] > 1 or code not in _CREDENTIAL_FAULTS:
            return None
        _refuse_if_given_up()
        if not self._credentials.replace(refused):
            return None
        _refuse_if_given_up()
        return 0.0


class Aws:
    """The AWS clients of this process, and the calls made through them.

    Endpoints and, where none are given, credentials and region are boto3's own: environment, profiles, roles.

    Args:
        concurrency: how many threads call AWS at once; as many connections are kept.
        region: the region of every client.
        credentials: the keys of every client; no call is made before there are any.

    Raises:
        AwsConfigurationError: no region is to be found.
    """

    def __init__(
        self, concurrency: int, region: str | None = None, credentials: FleetCredentials | None = None
    ) -> None:
        core = botocore.session.Session()
        if credentials is not None:
            _FleetProvider(credentials).join(core)
        session = boto3.Session(botocore_session=core, region_name=region)
        if session.region_name is None:
            raise AwsConfigurationError(
                "AWS_REGION: is required (allowed: a region's name, such as eu-west-1)"
            )
        observe_calls(session.events, _result_of)
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=concurrency,
            # Temporal owns retrying: there it is seen, bounded and outlives the process.
            retries={"mode": "standard", "total_max_attempts": 1},
            user_agent_extra="thingbridge",
        )
        self.iot: IoTClient = session.client("iot", config=config)
        self.iot_data: IoTDataPlaneClient = session.client(
            "iot-data", config=config.merge(Config(read_timeout=SHADOW_READ_SECONDS))
        )
        self.secrets: SecretsManagerClient = session.client("secretsmanager", config=config)
        self._event_config = config.merge(Config(read_timeout=_EVENT_READ_SECONDS))
        self._session, self._config = session, config
        self.credentials = credentials

    @property
    def credentials_ready(self) -> bool:
        """Whether calls are made; with boto3's default chain always."""
        return self.credentials is None or self.credentials.ready

    @property
    def credentials_age_seconds(self) -> float | None:
        """How long ago the keys were last read well; None with boto3's default chain, or where never."""
        return self.credentials.age_seconds if self.credentials else None

    def events(self) -> "EventBridgeClient":
        """A client for EventBridge, which only a bridge that sends its events there needs."""
        return self._session.client("events", config=self._event_config)

    def sns(self, region: str) -> "SNSClient":
        """A client for SNS, which only a bridge that sends its events there needs.

        Args:
            region: the topic's.
        """
        return self._session.client("sns", region_name=region, config=self._event_config)

    def call(self, operation: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Make one call.

        Raises:
            NotFoundError, AlreadyExistsError, ConflictError, InvalidRequestError, InvalidParameterError: as
                AWS answers.
            ApplicationError: anything else, typed and marked retryable or not for Temporal.
        """
        if not self.credentials_ready:
            raise CredentialsNotReadyError(
                CREDENTIALS_NOT_READY,
                "the secret with the AWS keys has not been read yet: see the worker's log",
                delay=_backoff(),
            )
        _refuse_if_given_up()
        try:
            return operation(*args, **kwargs)
        except (ClientError, BotoCoreError) as error:
            # What botocore raised is cut off: it may quote what was sent, and that may be a key.
            raise _translated(error) from None

    def find_place(self, account_id: str | None) -> AwsPlace:
        """Where in AWS these clients are; the account is AWS's own word, where none is given.

        Raises:
            AwsError: AWS does not say. Asking needs no permission, but credentials.
        """
        region = self._session.region_name
        if account_id is None:
            sts = self._session.client("sts", config=self._config)
            account_id = str(self.call(sts.get_caller_identity)["Account"])
        partition = self.call(self._session.get_partition_for_region, region)
        return AwsPlace(partition=partition, account_id=account_id, region=region)

    def pages(self, pages: Pages[R]) -> Iterator[R]:
        """Every page of a listing, each call's errors as those of `call`."""
        iterator = iter(pages)
        while True:
            page = self.call(lambda: next(iterator, None))
            if page is None:
                return
            yield page


def note_progress(progress: object) -> None:
    """Have the heartbeats of this attempt carry how far it has come, for the one that takes over from it.

    They are sent before each call: one of its own beside would double them, and one without it erase it.
    """
    _progress.set((progress,))


def _refuse_if_given_up() -> None:
    """Stop an attempt that Temporal has given up on, or is about to, before it calls AWS once more.

    Its successor would otherwise work on the same device at the same time.
    """
    if not activity.in_activity():
        return
    info = activity.info()
    if info.heartbeat_timeout:
        activity.heartbeat(*_progress.get())
    if info.start_to_close_timeout:
        # Counted here, since the server's clock may be another: each attempt runs in a context of its own.
        began = _attempt_began.get() or time.monotonic()
        _attempt_began.set(began)
        allowed = info.start_to_close_timeout.total_seconds()
        if time.monotonic() - began > max(allowed - _CALL_SECONDS, allowed / 2):
            raise AttemptTooSlowError(
                "AttemptTooSlow", "AWS answers slowly: this attempt ends, the next goes on from here"
            )


def _translated(error: ClientError | BotoCoreError) -> AwsError:
    if isinstance(error, ClientError):
        return _answered(error)
    if isinstance(error, ParamValidationError):
        return _permanent(AwsError, FailureCode.UNEXPECTED, "botocore refuses the call's parameters")
    return AwsError(type(error).__name__, f"no answer from AWS ({type(error).__name__})", delay=_backoff())


def _answered(error: ClientError) -> AwsError:
    response: dict[str, Any] = dict(error.response)
    fault = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    code, status = fault.get("Code", "Unknown"), metadata.get("HTTPStatusCode", 0)
    what = f"{error.operation_name}: {code} ({status}): {fault.get('Message', '')}".rstrip(": ")
    if code in _THROTTLES or status == 429 or status >= 500:
        return AwsError(code, what, delay=_backoff())
    if code in _CREDENTIAL_FAULTS:
        return AwsError(code, what, delay=_backoff())
    if code in _NOT_FOUND:
        return NotFoundError(code, what, permanent=True)
    if code in _EXISTS:
        return AlreadyExistsError(code, what, permanent=True)
    if code in _CONFLICTS:
        return ConflictError(code, what, delay=_backoff())
    if code in _DENIALS or status in {401, 403}:
        return _permanent(AwsError, FailureCode.ACCESS_DENIED, what)
    if code in _QUOTAS:
        return _permanent(QuotaExceededError, FailureCode.QUOTA_EXCEEDED, what)
    if code in _REFUSALS:
        return _permanent(InvalidRequestError, FailureCode.REFUSED_BY_AWS, what)
    if code in _INVALID:
        return _permanent(InvalidParameterError, FailureCode.REFUSED_BY_AWS, what)
    return _permanent(AwsError, FailureCode.REFUSED_BY_AWS, what)


def _result_of(code: str, status: int) -> str:
    """What came of a call, in a word for the metrics."""
    if status < 300:
        return "ok"
    if code in _THROTTLES or status == 429:
        return THROTTLED
    results = {
        "credentials": _CREDENTIAL_FAULTS,
        "not_found": _NOT_FOUND,
        "exists": _EXISTS,
        "conflict": _CONFLICTS,
        "denied": _DENIALS,
        "quota": _QUOTAS,
        "refused": _REFUSALS,
    }
    known = next((result for result, codes in results.items() if code in codes), None)
    return known or ("denied" if status in {401, 403} else "error")


def _permanent(error: type[AwsError], code: FailureCode, what: str) -> AwsError:
    return error(code, what, remedy=code.remedy, permanent=True)


def _backoff() -> timedelta:
    """Doubling with the attempts, and spread, so that a throttled fleet does not come back as one."""
    attempt = activity.info().attempt if activity.in_activity() else 1
    longest = min(_LONGEST_DELAY_SECONDS, 2.0 ** min(attempt, 10))
    return timedelta(seconds=random.uniform(longest / 2, longest))  # noqa: S311  # not a secret
