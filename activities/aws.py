"""The one door to AWS: clients, one per service, and AWS's error codes made the bridge's own errors."""

import random
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.aws_calls import THROTTLED, observe_calls
from domain.enrolment import AwsPlace
from domain.failure import FailureCode

if TYPE_CHECKING:
    from types_boto3_iot import IoTClient
    from types_boto3_iot_data import IoTDataPlaneClient
    from types_boto3_secretsmanager import SecretsManagerClient

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


class QuotaExceededError(AwsError):
    """AWS holds, or is doing, as much of this as it allows."""


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


class Aws:
    """The AWS clients of this process, and the calls made through them.

    Credentials, endpoints and, where none is given, the region are boto3's own: environment, profiles, roles.

    Args:
        concurrency: how many threads call AWS at once; as many connections are kept.
        region: the region of every client.

    Raises:
        AwsConfigurationError: no region is to be found.
    """

    def __init__(self, concurrency: int, region: str | None = None) -> None:
        session = boto3.Session(region_name=region)
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
        self._session, self._config = session, config

    def call(self, operation: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Make one call.

        Raises:
            NotFoundError, AlreadyExistsError, ConflictError, InvalidRequestError: as AWS answers.
            ApplicationError: anything else, typed and marked retryable or not for Temporal.
        """
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
