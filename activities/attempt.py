"""What surrounds each attempt at an activity: the check before each request to AWS, and the error mapping.

This is the one place that turns errors of `aws`, `db` and `domain` into Temporal's ApplicationError.
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
from domain.failure import FailureCode, PermanentError, RetryLaterError, StepError

# Long enough to let a throttled fleet through, short enough that an operator who raises a quota soon sees it.
_LONGEST_BACKOFF_SECONDS: Final = 30.0

_progress: ContextVar[tuple[object, ...]] = ContextVar("progress", default=())


class AttemptTooSlowError(StepError):
    """This attempt has no time left for another request; the next one continues from its progress."""

    def __init__(self) -> None:
        super().__init__("AWS answers slowly: this attempt ends, the next one continues from here")


class AttemptInterceptor(Interceptor):
    """Adds the check before each request to AWS to each attempt, and maps the error that it ends with."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap the activity."""
        return _Attempt(next)


class _Attempt(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        """Run the activity.

        Raises:
            ApplicationError: the activity ended with a StepError.
        """
        began = time.monotonic()
        # Not reset: the task ends with the attempt; an activity in a thread runs in a copy of its context.
        before_request.set(lambda: _continue_or_stop(began))
        try:
            return await super().execute_activity(input)
        except StepError as error:
            # The cause is cut off: it can quote what was sent, and that can be a private key.
            raise application_error(error, activity.info().attempt) from None


def record_progress(progress: object) -> None:
    """Send this progress with the next heartbeats, for the attempt that continues after this one.

    Heartbeats are sent before each request to AWS. A separate heartbeat would double them, and one without
    the progress would erase it.
    """
    _progress.set((progress,))


def application_error(error: StepError, attempt: int = 1) -> ApplicationError:
    """Return the error that Temporal retries, or does not.

    Args:
        error: what the step ended with.
        attempt: the number of the attempt, from 1; the backoff doubles with it.
    """
    match error:
        case PermanentError():
            return _error(f"{error.detail}. {error.code.remedy}", error.code, permanent=True)
        case RetryLaterError():
            return _error(error.detail, error.kind, delay=timedelta(seconds=error.seconds))
        case AwsError(retryable=True):
            return _error(error.what, error.code, delay=_backoff(attempt))
        case AwsError(failure_code=FailureCode() as code):
            return _error(f"{error.what}. {code.remedy}", code, permanent=True)
        case AwsError():
            return _error(error.what, error.code, permanent=True)
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
        # An answer of AWS is no fault of the code: the UI shows it, and the workflow logs the outcome in one
        # line without a stack trace.
        category=ApplicationErrorCategory.BENIGN,
    )


def _backoff(attempt: int) -> timedelta:
    """Return a delay that doubles with the attempts, with jitter: a fleet must not return all at once."""
    longest = min(_LONGEST_BACKOFF_SECONDS, 2.0 ** min(attempt, 10))
    return timedelta(seconds=random.uniform(longest / 2, longest))  # noqa: S311  # not a secret


def _continue_or_stop(began: float) -> None:
    """End an attempt that Temporal has given up, or is about to give up, before it sends another request.

    Otherwise two attempts would work on the same device at the same time.
    """
    info = activity.info()
    if info.heartbeat_timeout:
        activity.heartbeat(*_progress.get())
    if info.start_to_close_timeout:
        # Measured here, since the server's clock can differ.
        allowed = info.start_to_close_timeout.total_seconds()
        if time.monotonic() - began > max(allowed - CALL_SECONDS, allowed / 2):
            raise AttemptTooSlowError
