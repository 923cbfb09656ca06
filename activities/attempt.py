"""Each attempt of an activity: the check before each request to AWS, and the mapping of errors.

This is the only module that maps errors of `aws`, `db` and `domain` to Temporal's ApplicationError.
"""

import random
import time
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from aws.clients import CALL_SECONDS
from aws.errors import AwsError
from aws.guard import before_request
from domain.failure import PermanentError, RetryLaterError, StepError

# Long enough for a throttled fleet, short enough that a raised quota soon takes effect.
_LONGEST_BACKOFF_SECONDS: Final = 30.0

_progress: ContextVar[tuple[object, ...]] = ContextVar("progress", default=())


class AttemptTooSlowError(StepError):
    """The attempt has no time left for another request; the next attempt continues from its progress."""

    def __init__(self) -> None:
        super().__init__("AWS answers slowly: this attempt ends, the next one continues from here")


class AttemptInterceptor(Interceptor):
    """Sets the check before each request to AWS in each attempt, and maps the error of the attempt."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap the activity."""
        return _Attempt(next)


class _Attempt(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        """Run the activity.

        Raises:
            ApplicationError: the activity raised a StepError.
        """
        began = time.monotonic()
        # Not reset: the task ends with the attempt, and an activity in a thread has a copy of the context.
        before_request.set(lambda: _continue_or_stop(began))
        try:
            return await super().execute_activity(input)
        except StepError as error:
            # Without the cause, which can quote the request and so a private key.
            raise application_error(error, activity.info().attempt) from None


def record_progress(progress: object) -> None:
    """Send this progress with the next heartbeats, so that the next attempt can continue from it.

    A heartbeat is sent before each request to AWS. A separate one would double their number, and one without
    the progress would erase it.
    """
    _progress.set((progress,))


def application_error(error: StepError, attempt: int = 1) -> ApplicationError:
    """Return the error for Temporal, which defines if and when Temporal retries the activity.

    Args:
        error: the error of the step.
        attempt: the number of the attempt, from 1; the backoff doubles with each attempt.
    """
    match error:
        case PermanentError():
            return _error(str(error), error.code, permanent=True)
        case RetryLaterError():
            return _error(str(error), error.kind, delay=timedelta(seconds=error.seconds))
        case AwsError(retryable=True):
            return _error(str(error), error.kind, delay=_backoff(attempt))
        case AwsError():
            return _error(str(error), error.kind, permanent=True)
        case _:
            return _error(str(error), type(error).__name__.removesuffix("Error"))


def _error(
    message: str, kind: str, *, permanent: bool = False, delay: timedelta | None = None
) -> ApplicationError:
    return ApplicationError(
        message,
        type=kind,
        non_retryable=permanent,
        next_retry_delay=delay,
        # An error of AWS is no fault of the code: Temporal's UI shows it, and the workflow logs the outcome
        # in one line without a stack trace.
        category=ApplicationErrorCategory.BENIGN,
    )


def _backoff(attempt: int) -> timedelta:
    """Return a delay that doubles with each attempt, with jitter so that a fleet does not retry at once."""
    longest = min(_LONGEST_BACKOFF_SECONDS, 2.0 ** min(attempt, 10))
    return timedelta(seconds=random.uniform(longest / 2, longest))  # noqa: S311  # not a secret


def _continue_or_stop(began: float) -> None:
    """Send a heartbeat, or end an attempt that has timed out or is about to, before its next request.

    Otherwise two attempts would work on the same device at the same time.

    Raises:
        AttemptTooSlowError: too little time is left for another request.
    """
    info = activity.info()
    if info.heartbeat_timeout:
        activity.heartbeat(*_progress.get())
    if info.start_to_close_timeout:
        # Measured by the local clock, because the server's clock can differ.
        allowed = info.start_to_close_timeout.total_seconds()
        if time.monotonic() - began > max(allowed - CALL_SECONDS, allowed / 2):
            raise AttemptTooSlowError
